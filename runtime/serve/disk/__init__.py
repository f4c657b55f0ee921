"""What lies on disk of a stream, and how its state travels."""
