"""What is known of published checkpoints: families that are refused by name, presets of distilled models."""

NAMES = (
    "videomla", "self-forcing", "causvid", "longlive", "causal-forcing", "causal-forcing-framewise",
    "rolling-forcing",
)  # fmt: skip
"""The names in `presets.PRESETS`, which needs PyTorch."""
JOINT = "rolling-forcing-joint"
"""What somebody may ask for who knows Rolling Forcing's paper; `presets.preset` says what to take instead."""
