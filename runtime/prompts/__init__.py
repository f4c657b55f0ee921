"""Prompts of a rollout: fixed, scheduled or live, and the files that hold them."""
