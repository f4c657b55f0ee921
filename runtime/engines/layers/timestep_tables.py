"""Conditioning that depends on the timestep alone, computed once for each of a sampler's few timesteps."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from vmla.transformer import Conditioning, VideoMLA


class ConditioningTable(nn.Module):
    """Wraps a `Conditioning`, which it calls once for each timestep tensor.

    A result is reused for the very same tensor, as long as nothing has been written into it. It is kept as
    long as that tensor lives: a CUDA graph may read it, and the graphs of a rollout die with its buffers.
    """

    def __init__(self, conditioning: Conditioning) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.text_embedder = conditioning.text_embedder
        self._known: MutableMapping[Tensor, tuple[int, tuple[Tensor, Tensor]]] = WeakTensorKeyDictionary()

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """See `Conditioning.forward`; an unchanged timestep tensor gives the stored result."""
        if timestep.is_inference():  # PyTorch does not track writes into such a tensor
            made: tuple[Tensor, Tensor] = self.conditioning(timestep)
            return made
        version, known = self._known.get(timestep, (-1, None))
        if version == timestep._version and known is not None:
            return known
        made = self.conditioning(timestep)
        if known is None:  # an older result stays, for a graph that was captured with it
            self._known[timestep] = timestep._version, made
        return made


def tabled(model: VideoMLA) -> VideoMLA:
    """A copy of `model` that shares its weights; its conditioning goes through a `ConditioningTable`."""
    shared = copy.copy(model)
    table = ConditioningTable(model.condition_embedder)
    shared.__dict__["_modules"] = {**model._modules, "condition_embedder": table}
    return shared
