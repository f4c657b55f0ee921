"""Forms of the engine that are measured beside the one that users get."""
