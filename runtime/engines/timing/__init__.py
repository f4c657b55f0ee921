"""What an engine times when it starts."""
