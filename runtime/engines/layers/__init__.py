"""Modules that stand in for the model's own in an engine: the same results from weights in another layout or
type."""
