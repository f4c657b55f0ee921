"""Engines: one interface to the denoiser, whether it runs eagerly or was compiled ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from runtime.engines.attention_waves import time_waves
from runtime.engines.key_splits import event_timer, time_absorbed
from runtime.engines.layers.fp8_cache import PackedEntries, unpacking
from runtime.engines.layers.fp8_linear import in_fp8
from runtime.engines.layers.gelu_epilogue import gelu_in_products
from runtime.engines.layers.packed_linear import packable, packed
from runtime.engines.layers.timestep_tables import tabled
from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.fused_attention import Attend, fused
from vmla.text import TextEncoder
from vmla.transformer import StepInputs, VideoMLA, compile_blocks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Engine(Protocol):
    """Runs the denoiser's step (`vmla.transformer.VideoMLA.forward`) and encodes its prompts."""

    config: ModelConfig
    cache_spec: CacheSpec
    dtype: torch.dtype
    cache_dtype: torch.dtype
    """Of the cache: `dtype`, or uint8 where entries take fewer bits. Their width is `cache_spec`'s."""
    device: torch.device

    def encode_prompt(self, prompts: Sequence[str | None]) -> Tensor:
        """Cross-attention keys and values [L, 2, B, tokens, D] of a prompt a video; None is no text."""

    def step(self, inputs: StepInputs, *, held: int | None = None) -> tuple[Tensor, Tensor]:
        """Velocity and entries: see `VideoMLA.forward`.

        `held` is the number of slots that hold a frame, which are the first ones, if the caller knows it:
        then nothing is read from the device.
        """

    def entries(self, inputs: StepInputs, *, held: int | None = None) -> Tensor:
        """The entries that `step` would return, if possible without the work that only the velocity needs."""

    def computation(self, held: int) -> int:
        """The number of the computation for a window of `held` slots; equal ones can share a CUDA graph."""

    def close(self) -> None:
        """Release the memory and handles that the engine holds."""


class EagerEngine:
    """Runs the PyTorch model, as it is or with its blocks compiled in this process."""

    def __init__(
        self,
        model: VideoMLA,
        text: TextEncoder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        absorbed: bool = False,
        as_it_is: bool = False,
        compiled: bool = False,
        fp8: bool = False,
        fp8_cache: bool = False,
        joined: bool = True,
        gelu_in_product: bool = True,
        waves: bool | Path = True,
        group: ProcessGroup | None = None,
        text_device: torch.device | None = None,
    ) -> None:
        """Move `model` to `device`, and the text encoder to `text_device`.

        Args:
            model, text: the denoiser and the text encoder, both in float32.
            device, dtype: where the engine computes, and in which type.
            absorbed: whether attention runs in latent space.
            as_it_is: the modules of `model` run themselves, so that hooks on them fire; that is slower.
            compiled: `torch.compile` gets the blocks, one at a time, when they are first called.
            fp8: layers that float8 is for compute in it (`runtime.engines.layers.fp8_linear`).
            fp8_cache: the cache keeps entries in float8 (`runtime.engines.layers.fp8_cache`).
            joined, gelu_in_product: on a GPU attention's products are joined, and the feed-forward's first
                product applies GELU itself; False is for measuring the gain.
            waves: with compiled blocks on a GPU, attention is cut into whole waves if a clock says so;
                False is for measuring the gain. A path is of the file that keeps what was chosen.
            group: processes that make one video together: each holds the model and computes a part of a
                chunk's tokens (`runtime.engines.sequence_parallel`). All of them must make the same calls.
            text_device: where prompts are encoded, in float32; None is `device`.
        """
        self.config = model.config
        self.cache_spec = CacheSpec.of(model.config)
        self.device, self.dtype, self.cache_dtype, self.absorbed = device, dtype, dtype, absorbed
        self._entry_form = PackedEntries(model.config) if fp8_cache else None
        if self._entry_form is not None:
            self.cache_spec = replace(self.cache_spec, entry_width=self._entry_form.width)
            self.cache_dtype = torch.uint8
        self._model = model.to(device=device, dtype=dtype)
        self._model.rope.float()  # angles always take float32
        if group is not None:
            from runtime.engines.sequence_parallel import split_over

            self._model = split_over(self._model, group)
        if fp8_cache and (as_it_is or group is not None):
            raise ValueError("a float8 cache is read by one process, with modules not the model's own")
        if not as_it_is:
            processes = 1 if group is None else group.size()
            attend = self._timed_attention(waves) if compiled and joined and processes == 1 else None
            self._model = self._optimized(compiled, fp8, joined, gelu_in_product, attend, processes)
        if absorbed and device.type == "cuda":
            time_absorbed(self.config, dtype=dtype, device=device, timer=event_timer)
        self._text = text
        text.encoder.to(device if text_device is None else text_device)

    def _timed_attention(self, waves: bool | Path) -> Attend | None:
        """The attention to a full window that is fastest on this GPU; None for the library's."""
        if not waves or self.device.type != "cuda" or self.absorbed or self.config.layout != "mla":
            return None
        kept = waves if isinstance(waves, Path) else None
        return time_waves(self.config, dtype=self.dtype, device=self.device, timer=event_timer, kept=kept)

    def _optimized(
        self, compiled: bool, fp8: bool, joined: bool, gelu_in_product: bool, attend: Attend | None,
        processes: int,
    ) -> VideoMLA:  # fmt: skip
        """The model with its weights laid out for this machine and its conditioning tabled by timestep."""
        model = self._model
        if joined and self.device.type == "cuda" and not self.absorbed:
            model = cast(VideoMLA, fused(model, attend))
        if fp8:
            model = in_fp8(model)
        if gelu_in_product and self.device.type == "cuda":
            model = cast(VideoMLA, gelu_in_products(model))
        if packable(self.device, self.dtype):
            rows = self.config.chunk * self.config.tokens_per_frame // processes
            model = cast(VideoMLA, packed(model, rows))
        if self._entry_form is not None:
            model = cast(VideoMLA, unpacking(model, self._entry_form, self.dtype))
        if compiled:
            compile_blocks(model)
        return tabled(model)

    @torch.inference_mode()
    def encode_prompt(self, prompts: Sequence[str | None]) -> Tensor:
        """Cross-attention keys and values [L, 2, B, tokens, D] of one prompt for each video."""
        return self._model.encode_text(self._text(prompts).to(self.device, self.dtype))

    @torch.inference_mode()
    def step(self, inputs: StepInputs, *, held: int | None = None) -> tuple[Tensor, Tensor]:
        """Velocity and entries: see `VideoMLA.forward`. A window that is not known to be full has a mask."""
        full = held == self.cache_spec.slots
        velocity, entries = self._model(*self._cast(inputs), absorbed=self.absorbed, full=full)
        return velocity, self._as_cached(entries)

    @torch.inference_mode()
    def entries(self, inputs: StepInputs, *, held: int | None = None) -> Tensor:
        """The entries alone: see `VideoMLA.entries`."""
        full = held == self.cache_spec.slots
        return self._as_cached(self._model.entries(*self._cast(inputs), absorbed=self.absorbed, full=full))

    def computation(self, held: int) -> int:
        """One computation, with a mask, for all windows that are filling, and one without for full ones."""
        return held == self.cache_spec.slots

    def _as_cached(self, entries: Tensor) -> Tensor:
        return entries if self._entry_form is None else self._entry_form.pack(entries)

    def _cast(self, inputs: StepInputs) -> StepInputs:
        """`inputs` with the latents, which a rollout holds in float32, in the engine's dtype."""
        return inputs._replace(latents=inputs.latents.to(self.dtype))

    def close(self) -> None:
        """Do nothing: the model is freed with its last reference."""

    def __enter__(self) -> EagerEngine:
        """Return the engine; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine; an exception passes."""
        self.close()
