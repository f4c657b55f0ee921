"""Checkpoint folders in the layout that diffusers users know."""
