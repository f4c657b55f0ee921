"""Benchmarks of what is seen in finished videos."""
