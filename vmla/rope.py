"""3D rotary positions: frequencies sliced from Wan's own tables, angles from window-relative indices.

Wan splits a head of width d into channels for time, height and width (44 | 42 | 42 of 128), two
neighbouring channels to a rotating pair; pair i of an axis of width a turns by 10000^(-2i/a) per
position. VideoMLA's shared rotary key keeps the fastest pairs of each axis (arXiv 2605.30351, 3.2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from plugins.errors import UserError
from plugins.reference import rotate_pairs as rotate

__all__ = ["Rotary3D", "rotate", "split_pairs"]

THETA = 10000.0
"""Base of the rotary frequencies, as in Wan: pair i of an axis of width a turns by THETA^(-2i/a)."""


class Rotary3D(nn.Module):
    """Cosines and sines for tokens of given latent frames; holds frequencies, never positions."""

    frequencies_time: Tensor
    frequencies_height: Tensor
    frequencies_width: Tensor
    """Radians per latent frame, row and column [pairs of the axis] float32."""

    def __init__(self, *, attention_head_dim: int, qk_rope_head_dim: int, grid: tuple[int, int]) -> None:
        """Keep the fastest `qk_rope_head_dim / 2` pairs of a Wan head of width `attention_head_dim`.

        Raises:
            UserError: if the head has not as many pairs for each axis.
        """
        super().__init__()
        self.grid = grid
        # Wan's split of a head: a third each for height and width, rounded down to whole pairs, the rest for
        # time.
        spatial = 2 * (attention_head_dim // 6)
        axes = (attention_head_dim - 2 * spatial, spatial, spatial)
        whole = qk_rope_head_dim == attention_head_dim
        pairs = tuple(axis // 2 for axis in axes) if whole else split_pairs(qk_rope_head_dim // 2)
        fits = all(2 * kept <= axis for kept, axis in zip(pairs, axes, strict=True))
        if attention_head_dim % 2 or qk_rope_head_dim % 2 or not fits:
            raise UserError(
                f"qk_rope_head_dim {qk_rope_head_dim} is not a sum of pairs of the axes "
                f"of a head of {attention_head_dim}"
            )
        for name, axis, kept in zip(("time", "height", "width"), axes, pairs, strict=True):
            # The full axis' table in float64, as Wan makes it, then cut: the fastest pairs come first.
            table = THETA ** (-torch.arange(0, axis, 2, dtype=torch.float64) / axis)
            self.register_buffer(f"frequencies_{name}", table[:kept].float(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary3D:
        """Move with the model, but stay float32 when the model is cast.

        bfloat16 has 8 bits: a cast would shift the slow frequencies, and with them all positions.
        """

        def move(table: Tensor) -> Tensor:
            return fn(table) if table.is_meta else table.to(fn(table).device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the tokens of `frames` [n] (int): each [n * P, pairs] float32."""
        down, across = self.grid
        rows = torch.arange(down, device=frames.device)
        columns = torch.arange(across, device=frames.device)
        shape = (frames.shape[0], down, across, -1)
        angles = torch.cat(
            [
                (frames[:, None] * self.frequencies_time)[:, None, None].expand(shape),
                (rows[:, None] * self.frequencies_height)[None, :, None].expand(shape),
                (columns[:, None] * self.frequencies_width)[None, None].expand(shape),
            ],
            dim=-1,
        ).flatten(0, 2)
        return angles.cos(), angles.sin()


def split_pairs(pairs: int) -> tuple[int, int, int]:
    """Pairs for time, height and width, by Wan's rule: 16 gives the paper's (6, 5, 5)."""
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3
