"""Training: objectives, the loop, exact resume, recipes."""
