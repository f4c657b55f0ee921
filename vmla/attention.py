"""Self-attention over the window, in two layouts: VideoMLA's shared latent and Wan's own per head.

Both have the same interface: `forward(x, cached, window)` returns the output and the chunk's entries. Entries
are cached unrotated and rotated when they are read, because their window-relative positions change.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from plugins import dense_attention, expand, mla_attention, mla_attention_absorbed
from vmla.config import ModelConfig
from vmla.packed_sequence import PackedWindow
from vmla.rope import rotate


class Window(NamedTuple):
    """The window of a pass, which all layers share: T cached tokens and S of the chunk."""

    valid: Tensor | None
    """[T + S] bool; None where the host knows that all are valid, so that no mask is needed."""
    cos: Tensor
    sin: Tensor
    """[T + S, pairs]: rotations of cached and own tokens; the last S are those of the queries."""

    @property
    def full(self) -> bool:
        """Whether the host knows that all tokens are valid."""
        return self.valid is None

    def own(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the chunk's own `tokens`."""
        return self.cos[-tokens:], self.sin[-tokens:]

    def gathered(self, own: Tensor) -> Tensor:
        """All entries of the chunk, given those computed here: the same, unless processes share the chunk."""
        return own

    def before(self, cached: Tensor, own: Tensor) -> Tensor:
        """The entries that come before those of the chunk itself."""
        return cached

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [B, N, S, d] to keys and values [B, N, T + S, ...]: [B, N, S, dv]."""
        if self.valid is None:
            return dense_attention(query, keys, values)
        return mla_attention(query, keys, values, self.valid)


AnyWindow = Window | PackedWindow


class LatentAttention(nn.Module):
    """Multi-head latent attention with a decoupled rotary key (arXiv 2605.30351, section 3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads, nope = config.inner_dim, config.num_attention_heads, config.qk_nope_head_dim
        content, rotary, latent = config.kv_lora_rank, config.qk_rope_head_dim, config.q_lora_rank
        self.heads = heads
        self.down_kv = nn.Linear(width, content, bias=False)
        # Norms of the latents, as in DeepSeek-V2, in place of Wan's norms of queries and keys.
        self.norm_kv = nn.RMSNorm(content, eps=config.eps)
        self.up_k = nn.Linear(content, heads * nope, bias=False)
        self.up_v = nn.Linear(content, width, bias=False)
        self.rotary_k = nn.Linear(width, rotary, bias=False)
        self.down_q = nn.Linear(width, latent, bias=False)
        self.norm_q = nn.RMSNorm(latent, eps=config.eps)
        self.up_q = nn.Linear(latent, heads * nope, bias=False)
        self.rotary_q = nn.Linear(latent, heads * rotary, bias=False)
        self.to_out = nn.Linear(width, width)

    def entries(self, x: Tensor) -> Tensor:
        """Cache entries of x [B, S, D]: [B, S, E] = (norm(W_dKV x), W_rK x)."""
        return torch.cat([self.norm_kv(self.down_kv(x)), self.rotary_k(x)], dim=-1)

    def queries(self, x: Tensor, window: AnyWindow) -> tuple[Tensor, Tensor]:
        """q_nope [B, N, S, dn] and rotated q_R [B, N, S, R] from the normalised query latent."""
        latent = self.norm_q(self.down_q(x))
        nope = self.up_q(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        rotary = self.rotary_q(latent).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return nope, rotate(rotary, *window.own(x.shape[1]))

    def forward(
        self, x: Tensor, cached: Tensor, window: AnyWindow, *, absorbed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x [B, S, D] attends to cached [B, T, E] and to itself.

        Returns:
            The output [B, S, D] and the chunk's entries [B, S, E].
        """
        own = window.gathered(self.entries(x))
        attend = self._absorbed if absorbed else self._expanded
        out = attend(*self.queries(x, window), window.before(cached, own), own, window)
        return self.to_out(out.transpose(1, 2).flatten(2)), own

    def _expanded(
        self, nope: Tensor, rotary: Tensor, cached: Tensor, own: Tensor, window: AnyWindow
    ) -> Tensor:
        """Keys and values of each head are made for this layer only, then attended to: [B, N, S, dv]."""
        up_k, up_v = self.up_k.weight, self.up_v.weight
        keys, values = expand(cached, own, up_k, up_v, window.cos, window.sin, window.valid, self.heads)
        return window.attend(torch.cat([nope, rotary], dim=-1), keys, values)

    def _absorbed(
        self, nope: Tensor, rotary: Tensor, cached: Tensor, own: Tensor, window: AnyWindow
    ) -> Tensor:
        """Queries go down to the latent instead, and the sums of latents up to values: [B, N, S, dv]."""
        up_k = self.up_k.weight.unflatten(0, (self.heads, -1))  # [N, dn, C]
        up_v = self.up_v.weight.unflatten(0, (self.heads, -1))  # [N, dv, C]
        query = torch.cat([nope @ up_k, rotary], dim=-1)
        assert window.valid is not None  # `VideoMLA.forward` leaves it out in the expanded form alone
        # The scale of the expanded form, 1 / sqrt(dn + R), although the products here are C + R wide.
        scale = (nope.shape[-1] + rotary.shape[-1]) ** -0.5
        sums = mla_attention_absorbed(query, cached, own, window.cos, window.sin, window.valid, scale)
        return sums @ up_v.transpose(1, 2)


class HeadAttention(nn.Module):
    """Wan's own self-attention: a key and a value for each head, normalised over the full width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.inner_dim
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width, eps=config.eps)
        self.norm_k = nn.RMSNorm(width, eps=config.eps)
        self.to_out = nn.Linear(width, width)

    def entries(self, x: Tensor) -> Tensor:
        """Cache entries of x [B, S, D]: [B, S, 2 D] = (norm(W_K x), W_V x)."""
        return torch.cat([self.norm_k(self.to_k(x)), self.to_v(x)], dim=-1)

    def forward(
        self, x: Tensor, cached: Tensor, window: AnyWindow, *, absorbed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Attend as `LatentAttention.forward` does, with entries of E = 2 D numbers.

        Raises:
            ValueError: if the absorbed form is asked for, which per-head keys do not have.
        """
        if absorbed:
            raise ValueError("the mha layout has no absorbed form")
        own = window.gathered(self.entries(x))
        keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in torch.cat([window.before(cached, own), own], dim=1).chunk(2, dim=-1)
        )
        query = self.norm_q(self.to_q(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query = rotate(query, *window.own(x.shape[1]))
        out = window.attend(query, rotate(keys, window.cos, window.sin), values)
        return self.to_out(out.transpose(1, 2).flatten(2)), own


class TextAttention(nn.Module):
    """Wan's cross-attention: no positions, padding attended as Wan does, keys made once per prompt."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.inner_dim
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width, eps=config.eps)
        self.norm_k = nn.RMSNorm(width, eps=config.eps)
        self.to_out = nn.Linear(width, width)

    def keys_values(self, text: Tensor) -> Tensor:
        """text [B, tokens, D] to keys and values [2, B, tokens, D]."""
        return torch.stack([self.norm_k(self.to_k(text)), self.to_v(text)])

    def forward(self, x: Tensor, text_kv: Tensor) -> Tensor:
        """x [B, S, D] attends to text_kv [2, B, tokens, D]: [B, S, D]."""
        query, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.norm_q(self.to_q(x)), text_kv[0], text_kv[1])
        )
        out = dense_attention(query, keys, values)
        return self.to_out(out.transpose(1, 2).flatten(2))
