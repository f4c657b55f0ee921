"""The contents of a file of weights, and the mapping of its latent attention onto ours."""
