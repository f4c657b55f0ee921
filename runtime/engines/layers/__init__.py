"""Modules that replace the model's own in an engine: the same results from another layout or data type."""
