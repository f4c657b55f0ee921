"""Who computes with how many threads: on a CPU, denoiser and decoder each have cores of their own.

They work at the same time. If both spread their operations over all cores, each operation of one waits
for threads that the other holds up: slower, and uneven from chunk to chunk (`LOG.md` has the figures).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

DECODER_SHARE = 4
"""One thread in so many decodes: denoising a chunk of `sprites` takes three to four times as long."""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Threads of the parts; None leaves PyTorch's own number."""

    denoiser: int | None
    decoder: int | None

    @classmethod
    def of(cls, threads: int, device: torch.device, *, silent: bool) -> Cores:
        """Share out `threads`; nothing is decoded if `silent`, and on a GPU threads matter to nobody."""
        if device.type != "cpu":
            return cls(denoiser=None, decoder=None)
        decoder = 0 if silent else max(1, threads // DECODER_SHARE)
        return cls(denoiser=max(1, threads - decoder), decoder=max(1, decoder))


@contextmanager
def using(threads: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many `threads` for the thread that calls."""
    before = torch.get_num_threads()
    if threads in (None, before):
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
