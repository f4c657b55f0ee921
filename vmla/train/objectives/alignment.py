"""Representation alignment: a denoiser's middle layer also learns which object is where in the scene.

A small network reads the tokens after one of the layers and is compared with what the scene shows there; it
is discarded afterwards. The idea, with features of a pretrained encoder as targets, is REPA's (arXiv
2410.06940); a rendered world knows its truth and needs no encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.train.objectives.packed_clip import predicted
from vmla.transformer import VideoMLA

ALIGNER = "aligner"
"""Name of the submodule that a denoiser has while it is trained."""


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


def attach_aligner(model: VideoMLA, labels: Tensor | None) -> None:
    """Give `model` an `aligner` for `labels` [clips, frames, places, numbers], to be trained with it.

    Raises:
        UserError: if the clips have no labels, or not one for each token.
    """
    if labels is None or labels.shape[2] != model.config.tokens_per_frame:
        places = "none" if labels is None else labels.shape[2]
        raise UserError(
            f"alignment needs {model.config.tokens_per_frame} labels a frame, the clips have {places}; "
            "set label_grid of the latents to the model's tokens across"
        )
    device = next(model.parameters()).device
    model.add_module(ALIGNER, Aligner(model.config.inner_dim, labels.shape[3]).to(device))


def detach_aligner(model: VideoMLA) -> VideoMLA:
    """`model` without its aligner, if it has one."""
    if hasattr(model, ALIGNER):
        delattr(model, ALIGNER)
    return model


def without_aligner(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The denoiser's own `tensors`, by name: all but the aligner's."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(ALIGNER + ".")}


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
    model: VideoMLA, seen: Sequence[Tensor], labels: Tensor | None, numbers: Sequence[int]
) -> Tensor:
    """Mean squared error of the labels that the aligner reads from the tokens of a teacher-forced rollout.

    Args:
        model: with an aligner.
        seen: tokens of every pass: for each chunk its prediction, of all noise levels at once, if it has
            one, then its clean pass, which the last chunk lacks.
        labels: [B, frames, P, labels] of all chunks; clips without them were refused (`attach_aligner`).
        numbers: those of the chunks.
    """
    assert labels is not None
    aligner, wanted, passes = getattr(model, ALIGNER), predicted(numbers), iter(seen)
    errors, chunks = [], CacheSpec.of(model.config).chunks
    for number, truth in zip(numbers, chunks.split(labels, numbers, dim=1), strict=True):
        truth = truth.flatten(1, 2).to(seen[0].device)
        for _ in range((number in wanted) + (number != numbers[-1])):
            tokens = next(passes)
            errors.append((aligner(tokens) - truth.repeat(len(tokens) // len(truth), 1, 1)).square().mean())
    return torch.stack(errors).mean()
