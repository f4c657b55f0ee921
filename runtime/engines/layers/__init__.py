"""Modules that stand in for the model's own in an engine: the same results, laid out or kept otherwise."""
