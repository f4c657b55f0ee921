"""Reports of a rollout while it runs, and the figures made of them."""
