"""Engines of tiny models, without a text encoder."""

import torch
from kit.tiny.models import tiny_model

from runtime.engines.base import EagerEngine
from vmla.scheduler import keyed_noise


class Words:
    """Stands for a text encoder: every prompt is some noise of its own."""

    encoder = torch.nn.Identity()

    def __init__(self, config, device="cpu"):
        self._shape, self._device = (config.text_tokens, config.text_dim), device

    def __call__(self, prompts):
        drawn = [keyed_noise(self._shape, seed=len(prompt), chunk=0, step=0) for prompt in prompts]
        return torch.stack(drawn).to(self._device)


def tiny_engine(device="cpu", dtype=torch.float32, **changes):
    """An eager engine of `kit.tiny.models.tiny_model`."""
    model = tiny_model(**changes)
    words = Words(model.config, device)
    return EagerEngine(model, words, device=torch.device(device), dtype=dtype)
