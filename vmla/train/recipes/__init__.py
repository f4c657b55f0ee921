"""Named settings that determine a trained model, and the memory that they take."""

FROM_SCRATCH = ("debug", "mini", "sprites")
"""The names in `from_scratch.PRETRAINING_RECIPES`, which needs PyTorch."""
FROM_CHECKPOINT = ("debug", "mini", "sprites", "sprites-gpu", "wan-1.3b")
"""The names in `from_checkpoint.DISTILLATION_RECIPES`, which needs PyTorch."""
