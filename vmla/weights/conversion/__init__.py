"""A Wan transformer to latent attention and back, layer by layer."""
