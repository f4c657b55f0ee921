"""Engines: the denoiser behind one interface, eager or compiled ahead of time."""
