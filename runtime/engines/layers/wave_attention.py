"""Attention to a full window in whole waves: the first queries through a library, the rest through ours.

A library gives each multiprocessor one tile of queries of one head at a time. At the published shape these
are 444 tiles on the 132 multiprocessors of an H200: three waves of 132, and a fourth of 48 in which most
idle. Here the library gets the queries of the whole waves only, and our kernel cuts the keys of the others
into splits, so that these fill the machine as well. Whether it gains, and with how many splits, is for a
clock to say on the GPU at hand (`runtime.engines.timing.attention_waves`).

Scope: bfloat16 and float16, d and dv powers of two of at least 16, no mask; any strides, channels side by
side. The plain form of the same meaning is `plugins.dense_attention`. For engines in PyTorch: the operator is
opaque to compilers, which would otherwise decide on the strides of its inputs; no exported graph contains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.sdpa import preferred
from plugins.triton.split_kv import TIMED
from vmla.attention import AnyWindow

LIBRARY_ROWS = 128
"""Queries of a library's tile: FlashAttention's for heads 128 wide (its `run_mha_fwd_hdim128`). cuDNN does
not tell its own; where they differ, less is gained or nothing, and then the library alone is the fastest."""

_LIBRARY = torch.library.Library("vmla", "FRAGMENT")
_LIBRARY.define(
    "attention_in_waves(Tensor query, Tensor keys, Tensor values, int rows, int splits) -> Tensor"
)


class Sizes(NamedTuple):
    """The sizes of an attention to which a cut applies."""

    batch: int
    heads: int
    queries: int
    keys: int

    @classmethod
    def of(cls, query: Tensor, keys: Tensor) -> Sizes:
        """Those of query [B, N, S, d] and keys [B, N, K, d]."""
        return cls(query.shape[0], query.shape[1], query.shape[2], keys.shape[2])


@dataclass(frozen=True)
class WaveAttention:
    """Attends to full windows of `sizes` in a cut, and to others as the window itself does."""

    sizes: Sizes
    rows: int
    """Queries of each head that the library takes: the first ones."""
    splits: int
    """Into how many parts our kernel cuts the keys of the other queries."""

    def __call__(self, window: AnyWindow, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `vmla.attention.Window.attend`."""
        if not getattr(window, "full", False) or Sizes.of(query, keys) != self.sizes:
            return window.attend(query, keys, values)
        return self.cut(query, keys, values)

    def cut(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `plugins.dense_attention`; of the sizes that the cut is for."""
        out: Tensor = torch.ops.vmla.attention_in_waves(query, keys, values, self.rows, self.splits)
        return out


def rows_of_whole_waves(sizes: Sizes, processors: int) -> int:
    """How many queries of each head fill whole waves of `processors` tiles; all of them if nothing remains.

    None (0) if the tiles do not fill a single wave.
    """
    heads = sizes.batch * sizes.heads
    tiles = -(-sizes.queries // LIBRARY_ROWS) * heads
    if tiles % processors == 0:
        return sizes.queries
    return min(tiles // processors * processors // heads * LIBRARY_ROWS, sizes.queries)


def candidates(sizes: Sizes, processors: int) -> tuple[int, ...]:
    """The numbers of splits worth timing; 0 stands for the library alone, and is always among them."""
    return (0, *TIMED) if 0 < rows_of_whole_waves(sizes, processors) < sizes.queries else (0,)


def in_waves(query: Tensor, keys: Tensor, values: Tensor, rows: int, splits: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, `rows` queries of each head by the library and the rest by our kernel.

    Args:
        query: [B, N, S, d].
        keys, values: [B, N, K, d] and [B, N, K, dv].
        rows: between 1 and S - 1.
        splits: 1 or more.

    Returns:
        [B, N, S, dv], which lies in memory as [B, S, N, dv].
    """
    from plugins.triton import launch

    with preferred(query):
        first = F.scaled_dot_product_attention(query[:, :, :rows], keys, values)
    rest = launch.attention_strided(query[:, :, rows:], keys, values, splits)
    return torch.cat([first.transpose(1, 2), rest], dim=1).transpose(1, 2)


def _shape(query: Tensor, keys: Tensor, values: Tensor, rows: int, splits: int) -> Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, values.shape[-1]).transpose(1, 2)


_LIBRARY.impl("attention_in_waves", in_waves, "CompositeExplicitAutograd")
torch.library.register_fake("vmla::attention_in_waves", _shape, lib=_LIBRARY)
