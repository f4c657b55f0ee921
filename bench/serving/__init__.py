"""The server, measured by its viewers."""
