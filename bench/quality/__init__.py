"""Benchmarks of the pictures in finished videos."""
