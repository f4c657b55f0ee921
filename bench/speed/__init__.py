"""Benchmarks of time and memory: kernels, engines, whole videos."""
