"""The commands `vmla-run` and `vmla-export`."""
