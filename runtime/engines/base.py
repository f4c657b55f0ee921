"""Engines: one interface to the denoiser, whether it runs eagerly or was compiled ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from runtime.engines.block_compiler import compiled_twin
from runtime.engines.layers.fp8_cache import PackedEntries, unpacking
from runtime.engines.layers.timestep_tables import tabled
from runtime.engines.optimizations import ALL, Optimizations, Place, optimized
from runtime.engines.timing.key_splits import event_timer, time_absorbed
from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.text import TextEncoder
from vmla.transformer import StepInputs, VideoMLA

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Engine(Protocol):
    """Runs the denoiser's step (`vmla.transformer.VideoMLA.forward`) and encodes its prompts."""

    config: ModelConfig
    cache_spec: CacheSpec
    dtype: torch.dtype
    cache_dtype: torch.dtype
    """Type of the cache: `dtype`, or uint8 where entries take fewer bits. Their width is `cache_spec`'s."""
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
        optimizations: Optimizations = ALL,
        group: ProcessGroup | None = None,
        text_device: torch.device | None = None,
    ) -> None:
        """Move `model` to `device`, and the text encoder to `text_device`.

        Args:
            model, text: the denoiser and the text encoder, both in float32.
            device, dtype: where the engine computes, and in which type.
            absorbed: whether attention runs in latent space.
            as_it_is: the modules of `model` run themselves, so that hooks on them fire; that is slower.
            compiled: `torch.compile` gets the blocks, one at a time, when they are first called with a full
                window. Passes in a window that fills run the same weights uncompiled: a video's first frames
                wait for no compiler. Which form runs depends on the window alone, so a seed's video does too.
            fp8: layers that float8 is for compute in it (`runtime.engines.layers.fp8_linear`).
            fp8_cache: the cache keeps entries in float8 (`runtime.engines.layers.fp8_cache`).
            optimizations: what is done to be faster; all of it, unless a gain is measured.
            group: processes that make one video together: each holds the model and computes a part of a
                chunk's tokens (`runtime.engines.sequence_parallel`). All of them must make the same calls.
            text_device: where prompts are encoded, in float32; None is `device`.
        """
        if fp8_cache and (as_it_is or group is not None):
            raise ValueError("a float8 cache is read by one process, by modules that are not the model's own")
        if as_it_is and (compiled or fp8):
            raise ValueError("the modules of the model itself are neither compiled nor in float8")
        self.config, self.cache_spec = model.config, CacheSpec.of(model.config)
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
        self._full = self._model
        if not as_it_is:
            place = Place(
                device=device, dtype=dtype, absorbed=absorbed, compiled=compiled, fp8=fp8,
                processes=1 if group is None else group.size(),
            )  # fmt: skip
            self._model, self._full = self._forms(place, optimizations)
        if absorbed and device.type == "cuda":
            time_absorbed(self.config, dtype=dtype, device=device, timer=event_timer)
        self._text = text
        text.encoder.to(device if text_device is None else text_device)

    def _forms(self, place: Place, how: Optimizations) -> tuple[VideoMLA, VideoMLA]:
        """The model laid out for `place`, in the form for a window that fills and in that for a full one."""
        model = optimized(self._model, place, how)
        if self._entry_form is not None:
            model = cast(VideoMLA, unpacking(model, self._entry_form, self.dtype))
        model = tabled(model)
        return model, compiled_twin(model) if place.compiled else model

    @torch.inference_mode()
    def encode_prompt(self, prompts: Sequence[str | None]) -> Tensor:
        """Cross-attention keys and values [L, 2, B, tokens, D] of one prompt for each video."""
        return self._model.encode_text(self._text(prompts).to(self.device, self.dtype))

    @torch.inference_mode()
    def step(self, inputs: StepInputs, *, held: int | None = None) -> tuple[Tensor, Tensor]:
        """Velocity and entries: see `VideoMLA.forward`. A window that is not known to be full has a mask."""
        model, full = self._form(held)
        velocity, entries = model(*self._cast(inputs), absorbed=self.absorbed, full=full)
        return velocity, self.as_cached(entries)

    @torch.inference_mode()
    def entries(self, inputs: StepInputs, *, held: int | None = None) -> Tensor:
        """The entries alone: see `VideoMLA.entries`."""
        model, full = self._form(held)
        return self.as_cached(model.entries(*self._cast(inputs), absorbed=self.absorbed, full=full))

    def _form(self, held: int | None) -> tuple[VideoMLA, bool]:
        """The model that runs a window of `held` slots, and whether the window is known to be full."""
        full = held == self.cache_spec.slots
        return (self._full if full else self._model), full

    def computation(self, held: int) -> int:
        """One computation, with a mask, for all windows that are filling, and one without for full ones."""
        return held == self.cache_spec.slots

    def as_cached(self, entries: Tensor) -> Tensor:
        """Entries [..., E] in the engine's type as its cache holds them, [..., width] in `cache_dtype`."""
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
