"""Published checkpoints: families that are refused by name, and presets of distilled models."""
