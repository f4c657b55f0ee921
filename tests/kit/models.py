"""Tiny models whose every parameter is random, so that nothing hides behind a zero or a one."""

import torch

from vmla.config import ModelConfig
from vmla.transformer import VideoMLA

TINY = {
    "width": 32, "heads": 2, "layers": 2, "ffn_width": 24, "latent_channels": 3, "frequency_width": 8,
    "text_width": 10, "text_tokens": 5, "content_width": 12, "rotary_width": 8, "query_width": 14,
    "sink": 1, "history": 3, "chunk": 2, "height": 4, "image_width": 6,
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
