"""Operations and bytes of one pass by part, from the model's own shapes; nothing is run.

Two operations for each multiplication of a matrix product. Bytes are the least that any engine moves: each
product reads its weights and its inputs once and writes its result once, and everything element-wise is fused
into a product's epilogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from vmla.cache import CacheSpec
from vmla.config import ModelConfig

Form = Literal["expanded", "absorbed", "once"]
"""How `mla` attends: keys and values made in every pass, attention in latent space, or the cached tokens
expanded once for all passes of a chunk. `mha` has one form, and ignores it."""
FORMS = get_args(Form)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a pass, all layers together."""

    name: str
    flops: float
    numbers: float
    """Numbers read and written; times the size of a number, the bytes moved."""

    def bytes(self, size: int) -> float:
        """Bytes that the part moves when a number takes `size` bytes."""
        return self.numbers * size


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """The cost of a pass of `config` over `batch` videos; its window has `keys` tokens, its own included."""

    config: ModelConfig
    form: Form = "expanded"
    batch: int = 1
    passes: int = 5
    """Passes of a chunk, over which the form `once` spreads the cost of the expansion."""
    keys: int | None = None
    """Tokens that a pass attends to; those of the model's full window if None."""
    seen: float = 1.0
    """Share of the pairs of a query and a key that a mask does not hide."""

    @property
    def queries(self) -> int:
        """S, the number of the chunk's tokens."""
        return self.config.chunk * self.config.tokens_per_frame

    @property
    def window(self) -> int:
        """Tokens that a pass attends to."""
        if self.keys is not None:
            return self.keys
        return CacheSpec.of(self.config).positions * self.config.tokens_per_frame

    def parts(self) -> list[Part]:
        """Every part, the layers' first."""
        layers = (self._projections(), *self._expansion(), self._attention(), *self._text(), self._ffn())
        scale = self.config.num_layers
        repeated = [Part(name=p.name, flops=scale * p.flops, numbers=scale * p.numbers) for p in layers]
        return [*repeated, self._edges()]

    def layer_flops(self) -> float:
        """Operations of all parts of one layer, which tables of attention forms compare."""
        return sum(part.flops for part in self.parts()[:-1]) / self.config.num_layers

    @property
    def flops(self) -> float:
        """Operations of the whole pass."""
        return sum(part.flops for part in self.parts())

    def bytes(self, size: int) -> float:
        """Bytes that the pass moves when a number takes `size` bytes."""
        return sum(part.bytes(size) for part in self.parts())

    def _product(self, name: str, rows: int, *shapes: tuple[int, int]) -> Part:
        """Products of `rows` rows for each video with matrices of `shapes` (inputs, outputs)."""
        n = self.batch * rows
        flops = sum(2 * n * i * o for i, o in shapes)  # a multiplication and an addition each
        return Part(name=name, flops=flops, numbers=sum(i * o + n * (i + o) for i, o in shapes))

    def _projections(self) -> Part:
        """Queries, entries and output of self-attention."""
        c, width = self.config, self.config.inner_dim
        if c.layout == "mha":
            return self._product("projections", self.queries, *[(width, width)] * 4)
        down = (width, c.q_lora_rank), (width, c.kv_lora_rank + c.qk_rope_head_dim)
        up = (c.q_lora_rank, c.num_attention_heads * c.attention_head_dim)
        part = self._product("projections", self.queries, *down, up, (width, width))
        if self.form != "absorbed":
            return part
        heads = [
            self._product("", self.queries, shape) for shape in self._head_products()
        ] * c.num_attention_heads
        flops, numbers = (sum(getattr(one, what) for one in heads) for what in ("flops", "numbers"))
        return Part(name=part.name, flops=part.flops + flops, numbers=part.numbers + numbers)

    def _head_products(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """A head's queries down to the latent, and its sums of latents up to values."""
        return (self.config.qk_nope_head_dim, self.config.kv_lora_rank), \
            (self.config.kv_lora_rank, self.config.attention_head_dim)  # fmt: skip

    def _expansion(self) -> Iterator[Part]:
        """The window's latents to keys and values of each head."""
        c = self.config
        if c.layout == "mha" or self.form == "absorbed":
            return
        whole = self._product(
            "expansion",
            self.window,
            (c.kv_lora_rank, c.num_attention_heads * (c.qk_nope_head_dim + c.attention_head_dim)),
        )
        # The chunk's own entries change with every pass; the window's before it are expanded once a chunk.
        own = self.queries / self.window
        share = own + (1 - own) / self.passes if self.form == "once" else 1.0
        yield Part(name=whole.name, flops=share * whole.flops, numbers=share * whole.numbers)

    def _attention(self) -> Part:
        """Scores and sums: for each query, key and head, two operations per channel of key and of value."""
        c, pairs = self.config, self.batch * self.queries * self.window
        if c.layout == "mla" and self.form == "absorbed":
            key, value, kept = c.entry_width, c.kv_lora_rank, c.entry_width
        else:
            key, value, kept = c.attention_head_dim, c.attention_head_dim, 2 * c.inner_dim
        read = self.batch * (self.queries * c.num_attention_heads * (key + value) + self.window * kept)
        flops = 2 * c.num_attention_heads * pairs * (key + value) * self.seen
        return Part(name="attention", flops=flops, numbers=read)

    def _text(self) -> Iterator[Part]:
        """Cross-attention; its keys and values are made once per prompt and only read here."""
        c = self.config
        yield self._product("text projections", self.queries, *[(c.inner_dim, c.inner_dim)] * 2)
        # Two for the scores and two for the sums, per channel of all heads together.
        flops = 4 * self.batch * self.queries * c.text_tokens * c.inner_dim
        yield Part(
            name="text attention",
            flops=flops,
            numbers=self.batch * 2 * c.inner_dim * (self.queries + c.text_tokens),
        )

    def _ffn(self) -> Part:
        c = self.config
        return self._product("feed-forward", self.queries, (c.inner_dim, c.ffn_dim), (c.ffn_dim, c.inner_dim))

    def _edges(self) -> Part:
        """Patches in and out, and the timestep of each latent frame to the modulation of every layer."""
        c = self.config
        cells = c.in_channels * c.patch_size**2
        patches = self._product("", self.queries, (cells, c.inner_dim), (c.inner_dim, cells))
        time = self._product(
            "", c.chunk, (c.freq_dim, c.inner_dim), (c.inner_dim, c.inner_dim), (c.inner_dim, 6 * c.inner_dim)
        )
        flops, numbers = patches.flops + time.flops, patches.numbers + time.numbers
        return Part(name="patches and time", flops=flops, numbers=numbers)


def text_flops(config: ModelConfig, batch: int) -> float:
    """Operations of `VideoMLA.encode_text`, once per prompt: embedder, and each layer's keys and values."""
    outputs = config.text_dim + config.inner_dim * (1 + 2 * config.num_layers)
    return 2.0 * batch * config.text_tokens * config.inner_dim * outputs
