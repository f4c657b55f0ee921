"""Sizes of a model, and the named ones: `debug`, `sprites`, `wan-1.3b`, `wan-14b`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from plugins.errors import UserError

Layout = Literal["mla", "mha"]

FRAMES_PER_SECOND = 16
"""Of every video, as in Wan2.1."""

WINDOWS = {"total-6": (1, 2), "sink-1-local-6": (1, 3), "sink-1-history-6": (1, 6)}
"""Sink and history frames under the three readings of the paper's "la6 sink1": six frames in all,
one sink and six with the current chunk among them, or one sink and six before the chunk."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a `VideoMLA` transformer. The paper's, where it has one, are those of `wan-1.3b`."""

    layout: Layout = "mla"
    width: int
    """D, the model width."""
    heads: int
    """N; a head is `width / heads` wide, for keys and for values."""
    layers: int
    ffn_width: int
    latent_channels: int = 16
    patch: int = 2
    """Latent cells to one token, in each direction of the picture."""
    frequency_width: int = 256
    """Sinusoids of the timestep embedding."""
    text_width: int = 4096
    text_tokens: int = 512
    content_width: int = 192
    """C, the shared latent that keys and values are made of."""
    rotary_width: int = 32
    """R, the shared rotary key."""
    query_width: int = 768
    """The query latent."""
    sink: int = 1
    history: int = 6
    chunk: int = 3
    """Latent frames: kept for ever, in the ring, denoised together."""
    height: int = 60
    image_width: int = 104
    """A latent frame, in latent cells."""
    eps: float = 1e-6
    position_table: bool = False
    """Add a learned vector to each place of the picture. Attention is relative alone: it cannot tell where
    the picture ends, while walls, centres of orbits and places of things are absolute. Wan has none."""
    first_chunk: int = 0
    """Latent frames of a video's first chunk, at most `chunk`; 0 is as many as the others have.
    Self-Forcing's `independent_first_frame` is 1."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise UserError(f"no such layout: {self.layout}; use mla or mha")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("sink", "history", "first_chunk") else 1
            if field.type == "int" and (type(value) is not int or value < least):
                raise UserError(f"{field.name} is {value!r}; it is a whole number, {least} or more")
            if field.type == "bool" and type(value) is not bool:
                raise UserError(f"{field.name} is {value!r}; it is true or false")
        if self.first_chunk > self.chunk:
            raise UserError(f"first_chunk is {self.first_chunk}; it is at most chunk, which is {self.chunk}")
        if self.width % self.heads or self.head_width <= self.rotary_width:
            raise UserError(
                f"width {self.width} and {self.heads} heads leave no room "
                f"for rotary width {self.rotary_width}"
            )
        if self.height % self.patch or self.image_width % self.patch:
            cells = f"{self.height} x {self.image_width}"
            raise UserError(f"a latent frame of {cells} does not divide into patches of {self.patch}")

    @property
    def head_width(self) -> int:
        """Channels of a head: 128 in Wan."""
        return self.width // self.heads

    @property
    def nope_width(self) -> int:
        """Channels of a head's key that are not rotated: 96 in the paper."""
        return self.head_width - self.rotary_width

    @property
    def entry_width(self) -> int:
        """E, the numbers cached per token and layer: 224 in the paper, 3,072 for `mha`."""
        return self.content_width + self.rotary_width if self.layout == "mla" else 2 * self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a latent frame, down and across."""
        return self.height // self.patch, self.image_width // self.patch

    @property
    def tokens_per_frame(self) -> int:
        """P."""
        return self.grid[0] * self.grid[1]

    def identity(self) -> dict[str, Any]:
        """What tells models apart. A position table is younger than the hashes that are made of it."""
        settings = self.to_dict()
        if not self.position_table:
            del settings["position_table"]
        return settings

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `first_chunk`, which is younger than most such files, only where it is set."""
        settings = asdict(self)
        if not self.first_chunk:
            del settings["first_chunk"]
        return settings

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """A configuration from JSON values.

        Raises:
            UserError: for a key that does not exist or one that is missing.
        """
        known = {field.name for field in fields(cls)}
        if extra := sorted(values.keys() - known):
            raise UserError(f"unknown model setting: {extra[0]}; known are {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"model settings are incomplete: {error}") from error


RECIPES: dict[str, ModelConfig] = {
    "debug": ModelConfig(
        width=64, heads=2, layers=2, ffn_width=128, latent_channels=4, frequency_width=32,
        text_width=32, text_tokens=96, content_width=16, rotary_width=8, query_width=32,
        history=3, height=8, image_width=8,
    ),
    # The paper's proportions (C = D / 8, R = a quarter of a head, half of D for queries) at D = 256.
    "sprites": ModelConfig(
        width=256, heads=4, layers=6, ffn_width=1024, text_width=128,
        text_tokens=24, content_width=32, rotary_width=16, query_width=128, height=8, image_width=8,
        latent_channels=8, position_table=True,
    ),
    "wan-1.3b": ModelConfig(width=1536, heads=12, layers=30, ffn_width=8960),
    # The paper trains 1.3B only: 14B keeps its content and rotary widths, and half of D for queries.
    "wan-14b": ModelConfig(width=5120, heads=40, layers=40, ffn_width=13824, query_width=2560),
}  # fmt: skip


def recipe(name: str, *, layout: Layout = "mla", window: str | None = None) -> ModelConfig:
    """The named configuration, with another layout or window reading if asked for.

    Raises:
        UserError: for a name that does not exist.
    """
    if name not in RECIPES:
        raise UserError(f"no such recipe: {name}; there are {', '.join(RECIPES)}")
    config = replace(RECIPES[name], layout=layout)
    if window is None:
        return config
    if window not in WINDOWS:
        raise UserError(f"no such window: {window}; there are {', '.join(WINDOWS)}")
    sink, history = WINDOWS[window]
    return replace(config, sink=sink, history=history)
