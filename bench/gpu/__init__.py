"""The measurements that a machine with a GPU makes in one run."""
