"""Compiled programs run from their files, each a function of tensors; what `load` of a backend returns."""
