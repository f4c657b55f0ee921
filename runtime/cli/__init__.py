"""The command `vmla-run`, and the verb of `vmla-export` that runs engines."""
