"""Measurements of everything that this project claims."""
