"""Representation alignment: the middle of a denoiser learns to say what is where, beside its own loss.

A small network reads the tokens after one of the layers and is held against what the scene shows there; it
is thrown away afterwards. The idea, with features of a pretrained encoder as targets, is REPA's
(arXiv 2410.06940); a rendered world knows its truth and needs no encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vmla.train.unroll import predicted
from vmla.transformer import VideoMLA


class Aligner(nn.Module):
    """Tokens of a layer to labels."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, labels)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] to [..., labels]."""
        return self.out(nn.functional.silu(self.hidden(self.norm(tokens.float()))))


@contextmanager
def watched(model: VideoMLA, layer: int) -> Iterator[list[Tensor]]:
    """The tokens [B, S, D] after `layer` blocks, of each pass while this is open, in their order."""
    seen: list[Tensor] = []

    def hook(block: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
        seen.append(outputs[0])

    handle = model.blocks[layer - 1].register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def alignment_loss(
    aligner: Aligner, seen: Sequence[Tensor], labels: Tensor, numbers: Sequence[int]
) -> Tensor:
    """Mean squared error of what the tokens of a teacher-forced rollout say is where.

    Args:
        aligner: what reads them.
        seen: tokens of every pass: for each chunk its prediction, of all noise levels at once, if it has
            one, then its clean pass, which the last chunk lacks.
        labels: [B, frames, P, labels] of all chunks.
        numbers: those of the chunks.
    """
    wanted, passes = predicted(numbers), iter(seen)
    errors = []
    for number, truth in zip(numbers, labels.chunk(len(numbers), 1), strict=True):
        truth = truth.flatten(1, 2)
        for _ in range((number in wanted) + (number != numbers[-1])):
            tokens = next(passes)
            errors.append((aligner(tokens) - truth.repeat(len(tokens) // len(truth), 1, 1)).square().mean())
    return torch.stack(errors).mean()
