"""Ray (extra `ray`): a cluster, and a pool of workers on it."""
