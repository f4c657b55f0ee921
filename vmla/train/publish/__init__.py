"""A finished run as a checkpoint folder with a model card."""
