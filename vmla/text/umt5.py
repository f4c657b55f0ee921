"""UMT5's encoder (arXiv 2304.09151), with which Wan reads prompts, under transformers' names.

Equal to transformers' `UMT5EncoderModel`, whose import takes longer than the small model's first frame:
the same files, the same order of operations, the same draws for fresh weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.documents.typed import Between, typed
from plugins.errors import UserError

KIND = {"model_type": "umt5", "feed_forward_proj": "gated-gelu"}
"""Entries that a `config.json` must have for this encoder to read it."""


@dataclass(frozen=True, kw_only=True)
class UMT5Config:
    """Sizes, under their names in `config.json`."""

    vocab_size: Annotated[int, Between(1, 2**20)]
    d_model: Annotated[int, Between(1, 2**16)]
    d_kv: Annotated[int, Between(1, 2**16)]
    d_ff: Annotated[int, Between(1, 2**20)]
    num_layers: Annotated[int, Between(1, 2**10)]
    num_heads: Annotated[int, Between(1, 2**12)]
    relative_attention_num_buckets: Annotated[int, Between(2, 2**12)] = 32
    relative_attention_max_distance: Annotated[int, Between(2, 2**20)] = 128
    layer_norm_epsilon: Annotated[float, Between(0, 1)] = 1e-6

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the text encoder's config.json") -> Self:
        """The configuration in a `config.json`, whose other settings concern training alone.

        `where` is the file's name in errors.

        Raises:
            UserError: if it is another model's, or lacks a size.
        """
        for name, usual in KIND.items():
            if (said := values.get(name, usual)) != usual:
                raise UserError(f"{where} says {name} {said}; known is {usual}")
        return typed(dict(values), cls, where, others="ignore")

    def to_dict(self) -> dict[str, Any]:
        """The content of its `config.json`; the dropout is only used if transformers trains it."""
        return {**KIND, "architectures": ["UMT5EncoderModel"], "dropout_rate": 0.0, **asdict(self)}


class UMT5Encoder(nn.Module):
    """UMT5's encoder: embedding, layers and last norm, without the decoder that Wan does not use."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = _Stack(config)
        self.encoder.apply(_draw)
        _draw(self.shared)
        nn.init.normal_(self.shared.weight)
        self.tie()

    def tie(self) -> None:
        """Make the embedding's two names, `shared` and `encoder.embed_tokens`, one matrix."""
        self.encoder.embed_tokens.weight = self.shared.weight

    def forward(self, numbers: Tensor, mask: Tensor) -> Tensor:
        """Token numbers and mask, each [B, tokens] int64, to [B, tokens, d_model]."""
        return self.encoder(numbers, mask[:, None, None].bool())


class _Stack(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.block = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.final_layer_norm = _Norm(config)

    def forward(self, numbers: Tensor, seen: Tensor) -> Tensor:
        """Token ids [B, tokens] and their mask [B, 1, 1, tokens] bool, to [B, tokens, d_model]."""
        x = self.embed_tokens(numbers)
        for block in self.block:
            x = block(x, seen)
        return self.final_layer_norm(x)


class _Block(nn.Module):
    """One layer: x += attention(norm(x)); x += feed-forward(norm(x))."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Attend(config), _Feed(config)])

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Pass [B, tokens, d_model] through this layer, under the mask of `_Stack.forward`."""
        return self.layer[1](self.layer[0](x, seen))


class _Attend(nn.Module):
    """The first half of a layer."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.SelfAttention = _Attention(config)
        self.layer_norm = _Norm(config)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x [B, tokens, d_model] plus the output of self-attention."""
        return x + self.SelfAttention(self.layer_norm(x), seen)


class _Feed(nn.Module):
    """The second half of a layer."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.DenseReluDense = _GatedGelu(config)
        self.layer_norm = _Norm(config)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, tokens, d_model] plus the output of the feed-forward layer."""
        return x + self.DenseReluDense(self.layer_norm(x))


class _Norm(nn.Module):
    """T5's norm: root mean square, taken in float32 at least."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self._eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to the same."""
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        normed = x * torch.rsqrt(variance + self._eps)
        return self.weight * normed.to(self.weight.dtype)


class _GatedGelu(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, tokens, d_model] to the same."""
        return self.wo(_gelu(self.wi_0(x)) * self.wi_1(x))

    def draw(self) -> None:
        """Fresh weights."""
        for linear in (self.wi_0, self.wi_1, self.wo):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)


def _gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, spelt out: PyTorch's own rounds differently, and so changes videos."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class _Attention(nn.Module):
    """Self-attention with a bias that is learned for each distance; scores are not scaled."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self._width = config.d_kv
        self._farthest = config.relative_attention_max_distance
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x [B, tokens, d_model] attends to itself where `seen` [B, 1, 1, tokens] says so."""
        query, key, value = (
            part(x).unflatten(-1, (-1, self._width)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        least = torch.finfo(key.dtype).min  # not -inf: a row in which everything is masked would become NaN
        bias = torch.where(seen, self._bias(x.shape[1], x.device), least).contiguous()
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))

    def _bias(self, tokens: int, device: torch.device) -> Tensor:
        """[1, heads, tokens, tokens], from the distances of keys to queries."""
        places = torch.arange(tokens, device=device)
        learned = self.relative_attention_bias
        found = bucket(places[None] - places[:, None], learned.num_embeddings, self._farthest)
        return learned(found).permute(2, 0, 1)[None]

    def draw(self) -> None:
        """Fresh weights: those of queries make up for scores that are not scaled."""
        width = self.q.in_features
        nn.init.normal_(self.q.weight, std=(width * self._width) ** -0.5)
        nn.init.normal_(self.k.weight, std=width**-0.5)
        nn.init.normal_(self.v.weight, std=width**-0.5)
        nn.init.normal_(self.o.weight, std=self.o.in_features**-0.5)
        nn.init.normal_(self.relative_attention_bias.weight, std=width**-0.5)


def bucket(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    """Which of `buckets` each distance (int64, of a key from its query) has its bias in.

    Half are for keys ahead. Of each half, the first half holds one distance each, the others ever more,
    up to the `farthest`, beyond which all share the last.
    """
    half = buckets // 2
    exact = half // 2
    ahead = (distance > 0).long() * half
    distance = distance.abs()
    ratio = torch.log(distance.float() / exact) / math.log(farthest / exact) * (half - exact)
    far = (exact + ratio.long()).clamp(max=half - 1)
    return ahead + torch.where(distance < exact, distance, far)


def _draw(module: nn.Module) -> None:
    """Fresh weights, drawn as transformers draws them: each plain layer once for nothing."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight)
    elif isinstance(module, _Attention | _GatedGelu):
        module.draw()
