"""Random numbers of training, drawn where their generator lives and moved to where they are needed.

A generator of the device that trains draws there: a batch of small clips takes a CPU longer to draw than a
GPU to learn from. So the same step draws other noise on another kind of device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal float32 numbers of `shape`, on `device`."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device).to(device)


def uniform(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`count` float32 numbers in [0, 1), on `device`."""
    return torch.rand(count, generator=generator, device=generator.device).to(device)


def seeded(device: torch.device, seed: int) -> torch.Generator:
    """A generator of `device` that starts from `seed`."""
    return torch.Generator(device).manual_seed(seed)
