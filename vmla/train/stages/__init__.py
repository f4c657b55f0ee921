"""The stages of training: the data of each, and its optimizer step."""

STAGES = ("codec", "decoder", "text", "latents", "denoiser", "refine")
"""Stages of a run from nothing, in order; a recipe may lack `decoder` and `refine`."""
