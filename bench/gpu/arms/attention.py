"""Latent attention with joined products, each with one of its features taken back, to time that feature.

Results are those of `vmla.fused_attention.FusedLatentAttention` but for the order in which sums are rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plugins import expand
from vmla.attention import AnyWindow, LatentAttention
from vmla.fused_attention import FusedLatentAttention, JoinedProduct


class SeparateExpansion(FusedLatentAttention):
    """Keys and values come from the operator `expand` in place of one product for all heads."""

    def __init__(self, plain: LatentAttention) -> None:
        """Share the weights of keys and values with `plain`."""
        super().__init__(plain)
        self.up_k, self.up_v = plain.up_k.weight, plain.up_v.weight

    def _keys_values(self, cached: Tensor, own: Tensor, window: AnyWindow) -> tuple[Tensor, Tensor]:
        keys, values = expand(
            cached, own, self.up_k, self.up_v, window.cos, window.sin, window.valid, self.heads
        )
        return keys.transpose(1, 2), values.transpose(1, 2)


class SeparateProjections(FusedLatentAttention):
    """Three products lead down and two lead up to the queries, whose halves are then concatenated."""

    def __init__(self, plain: LatentAttention) -> None:
        """Share the layers of the queries with `plain`."""
        super().__init__(plain)
        rows = self.down.weight.split([*self.widths, self.latent])
        self.each_down = nn.ModuleList(map(JoinedProduct, rows))
        self.up_nope, self.up_rotary = plain.up_q, plain.rotary_q

    def _down(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        content, rotary, latent = (down(x) for down in self.each_down)
        return content, rotary, latent

    def _queries(self, latent: Tensor, window: AnyWindow) -> Tensor:
        nope, rotary = (up(latent).unflatten(-1, (self.heads, -1)) for up in (self.up_nope, self.up_rotary))
        return torch.cat([nope, self._rotated(rotary, window)], dim=-1)


class HeadsFirst(FusedLatentAttention):
    """Queries, keys, values and output lie in memory as [B, N, tokens, width], where they are copied to."""

    def _queries(self, latent: Tensor, window: AnyWindow) -> Tensor:
        query = self.up_q(latent).unflatten(-1, (self.heads, -1))
        nope, rotary = query.split([self.nope, self.rotary], dim=-1)
        halves = nope.transpose(1, 2), self._rotated(rotary, window).transpose(1, 2)
        return torch.cat(halves, dim=-1).transpose(1, 2)

    def _as_read(self, part: Tensor, window: AnyWindow) -> Tensor:
        return part.contiguous()
