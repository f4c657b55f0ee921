"""The windows of a whole rollout in one masked pass, for training on given frames.

The sequence consists of the clean frames, then the noisy ones. A mask lets each chunk see itself and the
clean frames of its window. Positions are those of the clip, whose differences equal a rollout's, except for
the sink: a window holds the sink at its start, however far away it really is. A chunk that sees the sink
nearer than it is therefore gets keys of its own for it: the same entries, rotated by another angle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vmla.rope import Rotary3D

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Tokens to a side of FlexAttention's blocks, its own default."""
LONG = 4096
"""Tokens from which a GPU uses FlexAttention, which has to compile first; chosen, not measured."""


class PackedWindow(NamedTuple):
    """The `vmla.attention.Window` of a packed sequence: S tokens, of which A are seen from a second place."""

    repeated: Tensor
    """[A] int64, tokens of the sequence."""
    valid: Tensor
    """[A + S] bool, all true."""
    cos: Tensor
    sin: Tensor
    """[A + S, pairs]: rotations of repeated and own tokens; the last S are those of the queries."""
    mask: Tensor | BlockMask
    """[S, A + S] bool: which tokens see which."""

    def own(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the sequence's own `tokens`."""
        return self.cos[-tokens:], self.sin[-tokens:]

    def gathered(self, own: Tensor) -> Tensor:
        """All entries of the sequence, which this one process computes."""
        return own

    def before(self, cached: Tensor, own: Tensor) -> Tensor:
        """The entries that are seen again; nothing is cached."""
        return own[:, self.repeated]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [B, N, S, d] to keys and values [B, N, A + S, ...]: [B, N, S, dv]."""
        if isinstance(self.mask, Tensor):
            return masked_attention(query, keys, values, self.mask)
        return _compiled_flex()(query, keys, values, block_mask=self.mask)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PackedClip:
    """Says which frames of a clip see which others, and at which positions."""

    repeated: Tensor
    """[a] int64: frames of the sequence that some chunk sees from a second place."""
    positions: Tensor
    """[a + frames] int64: of those, then of the sequence."""
    visible: Tensor
    """[frames, a + frames] bool: the frames that each frame of the sequence sees."""

    @property
    def share(self) -> float:
        """The share of all pairs of frames in which one sees the other."""
        return float(self.visible.float().mean())

    def window(self, rope: Rotary3D, device: torch.device) -> PackedWindow:
        """The window in tokens on `device`: FlexAttention's blocks if long on a GPU, else a dense mask."""
        tokens = rope.grid[0] * rope.grid[1]
        within = torch.arange(tokens)
        cos, sin = rope(self.positions.to(device))
        long = len(self.visible) * tokens >= LONG
        mask = block_mask if long and device.type == "cuda" else dense_mask
        return PackedWindow(
            (self.repeated[:, None] * tokens + within).flatten().to(device),
            torch.ones(len(cos), dtype=torch.bool, device=device), cos, sin,
            mask(self.visible.to(device), tokens),
        )  # fmt: skip


def dense_mask(visible: Tensor, tokens: int) -> Tensor:
    """`visible` [frames, seen frames] for each pair of tokens: [S, K] bool."""
    return visible.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


def block_mask(visible: Tensor, tokens: int) -> BlockMask:
    """`visible` [frames, seen frames] as FlexAttention reads it: blocks that nobody sees are left out.

    It is made from frames because a mask of all pairs of tokens takes gigabytes at Wan's size.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible[query // tokens, key // tokens]

    rows, columns = (_overlaps(count, tokens).to(visible.device) for count in visible.shape)
    edged = torch.nn.functional.pad(visible, (0, 1, 0, 1)).float()  # beyond the end nothing is seen
    some, hidden = (rows @ pairs @ columns.T > 0 for pairs in (edged, 1 - edged))
    lengths = visible.shape[0] * tokens, visible.shape[1] * tokens
    return BlockMask.from_kv_blocks(
        *_listed(some & hidden), *_listed(some & ~hidden),
        BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=lengths,
    )  # fmt: skip


def _overlaps(frames: int, tokens: int) -> Tensor:
    """[blocks, frames + 1] float: which frames a block has tokens of; the last column is its padding."""
    blocks = -(-frames * tokens // BLOCK)
    frame = (torch.arange(blocks * BLOCK) // tokens).clamp(max=frames).view(blocks, BLOCK)
    return torch.zeros(blocks, frames + 1).scatter_(1, frame, 1.0)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """`blocks` [rows, columns] as counts [1, 1, rows] and column numbers, those that are set first."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]


def masked_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + log mask) v for query [B, N, S, d] and mask [S, K]."""
    return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


@cache
def _compiled_flex() -> Any:
    """FlexAttention; only its compiled form leaves blocks out."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
