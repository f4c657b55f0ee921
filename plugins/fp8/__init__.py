"""Linear layers in float8: codes with a scale for each row, and their product."""
