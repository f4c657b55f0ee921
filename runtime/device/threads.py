"""Divides a CPU's threads: denoiser and decoder each have cores of their own.

Both work at the same time. If each spread its operations over all cores, every operation would wait for
threads that the other one holds, which is slower and uneven from chunk to chunk (`LOG.md` has the figures).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

DECODER_SHARE = 4
"""One thread in four decodes: denoising a chunk of `sprites` takes three to four times as long."""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Threads of denoiser and decoder; None leaves PyTorch's own number."""

    denoiser: int | None
    decoder: int | None

    @classmethod
    def of(
        cls, threads: int, device: torch.device, *, silent: bool, text_device: torch.device | None = None
    ) -> Cores:
        """Divide `threads`. Nothing is decoded if `silent`.

        On a GPU the number does not matter, unless prompts are encoded on a CPU (`text_device`).
        """
        if device.type != "cpu":
            encodes = text_device is not None and text_device.type == "cpu"
            return cls(denoiser=threads if encodes else None, decoder=None)
        # With a single thread both get one: they then share a core, which is still right, only slower.
        decoder = 0 if silent else max(1, threads // DECODER_SHARE)
        return cls(denoiser=max(1, threads - decoder), decoder=max(1, decoder))


@contextmanager
def using(threads: int | None) -> Iterator[None]:
    """Inside, PyTorch computes with `threads` threads for the calling thread."""
    before = torch.get_num_threads()
    if threads in (None, before):
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
