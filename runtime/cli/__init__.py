"""The commands `vmla-run`, `vmla-export` and `vmla-serve`."""
