"""Grades finished sprite videos by formula: finds their objects and compares them with the prompt."""
