"""Requests checked, and a video's length and memory computed, before anything is allocated."""
