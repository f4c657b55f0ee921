"""What is known of published checkpoints: families that are refused by name, presets of distilled models."""
