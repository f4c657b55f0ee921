"""Latent attention with its products joined: three matrix products where the plain form has seven.

There are five where the query layers are quantised (`QueriesApart`). The eager engine uses it unless it is to
attend in latent space; of compiled engines, all do but ONNX graphs and those with our plugin
(`export.build.joins_products`).

The plain form, `vmla.attention.LatentAttention`, is the reference. Here the three down-projections are one
product, as are the two that make the queries. Keys and values of all heads come from one product as well:
[content, rotated key] times [[W_k, I], [W_v, 0]], where the identity hands the rotated key to each head.
Queries, keys, values and output stay in the layout [B, tokens, N, width]: the views that attention reads are
strided, and no half of a head is concatenated or transposed into place.

A product with the identity is exact, so results differ only by how a library orders the sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.reference import window_entries
from vmla.attention import AnyWindow, LatentAttention
from vmla.rope import rotate

Attend = Callable[[AnyWindow, Tensor, Tensor, Tensor], Tensor]
"""Attends within a window, as `Window.attend` does: query, keys and values [B, N, tokens, width]."""


def attend_to(window: AnyWindow, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend as the window itself does, in the type of the model: the default of `JoinedAttention.attend`."""
    return window.attend(query, keys, values)


class JoinedProduct(nn.Module):
    """The product with a weight that several layers' were joined to, without bias and gradients.

    It is no `nn.Linear`, because what quantises linear layers chooses among those of the checkpoint.
    """

    weight: nn.Parameter
    """[outputs, inputs]."""
    bias: None = None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return F.linear(x, self.weight)


class JoinedAttention(nn.Module):
    """Base of both fused forms, in the expanded form and without gradients; they differ in their queries."""

    down: JoinedProduct
    """Weight [C + R, D] or more rows: content and rotary key first."""
    expansion: JoinedProduct
    """Weight [N * (dn + R) + N * dv, C + R]: all keys, then all values."""
    attend: Attend
    """How queries attend; an engine may replace the default, `attend_to`, by a faster form."""

    def __init__(self, plain: LatentAttention) -> None:
        """Join the weights of `plain`; norms and output projection are shared with it."""
        super().__init__()
        self.heads, self.attend = plain.heads, attend_to
        self.content, self.rotary = plain.down_kv.out_features, plain.rotary_k.out_features
        self.nope = plain.up_k.out_features // self.heads
        self.norm_kv, self.norm_q, self.to_out = plain.norm_kv, plain.norm_q, plain.to_out
        self.expansion = JoinedProduct(self._expansion(plain))

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
        # The whole product, of which the queries' part is dropped: a weight may be packed and have no rows.
        made = self.down(x)[..., : self.content + self.rotary]
        return self._entries(*made.split(self.widths, dim=-1))

    def forward(
        self, x: Tensor, cached: Tensor, window: AnyWindow, *, absorbed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See `LatentAttention.forward`.

        Raises:
            ValueError: if the absorbed form is asked for, which reads weights that were joined.
        """
        if absorbed:
            raise ValueError("fused attention has no absorbed form; use the plain model")
        content, rotary, latent = self._down(x)
        own = window.gathered(self._entries(content, rotary))
        query = self._queries(self.norm_q(latent), window)
        keys, values = self._keys_values(window.before(cached, own), own, window)
        parts = (self._as_read(part.transpose(1, 2), window) for part in (query, keys, values))
        out = self.attend(window, *parts)
        return self.to_out(out.transpose(1, 2).flatten(2)), own

    @property
    def widths(self) -> list[int]:
        """The widths C and R of an entry's content and rotary key."""
        return [self.content, self.rotary]

    def _down(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Content [B, S, C] and query latent [B, S, Q] before their norms, rotary key [B, S, R] between."""
        raise NotImplementedError

    def _queries(self, latent: Tensor, window: AnyWindow) -> Tensor:
        """[B, S, N, dn + R], the rotary part rotated, from the normalised query latent [B, S, Q]."""
        raise NotImplementedError

    def _entries(self, content: Tensor, rotary: Tensor) -> Tensor:
        """Content and rotary key side by side [B, S, E], the content normalised."""
        return torch.cat([self.norm_kv(content), rotary], dim=-1)

    def _as_read(self, part: Tensor, window: AnyWindow) -> Tensor:
        """Queries, keys or values [B, N, tokens, width] in memory as attention reads them."""
        # The masked kernel of a GPU reads contiguous memory only.
        as_it_is = part.device.type == "cpu" or getattr(window, "full", False)
        return part if as_it_is else part.contiguous()

    def _rotated(self, rotary: Tensor, window: AnyWindow) -> Tensor:
        """The rotary part of the queries [B, S, N, R], rotated to the places of the chunk's own tokens."""
        cos, sin = window.own(rotary.shape[1])
        return rotate(rotary, cos[:, None], sin[:, None])

    def _keys_values(self, cached: Tensor, own: Tensor, window: AnyWindow) -> tuple[Tensor, Tensor]:
        """Views [B, K, N, dn + R] and [B, K, N, dv] of one product with the entries of the whole window."""
        full = getattr(window, "full", False)
        entries = torch.cat([cached, own], dim=1) if full else window_entries(cached, own, window.valid)
        content, rotary = entries.split([entries.shape[-1] - self.rotary, self.rotary], dim=-1)
        rotated = torch.cat([content, rotate(rotary, window.cos, window.sin)], dim=-1)
        made = self.expansion(rotated)
        width = self.heads * (self.nope + self.rotary)
        keys, values = made.split([width, made.shape[-1] - width], dim=-1)
        return keys.unflatten(-1, (self.heads, -1)), values.unflatten(-1, (self.heads, -1))


class FusedLatentAttention(JoinedAttention):
    """Replaces the given `LatentAttention` by three products."""

    down: JoinedProduct
    """Weight [C + R + Q, D]: content, rotary key and query latent."""
    up_q: JoinedProduct
    """Weight [N * (dn + R), Q]: each head's unrotated part, then its rotary part."""

    def __init__(self, plain: LatentAttention) -> None:
        """See `JoinedAttention`."""
        super().__init__(plain)
        self.latent = plain.down_q.out_features
        self.down = _joined(plain.down_kv, plain.rotary_k, plain.down_q)
        halves = (self._by_head(layer.weight) for layer in (plain.up_q, plain.rotary_q))
        self.up_q = JoinedProduct(torch.cat([*halves], dim=1).flatten(0, 1))

    def _down(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        content, rotary, latent = self.down(x).split([*self.widths, self.latent], dim=-1)
        return content, rotary, latent

    def _queries(self, latent: Tensor, window: AnyWindow) -> Tensor:
        query = self.up_q(latent).unflatten(-1, (self.heads, -1))
        rotary = query[..., self.nope :]
        rotated = self._rotated(rotary, window)
        # In place where possible: concatenating would copy all of the query to change its rotary part.
        if torch.compiler.is_exporting():  # an exported graph changes nothing in place
            return torch.cat([query[..., : self.nope], rotated], dim=-1)
        rotary.copy_(rotated)
        return query


class QueriesApart(JoinedAttention):
    """Replaces the given `LatentAttention` by five products, two of them layers that may be quantised.

    fp8 is for `down_q` and `up_q`, and not for the layers that make cached entries or rotated queries
    (`export.lowering.exclusions`). A joined product has one precision, so these two stay on their own.
    """

    def __init__(self, plain: LatentAttention) -> None:
        """See `JoinedAttention`; the layers of the queries are shared with `plain` too."""
        super().__init__(plain)
        self.down = _joined(plain.down_kv, plain.rotary_k)
        self.down_q, self.up_q, self.rotary_q = plain.down_q, plain.up_q, plain.rotary_q

    def _down(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        content, rotary = self.down(x).split(self.widths, dim=-1)
        return content, rotary, self.down_q(x)

    def _queries(self, latent: Tensor, window: AnyWindow) -> Tensor:
        nope, rotary = (up(latent).unflatten(-1, (self.heads, -1)) for up in (self.up_q, self.rotary_q))
        return torch.cat([nope, self._rotated(rotary, window)], dim=-1)


def _joined(*layers: nn.Linear) -> JoinedProduct:
    return JoinedProduct(torch.cat([layer.weight.detach() for layer in layers]))


def fused(
    module: nn.Module,
    apart: Collection[str] = (),
    *,
    form: Callable[[LatentAttention], nn.Module] = FusedLatentAttention,
    name: str = "",
) -> nn.Module:
    """A shallow copy of `module`, sharing all else, whose latent attention has joined products.

    Args:
        module: a model, or a part of one.
        apart: names of layers that shall stay layers of their own, such as `blocks.1.attn1.up_q`. Only the
            layers `down_q` and `up_q` can; where one of them is named, both are left apart.
        form: makes the attention of those that have none of these; others than the usual one lay out its
            weights as they are joined, or are for measuring a part of it.
        name: of `module`, if it is a part.
    """

    def replace(named: str, part: nn.Module) -> nn.Module | None:
        if type(part) is not LatentAttention:  # a subclass may attend otherwise
            return None
        own = {f"{named}.{layer}".lstrip(".") for layer in ("down_q", "up_q")}
        return form(part) if own.isdisjoint(apart) else QueriesApart(part)

    return replaced(module, replace, name)


def attending(module: nn.Module, attend: Attend) -> nn.Module:
    """A shallow copy of `module`, sharing all else, whose joined latent attention attends by `attend`."""

    def replace(_: str, part: nn.Module) -> nn.Module | None:
        if not isinstance(part, JoinedAttention):
            return None
        other = copy.copy(part)
        other.attend = attend
        return other

    return replaced(module, replace)


def replaced(
    module: nn.Module, replace: Callable[[str, nn.Module], nn.Module | None], name: str = ""
) -> nn.Module:
    """A shallow copy of `module`, sharing all else, with other modules in the place of some of its parts.

    Args:
        module: called `name`; it is itself the first that may be replaced.
        replace: gives what takes the place of a part, by its full name and itself; None looks into the part.
    """
    if (made := replace(name, module)) is not None:
        return made
    shared = copy.copy(module)
    parts: dict[str, nn.Module | None] = {
        own: replaced(part, replace, f"{name}.{own}" if name else own)
        for own, part in module._modules.items()
        if part is not None
    }
    shared.__dict__["_modules"] = parts
    return shared
