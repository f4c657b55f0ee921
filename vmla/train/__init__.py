"""Training: recipes, their stages, the objectives that these minimise, and the loop with its exact resume."""
