"""The training loop: sharding, prefetching, logs, and states to resume from."""
