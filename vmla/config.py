"""Sizes of a model, and the named ones: `debug`, `sprites`, `wan-1.3b`, `wan-14b`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from plugins.documents.typed import typed
from plugins.errors import UserError
from vmla.cli.options.names import unknown_name

Layout = Literal["mla", "mha"]

FRAMES_PER_SECOND = 16
"""Frame rate of every video, that of Wan2.1."""

WINDOWS = {"total-6": (1, 2), "sink-1-local-6": (1, 3), "sink-1-history-6": (1, 6)}
"""Sink and history frames under the three readings of the paper's "la6 sink1": six frames in all,
one sink and six with the current chunk among them, or one sink and six before the chunk."""


YOUNGER = ("first_chunk", "absolute_positions")
"""Settings newer than most files: a file without them means 0, and where they are 0 they are not written."""
WIDEST, MOST = 2**16, 2**12
"""Upper bounds of sizes, far above any real model: of widths and text tokens, and of everything else. They
keep a damaged file from asking for terabytes."""
LONGEST = 2**20
"""Upper bound of `absolute_positions`, in latent frames: three days of video."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a `VideoMLA` transformer. The paper's, where it has one, are those of `wan-1.3b`."""

    layout: Layout = "mla"
    num_attention_heads: int
    """N, the number of attention heads."""
    attention_head_dim: int
    """Channels of a head, for keys and for values: 128 in Wan."""
    num_layers: int
    """L, the number of transformer blocks."""
    ffn_dim: int
    in_channels: int = 16
    """z, channels of the latents and of the predicted velocity alike."""
    patch_size: int = 2
    """Side of the square of latent cells that becomes one token."""
    freq_dim: int = 256
    """Width of the sinusoidal timestep embedding, half cosines and half sines."""
    text_dim: int = 4096
    text_tokens: int = 512
    """Tokens of every prompt: shorter ones are padded with zeros, which Wan's cross-attention attends to."""
    kv_lora_rank: int = 192
    """C, the width of the shared latent that keys and values are made of."""
    qk_rope_head_dim: int = 32
    """R, the width of the shared rotary key and of each head's rotary query."""
    q_lora_rank: int = 768
    """The width of the query latent."""
    sink: int = 1
    """Latent frames at the start of the video that stay in the cache for ever."""
    history: int = 6
    """Latent frames in the cache's ring, which the oldest leaves first."""
    chunk: int = 3
    """Latent frames that are denoised together."""
    sample_height: int = 60
    sample_width: int = 104
    """Height and width of a latent frame in cells: 60 x 104 is 480 x 832 pixels by Wan2.1's codec."""
    eps: float = 1e-6
    position_table: bool = False
    """Add a learned vector to each place of the picture. Rotary attention only sees distances, and so cannot
    tell where the picture ends, while walls, centres of orbits and places of objects are absolute. Wan has
    none."""
    first_chunk: int = 0
    """Latent frames of a video's first chunk, at most `chunk`; 0 means as many as the others have.
    1 is Self-Forcing's `independent_first_frame`."""
    absolute_positions: int = 0
    """Length in latent frames that was trained with positions counted from the start of the video, and that
    no video may exceed. 0 means positions relative to the window, which suit any length."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise UserError(f"no such layout: {self.layout}; use mla or mha")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in YOUNGER or field.name in ("sink", "history") else 1
            most = WIDEST if field.name.endswith(("dim", "rank", "tokens")) else MOST
            if field.name == "absolute_positions":
                most = LONGEST
            if field.type == "int" and (type(value) is not int or not least <= value <= most):
                said = f"it is a whole number, {least} or more and at most {most}"
                raise UserError(f"{field.name} is {value!r}; {said}")
            if field.type == "bool" and type(value) is not bool:
                raise UserError(f"{field.name} is {value!r}; it is true or false")
        if type(self.eps) is not float or not 0 < self.eps < 1:
            raise UserError(f"eps is {self.eps!r}; it is a number between 0 and 1")
        if self.inner_dim > WIDEST:
            raise UserError(f"num_attention_heads makes a width of {self.inner_dim}; it is at most {WIDEST}")
        if self.first_chunk > self.chunk:
            raise UserError(f"first_chunk is {self.first_chunk}; it is at most chunk, which is {self.chunk}")
        if self.qk_rope_head_dim % 2:
            raise UserError(f"qk_rope_head_dim is {self.qk_rope_head_dim}; it is even: pairs of it rotate")
        if self.attention_head_dim <= self.qk_rope_head_dim:
            raise UserError(
                f"attention_head_dim {self.attention_head_dim} leaves no room "
                f"for qk_rope_head_dim {self.qk_rope_head_dim}"
            )
        if self.sample_height % self.patch_size or self.sample_width % self.patch_size:
            cells = f"{self.sample_height} x {self.sample_width}"
            raise UserError(f"a latent frame of {cells} does not divide into patches of {self.patch_size}")

    @property
    def inner_dim(self) -> int:
        """D, the width of the model: all heads side by side."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def qk_nope_head_dim(self) -> int:
        """Channels of a head's key that are not rotated: 96 in the paper."""
        return self.attention_head_dim - self.qk_rope_head_dim

    @property
    def entry_width(self) -> int:
        """E, the numbers cached per token and layer: 224 in the paper, 3,072 for `mha`."""
        return self.kv_lora_rank + self.qk_rope_head_dim if self.layout == "mla" else 2 * self.inner_dim

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a latent frame, down and across."""
        return self.sample_height // self.patch_size, self.sample_width // self.patch_size

    @property
    def tokens_per_frame(self) -> int:
        """P, the tokens of one latent frame: a token is a square of `patch_size` by `patch_size` cells."""
        return self.grid[0] * self.grid[1]

    def identity(self) -> dict[str, Any]:
        """The settings that go into a model's hash, under the former names, so that old hashes stay valid.

        `position_table` is newer than the first hashes, and left out where it is not set.
        """
        settings = self.to_dict()
        if not self.position_table:
            del settings["position_table"]
        width = {"width": self.inner_dim}
        del settings["attention_head_dim"]
        return width | {FORMER_NAMES.get(name, name): value for name, value in settings.items()}

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; those of `YOUNGER` only where they are set."""
        return {name: value for name, value in asdict(self).items() if value or name not in YOUNGER}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "model settings") -> ModelConfig:
        """A configuration from JSON values, under the current names or the former ones.

        Args:
            values: as in a file.
            where: the name of the values' source in errors, such as the file's name.

        Raises:
            UserError: for a setting that does not exist, is missing, or has the wrong type.
        """
        return typed(current_names(values, where), cls, where)


FORMER_NAMES = {
    "num_attention_heads": "heads", "num_layers": "layers", "ffn_dim": "ffn_width",
    "in_channels": "latent_channels", "patch_size": "patch", "freq_dim": "frequency_width",
    "text_dim": "text_width", "kv_lora_rank": "content_width", "qk_rope_head_dim": "rotary_width",
    "q_lora_rank": "query_width", "sample_height": "height", "sample_width": "image_width",
}  # fmt: skip
"""The settings' names before those of diffusers and DeepSeek; files with them are still read."""


def current_names(values: Mapping[str, Any], where: str = "model settings") -> dict[str, Any]:
    """Model settings under the current names: those of former files are renamed, others left as they are.

    Raises:
        UserError: for a former width that its heads do not divide.
    """
    now = {former: name for name, former in FORMER_NAMES.items()}
    settings = {now.get(name, name): value for name, value in values.items() if name != "width"}
    if (width := values.get("width")) is not None:
        settings["attention_head_dim"] = _head_dim(width, settings.get("num_attention_heads"), where)
    return settings


def _head_dim(width: Any, heads: Any, where: str) -> int:
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise UserError(f"{where}: width {width!r} is not a whole number of heads ({heads!r}) wide")
    return width // heads


MODEL_CONFIGS: dict[str, ModelConfig] = {
    "debug": ModelConfig(
        num_attention_heads=2, attention_head_dim=32, num_layers=2, ffn_dim=128, in_channels=4, freq_dim=32,
        text_dim=32, text_tokens=96, kv_lora_rank=16, qk_rope_head_dim=8, q_lora_rank=32,
        history=3, sample_height=8, sample_width=8,
    ),
    # The paper's proportions (C = D / 8, R = a quarter of a head, half of D for queries) at D = 256.
    "sprites": ModelConfig(
        num_attention_heads=4, attention_head_dim=64, num_layers=6, ffn_dim=1024, text_dim=128,
        text_tokens=24, kv_lora_rank=32, qk_rope_head_dim=16, q_lora_rank=128, sample_height=8,
        sample_width=8, in_channels=8, position_table=True,
    ),
    "wan-1.3b": ModelConfig(num_attention_heads=12, attention_head_dim=128, num_layers=30, ffn_dim=8960),
    # The paper trains 1.3B only: 14B keeps its content and rotary widths, and half of D for queries.
    "wan-14b": ModelConfig(
        num_attention_heads=40, attention_head_dim=128, num_layers=40, ffn_dim=13824, q_lora_rank=2560
    ),
}  # fmt: skip


def named_config(name: str, *, layout: Layout = "mla", window: str | None = None) -> ModelConfig:
    """The sizes of the model called `name`, with another layout or window if asked for.

    Raises:
        UserError: for a name that does not exist.
    """
    if name not in MODEL_CONFIGS:
        raise unknown_name("model", name, MODEL_CONFIGS)
    config = replace(MODEL_CONFIGS[name], layout=layout)
    if window is None:
        return config
    if window not in WINDOWS:
        raise unknown_name("window", window, WINDOWS)
    sink, history = WINDOWS[window]
    return replace(config, sink=sink, history=history)
