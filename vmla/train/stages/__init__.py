"""The stages of training: what each learns from, and one optimizer step of it."""

STAGES = ("codec", "decoder", "text", "latents", "denoiser", "refine")
"""Of a run from nothing, in order; a recipe may lack the second and the last."""
