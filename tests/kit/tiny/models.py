"""Tiny models whose every parameter is random, so that nothing hides behind a zero or a one."""

import torch

from vmla.config import ModelConfig
from vmla.transformer import VideoMLA

TINY = {
    "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "ffn_dim": 24, "in_channels": 3,
    "freq_dim": 8, "text_dim": 10, "text_tokens": 5, "kv_lora_rank": 12, "qk_rope_head_dim": 8,
    "q_lora_rank": 14, "sink": 1, "history": 3, "chunk": 2, "sample_height": 4, "sample_width": 6,
}  # fmt: skip
"""Sizes that all differ where they can: a mixed-up axis shows."""


def tiny_config(**changes):
    """A configuration of a few thousand parameters."""
    return ModelConfig(**{**TINY, **changes})


def tiny_model(seed=0, **changes):
    """A `VideoMLA` with every parameter drawn anew, gains about one."""
    return randomise(VideoMLA(tiny_config(**changes)), seed)


def randomise(model, seed=0):
    """Draw every parameter from `seed`: gains of norms about 1, all else about 0; no gradients."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        gain = "norm" in name and name.endswith("weight")
        scale = 0.3 if gain or parameter.ndim < 2 else 1.5 / parameter[0].numel() ** 0.5
        parameter.data = (drawn * scale + gain).to(parameter.dtype)
    return model.requires_grad_(False).eval()


def draw(*shape, seed=0):
    """Standard normal float32 numbers of `shape` that depend on `seed` alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
