"""The command `vmla-train`."""
