"""Latent attention with its products joined: three matrix products where the plain form has seven.

The eager engine uses it on a GPU, compiled engines use it everywhere.

The plain form, `vmla.attention.LatentAttention`, is the reference. Here the three down-projections are one
product, as are the two of the queries. Keys and values of all heads come from one product as well:
[content, rotated key] times [[W_k, I], [W_v, 0]], where the identity hands the rotated key to each head.
Queries, keys, values and output stay in the layout [B, tokens, N, width]: the views that attention reads are
strided, and no half of a head is concatenated or transposed into place.

A product with the identity is exact, so results differ only by how a library orders the sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.reference import window_entries
from vmla.attention import AnyWindow, LatentAttention
from vmla.rope import rotate

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of query, keys and values, as `plugins.dense_attention`."""


class FusedLatentAttention(nn.Module):
    """Replaces the given `LatentAttention` in its expanded form, without gradients."""

    down: nn.Parameter
    """[C + R + Q, D]: content, rotary key and query latent."""
    up_q: nn.Parameter
    """[N * (dn + R), Q]: each head's unrotated part, then its rotary part."""
    expansion: nn.Parameter
    """[N * (dn + R) + N * dv, C + R]: all keys, then all values."""

    def __init__(self, plain: LatentAttention, attend: Attend | None = None) -> None:
        """Join the weights of `plain`; norms and output projection are shared with it.

        `attend` takes the place of the window's own attention where all tokens are valid.
        """
        super().__init__()
        self._attend = attend
        self.heads = plain.heads
        self.rotary, self.latent = plain.rotary_k.out_features, plain.down_q.out_features
        self.nope = plain.up_k.out_features // self.heads
        self.norm_kv, self.norm_q, self.to_out = plain.norm_kv, plain.norm_q, plain.to_out
        layers = (plain.down_kv, plain.rotary_k, plain.down_q)
        self.down = _fixed(torch.cat([layer.weight.detach() for layer in layers]))
        halves = (self._by_head(layer.weight) for layer in (plain.up_q, plain.rotary_q))
        self.up_q = _fixed(torch.cat([*halves], dim=1).flatten(0, 1))
        self.expansion = _fixed(self._expansion(plain))

    def _by_head(self, weight: Tensor) -> Tensor:
        return weight.detach().unflatten(0, (self.heads, -1))

    def _expansion(self, plain: LatentAttention) -> Tensor:
        """[[W_k, I], [W_v, 0]] with the rows of each head together."""
        up_k, up_v = plain.up_k.weight.detach(), plain.up_v.weight.detach()
        handed_on = torch.eye(self.rotary, dtype=up_k.dtype, device=up_k.device)
        keys = up_k.new_zeros(self.heads, self.nope + self.rotary, up_k.shape[1] + self.rotary)
        keys[:, : self.nope, : up_k.shape[1]] = self._by_head(up_k)
        keys[:, self.nope :, up_k.shape[1] :] = handed_on
        return torch.cat([keys.flatten(0, 1), F.pad(up_v, (0, self.rotary))])

    def entries(self, x: Tensor) -> Tensor:
        """See `LatentAttention.entries`."""
        return self._entries(F.linear(x, self.down[: -self.latent]))

    def forward(
        self, x: Tensor, cached: Tensor, window: AnyWindow, *, absorbed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See `LatentAttention.forward`.

        Raises:
            ValueError: if the absorbed form is asked for, which reads weights that were joined.
        """
        if absorbed:
            raise ValueError("fused attention has no absorbed form; use the plain model")
        own, latent = F.linear(x, self.down).split([self.down.shape[0] - self.latent, self.latent], dim=-1)
        own = window.gathered(self._entries(own))
        query = self._queries(latent, window)
        keys, values = self._keys_values(window.before(cached, own), own, window)
        parts = [part.transpose(1, 2) for part in (query, keys, values)]
        full = getattr(window, "full", False)
        if not full:  # the masked kernel reads contiguous memory only
            parts = [part.contiguous() for part in parts]
        attend = window.attend if not full or self._attend is None else self._attend
        out = attend(*parts)
        return self.to_out(out.transpose(1, 2).flatten(2)), own

    def _entries(self, raw: Tensor) -> Tensor:
        """Content and rotary key side by side [B, S, E], the content normalised."""
        content, rotary = raw.split([raw.shape[-1] - self.rotary, self.rotary], dim=-1)
        return torch.cat([self.norm_kv(content), rotary], dim=-1)

    def _queries(self, latent: Tensor, window: AnyWindow) -> Tensor:
        """[B, S, N, dn + R] from the query latent [B, S, Q]; the rotary part is rotated where it lies."""
        query = F.linear(self.norm_q(latent), self.up_q).unflatten(-1, (self.heads, -1))
        cos, sin = window.own(latent.shape[1])
        rotary = query[..., self.nope :]
        turned = rotate(rotary, cos[:, None], sin[:, None])
        # In place where possible: concatenating would copy all of the query to change its rotary part.
        if torch.compiler.is_exporting():  # an exported graph changes nothing in place
            return torch.cat([query[..., : self.nope], turned], dim=-1)
        rotary.copy_(turned)
        return query

    def _keys_values(self, cached: Tensor, own: Tensor, window: AnyWindow) -> tuple[Tensor, Tensor]:
        """Views [B, K, N, dn + R] and [B, K, N, dv] of one product with the entries of the whole window."""
        full = getattr(window, "full", False)
        entries = torch.cat([cached, own], dim=1) if full else window_entries(cached, own, window.valid)
        content, rotary = entries.split([entries.shape[-1] - self.rotary, self.rotary], dim=-1)
        turned = torch.cat([content, rotate(rotary, window.cos, window.sin)], dim=-1)
        made = F.linear(turned, self.expansion)
        width = self.heads * (self.nope + self.rotary)
        keys, values = made.split([width, made.shape[-1] - width], dim=-1)
        return keys.unflatten(-1, (self.heads, -1)), values.unflatten(-1, (self.heads, -1))


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)


def fused(module: nn.Module, attend: Attend | None = None) -> nn.Module:
    """A shallow copy of `module`, sharing all else, whose latent attention has joined products.

    `attend` is that of `FusedLatentAttention`.
    """
    if isinstance(module, LatentAttention):
        return FusedLatentAttention(module, attend)
    shared = copy.copy(module)
    parts = {name: fused(part, attend) for name, part in module._modules.items() if part is not None}
    shared.__dict__["_modules"] = cast(dict[str, nn.Module | None], parts)
    return shared
