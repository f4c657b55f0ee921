"""Published checkpoints: families that are refused by name, and presets of distilled models."""

NAMES = (
    "videomla", "self-forcing", "causvid", "longlive", "causal-forcing", "causal-forcing-framewise",
    "rolling-forcing",
)  # fmt: skip
"""The names in `presets.PRESETS`, which needs PyTorch."""
JOINT = "rolling-forcing-joint"
"""A name that readers of Rolling Forcing's paper may ask for; `presets.preset` says what to take instead."""
