"""Settings of a build, and the choice of a backend where none is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from export.backends.base import Backend, BuildOptions
from export.backends.registry import BACKENDS, backend_named
from export.engine.manifest import Attention
from export.engine.target import gpu_architecture
from export.lowering.precision import (
    QUANTIZED,
    Precision,
    base_of,
    check_precision,
    narrow_between_blocks,
)
from plugins.errors import UserError
from plugins.triton.tiles import Size

MOST_VIDEOS = 4_096
"""The most videos that an engine may make at once: memory ends long before."""


@dataclass(frozen=True, kw_only=True)
class Settings(BuildOptions):
    """Options of one engine, checked against what its backend can build."""

    backend: str

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if not 1 <= self.batch <= MOST_VIDEOS:
            raise UserError(f"batch is {self.batch}; it is a whole number from 1 to {MOST_VIDEOS:,}")
        takes = backend_named(self.backend).takes
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"no such device: {self.device}; use cpu or cuda")
        if self.device == "cuda" and "device" not in takes:
            raise UserError(f"backend {self.backend} takes no device; leave --device out")
        if self.target is None and "target" in takes:
            raise UserError(f"backend {self.backend} needs the GPU that it builds for: --target sm_89")
        if self.target is not None and "target" not in takes:
            takers = " or ".join(name for name, backend in BACKENDS.items() if "target" in backend.takes)
            raise UserError(f"a target goes with backend {takers} alone; leave --target out")
        if self.attention not in (None, *get_args(Attention)):
            raise UserError(f"no such attention: {self.attention}; use native, plugin or fp8")
        if self.attention is not None and self.attention not in self.builder.attentions:
            raise UserError(f"backend {self.backend} takes no --attention {self.attention}; leave it out")
        if self.attention == "fp8" and not self.quantized:
            raise UserError("attention in fp8 needs a precision with scales; use --precision fp8 with it")
        if self.tile not in (None, *get_args(Size)):
            raise UserError(f"no such tile: {self.tile}; use compact or fast")
        if self.tile is not None and ("tile" not in takes or self.attention != "plugin"):
            takers = " or ".join(name for name, backend in BACKENDS.items() if "tile" in backend.takes)
            raise UserError(f"a tile goes with --backend {takers} --attention plugin alone; leave --tile out")
        if self.regional and "regional" not in takes:
            raise UserError(f"backend {self.backend} compiles whole programs; leave --regional out")
        self.builder.check(self)

    @property
    def builder(self) -> Backend:
        """The backend that builds the engine."""
        return backend_named(self.backend)

    @property
    def base(self) -> Precision:
        """The precision of layers that are not quantised."""
        return base_of(self.precision, gpu=self.builder.device(self) == "cuda")

    @property
    def between_blocks(self) -> bool:
        """Whether the residual stream has that precision too from one block to the next."""
        return narrow_between_blocks(self.base, gpu=self.builder.device(self) == "cuda")

    @property
    def quantized(self) -> bool:
        """Whether the precision is one with scales, so that a calibration is needed."""
        return self.precision in QUANTIZED

    @property
    def attention_form(self) -> Attention:
        """The form of attention asked for, or the backend's default."""
        return self.builder.attention(self)

    @property
    def by_layer(self) -> bool:
        """Whether one layer is compiled for all of them: as asked for, or the backend's default."""
        return self.builder.regional(self)

    @property
    def name(self) -> str:
        """The settings as part of a folder name, without those that are defaults."""
        batch = f"b{self.batch}" if self.batch != 1 else None
        device = self.device if self.device != "cpu" else None
        attention = {"plugin": "plugin", "fp8": "fp8-attention"}.get(self.attention or "native")
        tile = self.tile if self.tile == "fast" else None
        form = {True: "regional", False: "whole", None: None}[self.regional]
        parts = (self.backend, self.precision, attention, tile, batch, device, self.target, form)
        return "-".join(part for part in parts if part)

    def check_tools(self) -> None:
        """Refuse early what this machine has no tools to build.

        Raises:
            UserError: naming what to install.
        """
        self.builder.check_tools(self)


def choose_backend(target: str | None = None) -> tuple[str, str | None, str]:
    """Choose a backend if none is named.

    Args:
        target: the architecture asked for; only some backends can build for another machine's GPU.

    Returns:
        The backend's name, its target, and the reason in words.

    Raises:
        UserError: if no backend offers itself.
    """
    gpu = gpu_architecture()
    for name, backend in BACKENDS.items():
        if (offer := backend.offer(gpu, target)) is not None:
            return name, offer.target, offer.reason
    raise UserError(f"no backend builds for {target or gpu} here; name one with --backend")
