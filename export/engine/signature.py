"""The contract of every engine as data: names, shapes and dtypes of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from export.engine.manifest import Signature, TensorSpec
from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.transformer import StepInputs

STEP, PROMPT = "step", "prompt"
"""The two programs of an engine."""
BEGIN, LAYER, PLAIN, END = "begin", "layer", "plain", "end"
"""The parts of a program that is compiled in parts. Each layer is run by the part `layer`, but in a step with
quantised layers those without any by the part `plain`."""
NARROW = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The type of cache and text, by the precision of what is not quantised."""


def layer_parts(name: str, layers: int, quantised: Collection[str]) -> tuple[str, ...]:
    """The part that runs each of the `layers` layers of the program called `name`.

    Args:
        name: `step` or `prompt`; no layer of the prompt step is ever quantised.
        layers: blocks of the model.
        quantised: names of the layers within blocks that have codes, such as `blocks.1.ffn.up`.
    """
    if name == PROMPT or not quantised:
        return (LAYER,) * layers
    starts = [f"blocks.{number}." for number in range(layers)]
    return tuple(LAYER if any(own.startswith(start) for own in quantised) else PLAIN for start in starts)


def parts_of(name: str, of_layers: Sequence[str]) -> tuple[str, ...]:
    """The parts of the program called `name`, given those that run its layers (`layer_parts`)."""
    return (BEGIN, *sorted(set(of_layers)), *((END,) if name == STEP else ()))


def cache_of(config: ModelConfig, narrow: str) -> dict[str, Any]:
    """The cache as a manifest describes it: the fields of its `CacheSpec`, and its dtype `narrow`."""
    return {**asdict(CacheSpec.of(config)), "dtype": narrow}


def contract(config: ModelConfig, *, batch: int, narrow: str = "float32") -> dict[str, Signature]:
    """Signatures of the step and the prompt step, with cache and text in the dtype `narrow`.

    Latents and velocity are float32 in every precision, because the sampler accumulates small differences.

    Raises:
        UserError: if the first chunk is shorter than the others; an engine has one shape.
    """
    spec = CacheSpec.of(config)
    if spec.chunks.first != spec.chunk:
        lengths = f"a first chunk of {spec.chunks.first} latent frames and others of {spec.chunk}"
        raise UserError(f"an engine makes chunks of one length, this model has {lengths}; run it without one")
    picture = (batch, config.in_channels, config.chunk, config.sample_height, config.sample_width)
    text_kv = (config.num_layers, 2, batch, config.text_tokens, config.inner_dim)
    entries = (config.num_layers, batch, config.chunk * config.tokens_per_frame, config.entry_width)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "latents": (picture, "float32"),
        "timestep": ((batch, config.chunk), "float32"),
        "text_kv": (text_kv, narrow),
        "cache": (spec.shape(batch), narrow),
        "slot_index": ((spec.slots,), "int32"),
        "chunk_index": ((config.chunk,), "int32"),
        "velocity": (picture, "float32"),
        "entries": (entries, narrow),
        "text": ((batch, config.text_tokens, config.text_dim), "float32"),
    }

    def specs(*names: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, shape=shapes[name][0], dtype=shapes[name][1]) for name in names)

    return {
        STEP: Signature(inputs=specs(*StepInputs._fields), outputs=specs("velocity", "entries")),
        PROMPT: Signature(inputs=specs("text"), outputs=specs("text_kv")),
    }


def zeros(specs: Sequence[TensorSpec], device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """A tensor of zeros for each of `specs`."""
    return tuple(torch.zeros(s.shape, dtype=getattr(torch, s.dtype), device=device) for s in specs)
