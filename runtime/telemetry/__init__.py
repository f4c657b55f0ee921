"""What a rollout reports while it runs, and the figures made of that."""
