"""The loop over chunks, its buffers, the recaching of a window, and decoding."""
