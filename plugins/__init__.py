"""The attention operator: one reference, one entry point, and the kernels behind it."""
