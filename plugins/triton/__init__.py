"""Triton kernels of the attention operator; importing a module of this package loads Triton."""
