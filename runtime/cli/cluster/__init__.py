"""The option `--ray` of `vmla-run` and `vmla-serve`: one command uses the machines of a Ray cluster."""
