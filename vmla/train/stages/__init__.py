"""The stages of training: what each learns from, and one optimizer step of it."""

STAGES = ("codec", "decoder", "text", "latents", "denoiser", "refine")
"""Stages of a run from nothing, in order; a recipe may lack `decoder` and `refine`."""
