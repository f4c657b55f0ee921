"""What depends on the timestep alone, worked out once for each of the few that a sampler has."""

from __future__ import annotations

import copy
import weakref

from torch import Tensor, nn

from vmla.transformer import Conditioning, VideoMLA

class ConditioningTable(nn.Module):
    """As the `Conditioning` that it is made from, which it asks once for each timestep tensor.

    Only the very same tensor, not written into since, is taken for the same. What belongs to it is kept
    as long as it lives, because a CUDA graph of the rollout that holds it may read it, and no longer.
    """

    def __init__(self, conditioning: Conditioning) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.text_embedder = conditioning.text_embedder
        self._known: dict[int, tuple[weakref.ref[Tensor], int, tuple[Tensor, Tensor]]] = {}

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """See `Conditioning.forward`."""
        if timestep.is_inference():  # torch does not note whether such a tensor was written into
            made: tuple[Tensor, Tensor] = self.conditioning(timestep)
            return made
        number, version = id(timestep), timestep._version
        known = self._known.get(number)
        if known is not None and known[1] == version:
            return known[2]
        made = self.conditioning(timestep)
        if known is None:
            gone = weakref.ref(timestep, lambda _: self._known.pop(number, None))
            self._known[number] = gone, version, made
        return made


def tabled(model: VideoMLA) -> VideoMLA:
    """A copy of `model` that shares everything with it but has such a table."""
    shared = copy.copy(model)
    table = ConditioningTable(model.condition_embedder)
    shared.__dict__["_modules"] = {**model._modules, "condition_embedder": table}
    return shared
