"""What `--ray` does: several machines at one command."""
