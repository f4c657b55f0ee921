"""The stages of training: what each learns from, and one optimizer step of it."""
