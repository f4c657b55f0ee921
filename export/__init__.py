"""From a checkpoint to a compiled denoiser on disk."""
