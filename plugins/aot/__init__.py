"""Kernels compiled ahead of time, and the TensorRT plugins that carry them."""
