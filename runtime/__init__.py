"""The autoregressive loop: prompts in, a stream of frames out."""
