"""Clips to train on: videos encoded once, or rendered, and read back from their shards."""
