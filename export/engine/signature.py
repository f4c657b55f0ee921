"""Seam 1 as data: the names, shapes and types that every engine takes and gives back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from export.engine.manifest import Signature, TensorSpec
from plugins.errors import UserError
from vmla.cache import CacheLayout
from vmla.config import ModelConfig

STEP, PROMPT = "step", "prompt"
"""The two programs of an engine."""


def contract(config: ModelConfig, *, batch: int, narrow: str = "float32") -> dict[str, Signature]:
    """What the step and the prompt step take and give, with cache and text in the type `narrow`.

    Latents and velocity are float32 in every precision: the sampler adds up small differences of them.

    Raises:
        UserError: for chunks of two lengths.
    """
    layout = CacheLayout.of(config)
    if layout.chunks.first != layout.chunk:
        lengths = f"a first chunk of {layout.chunks.first} latent frames and others of {layout.chunk}"
        raise UserError(f"an engine makes chunks of one length, this model has {lengths}; run it without one")
    picture = (batch, config.in_channels, config.chunk, config.sample_height, config.sample_width)
    text_kv = TensorSpec(
        name="text_kv",
        shape=(config.num_layers, 2, batch, config.text_tokens, config.inner_dim),
        dtype=narrow,
    )
    queries = config.chunk * config.tokens_per_frame
    step = Signature(
        inputs=(
            TensorSpec(name="latents", shape=picture, dtype="float32"),
            TensorSpec(name="timestep", shape=(batch, config.chunk), dtype="float32"),
            text_kv,
            TensorSpec(name="cache", shape=layout.shape(batch), dtype=narrow),
            TensorSpec(name="slot_index", shape=(layout.slots,), dtype="int32"),
            TensorSpec(name="chunk_index", shape=(config.chunk,), dtype="int32"),
        ),
        outputs=(
            TensorSpec(name="velocity", shape=picture, dtype="float32"),
            TensorSpec(
                name="entries", shape=(config.num_layers, batch, queries, config.entry_width), dtype=narrow
            ),
        ),
    )
    text = TensorSpec(name="text", shape=(batch, config.text_tokens, config.text_dim), dtype="float32")
    return {STEP: step, PROMPT: Signature(inputs=(text,), outputs=(text_kv,))}


def zeros(specs: Sequence[TensorSpec], device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """A tensor of zeros for each of `specs`."""
    return tuple(torch.zeros(s.shape, dtype=getattr(torch, s.dtype), device=device) for s in specs)
