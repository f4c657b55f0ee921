"""Programs in parts, for regional compilation: what comes before the layers, one layer, and what comes after.

All layers compute alike, so one of them is traced, with its weights as inputs, and a compiler sees it once
however many there are. The weights of all layers are data beside it; `export.loading.regional` calls the
parts in turn. Each part is traced and lowered as a whole program is.

In fp8 there are two such layers: one that takes codes and scales, and a plain one for the blocks at the ends,
which are not quantised.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from export.engine.manifest import Signature, StepWindow, TensorSpec
from export.engine.signature import BEGIN, END, LAYER, NARROW, PROMPT, STEP, contract, layer_parts, zeros
from export.lowering.fp8_matmul import ROWS, scaled, with_inputs
from export.lowering.precision import Precision, in_precision
from export.lowering.quantized_layers import HEADROOM, fp8_weights, quantized
from export.lowering.trace import acting_as, drop_type_checks, exported, fake_mode_of, held_sizes
from vmla.attention import TextAttention, Window
from vmla.config import ModelConfig
from vmla.fused_attention import fused
from vmla.transformer import Block, VideoMLA

NARROWED = ("text_kv", "cached", "entries", "embedded")
"""Inputs and outputs of parts in the precision of what is not quantised; all others that are numbers are
float32."""
STREAM = ("tokens", "after")
"""The residual stream as a layer takes it and as it leaves it: float32, or in that precision too."""


@dataclass(frozen=True, kw_only=True)
class Regional:
    """A program in parts: what comes before the layers, one program for every layer, and what follows."""

    parts: dict[str, ExportedProgram]
    """By the names of `export.engine.signature.parts_of`. Layers take their weights last, sorted by name."""
    weights: dict[str, Tensor]
    """Weights of all layers, as the layer's program takes them, under names such as `3.ffn.up.weight`."""


class StepBegin(VideoMLA):
    """The part of a step before its layers: tokens, conditioning, and the window's rotations."""

    held: bool
    """Whether every slot that is given holds a frame; otherwise their validity is a result too."""

    def forward(  # type: ignore[override]
        self, latents: Tensor, timestep: Tensor, slot_index: Tensor, chunk_index: Tensor
    ) -> tuple[Tensor, ...]:
        """Tokens [B, S, D], embedding, modulation, cosines and sines [T + S, pairs], and validity."""
        window = self._window(slot_index, chunk_index, self.held)
        made = (self.embed(latents), *self.condition_embedder(timestep), window.cos, window.sin)
        return made if window.valid is None else (*made, window.valid)


class StepLayer(Block):
    """One layer of a step."""

    def forward(  # type: ignore[override]
        self, tokens: Tensor, modulation: Tensor, text_kv: Tensor, cached: Tensor, cosines: Tensor,
        sines: Tensor, valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """See `Block.forward`."""
        return super().forward(tokens, modulation, text_kv, cached, Window(valid, cosines, sines), False)


class StepEnd(VideoMLA):
    """The part of a step after its last layer: from tokens to the velocity."""

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Velocity [B, z, F, h, w]."""
        c = self.config
        shape = (tokens.shape[0], c.in_channels, c.chunk, c.sample_height, c.sample_width)
        return self._velocity(tokens, embedding, torch.Size(shape))


class PromptBegin(VideoMLA):
    """The part of a prompt that all layers share: the embedded text."""

    def forward(self, text: Tensor) -> Tensor:  # type: ignore[override]
        """[B, tokens, text width] to [B, tokens, D]."""
        embedded: Tensor = self.condition_embedder.text_embedder(text)
        return embedded


class PromptLayer(TextAttention):
    """A layer's keys and values of the prompt."""

    def forward(self, embedded: Tensor) -> Tensor:  # type: ignore[override]
        """[B, tokens, D] to [2, B, tokens, D]."""
        return self.keys_values(embedded)


@dataclass(frozen=True, kw_only=True)
class Float8:
    """How the step's layers are quantised."""

    largest: Mapping[str, float]
    """The largest magnitude of the inputs of each quantised layer, by its name in the model."""
    multiplied: bool
    """Whether codes are multiplied (`export.lowering.fp8_matmul`), or what they stand for."""

    def of_block(self, number: int) -> dict[str, float]:
        """`largest` of one block, by names within it; empty if it is not quantised."""
        start = f"blocks.{number}."
        return {
            name.removeprefix(start): value for name, value in self.largest.items() if name.startswith(start)
        }


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part before it is traced."""

    module: nn.Module
    signature: Signature
    """The part's signature in float32."""
    dynamic: Mapping[str, dict[int, Any]] | None = None
    """Dimensions of inputs that are not static, by the input's name."""
    narrowed: Collection[str] = NARROWED
    """Inputs and outputs that will not be float32."""

    def lowered(
        self, precision: Precision, float8: Float8 | None, largest: Mapping[str, float]
    ) -> ExportedProgram:
        """The program in `precision`; the layers named in `largest` are quantised as `float8` says."""
        program = exported(self.module, self.signature, self.dynamic)
        if float8 is not None and largest:
            program = quantized(program, largest, "fp8", shared=True)
            program = scaled(program) if float8.multiplied else program
        return in_precision(program, precision, self.narrowed)

    def inputs(self, precision: Precision) -> list[TensorSpec]:
        """The inputs of the lowered program."""
        narrow, given = NARROW[precision], self.signature.inputs
        return [replace(spec, dtype=narrow) if spec.name in self.narrowed else spec for spec in given]


def trace_regional(
    model: VideoMLA, *, batch: int, window: StepWindow, joined: bool, precision: Precision,
    float8: Float8 | None = None, between_blocks: bool = False,
) -> dict[str, Regional]:  # fmt: skip
    """Trace both programs of `model`, which may be fake, in parts, and lower them to `precision`.

    Args:
        model, batch, window, joined: see `export.lowering.trace.trace`.
        precision: of all that is not quantised.
        float8: which layers of the step are quantised, and how; None for none.
        between_blocks: whether layers of the step hand on the residual stream in `precision` too.
    """
    blocks = _blocks(model, joined, float8)
    texts = [block.attn2 for block in blocks]
    step = _step_parts(model, blocks, batch, window, float8)
    if between_blocks:
        step = {name: replace(part, narrowed=(*NARROWED, *STREAM)) for name, part in step.items()}
    return {
        STEP: _regional(STEP, step, blocks, precision, float8),
        PROMPT: _regional(PROMPT, _prompt_parts(model, batch), texts, precision, None),
    }


def _blocks(model: VideoMLA, joined: bool, float8: Float8 | None) -> list[Block]:
    if not joined:
        return cast(list[Block], list(model.blocks))
    apart = () if float8 is None else float8.largest
    with fake_mode_of(model):
        made = [fused(block, apart, name=f"blocks.{number}") for number, block in enumerate(model.blocks)]
    return cast(list[Block], made)


def _layer_parts(name: str, layers: int, float8: Float8 | None) -> tuple[str, ...]:
    return layer_parts(name, layers, () if float8 is None else float8.largest)


def _regional(
    name: str,
    parts: dict[str, _Part],
    layers: Sequence[nn.Module],
    precision: Precision,
    float8: Float8 | None,
) -> Regional:
    of_layers = _layer_parts(name, len(layers), float8)
    quantised = [{} if float8 is None else float8.of_block(number) for number in range(len(layers))]
    programs = {
        part: own.lowered(precision, float8, quantised[of_layers.index(part)] if part in of_layers else {})
        for part, own in parts.items()
    }
    weights = {
        f"{number}.{weight}": value
        for number, layer in enumerate(layers)
        for weight, value in _weights(layer, programs[of_layers[number]], quantised[number], float8).items()
    }
    for part in set(of_layers):
        programs[part] = _taking_weights(programs[part], parts[part], precision)
    return Regional(parts=programs, weights=weights)


def _weights(
    layer: nn.Module, program: ExportedProgram, largest: Mapping[str, float], float8: Float8 | None
) -> dict[str, Tensor]:
    """What `program`, lowered for a layer of the same form, takes as the weights of `layer`."""
    # The scales of rows are the same for all layers; each has a copy, since a file's tensors share no memory.
    made = {name: stored.detach().clone() for name, stored in program.state_dict.items() if name == ROWS}
    with fake_mode_of(layer):
        for name, value in largest.items():
            made |= fp8_weights(name, layer.get_parameter(f"{name}.weight").detach(), HEADROOM * value)
            if float8 is not None and float8.multiplied:
                scales, scale = (made[f"{name}.{kind}_scale"] for kind in ("weight", "input"))
                made[f"{name}.weight_scale"] = with_inputs(scales, scale)
    return {
        name: (made[name] if name in made else layer.get_parameter(name).detach()).to(stored.dtype)
        for name, stored in program.state_dict.items()
    }


def _step_parts(
    model: VideoMLA, blocks: Sequence[Block], batch: int, window: StepWindow, float8: Float8 | None
) -> dict[str, _Part]:
    begin = acting_as(StepBegin, model, without="blocks")
    begin.held = window == "held"
    signature = _step_signature(model.config, batch, begin.held)
    of_begin, of_layer = _held_dimensions(model.config) if begin.held else (None, None)
    of_layers = _layer_parts(STEP, len(blocks), float8)
    layers = {
        part: _Part(
            module=acting_as(StepLayer, blocks[of_layers.index(part)]),
            signature=signature[LAYER],
            dynamic=of_layer,
        )
        for part in set(of_layers)
    }
    end = acting_as(StepEnd, model, without="blocks")
    return {
        BEGIN: _Part(module=begin, signature=signature[BEGIN], dynamic=of_begin),
        **layers,
        END: _Part(module=end, signature=signature[END]),
    }


def _held_dimensions(config: ModelConfig) -> tuple[dict[str, dict[int, Any]], dict[str, dict[int, Any]]]:
    """The dimensions of the first part and of a layer that depend on how many slots hold a frame."""
    held, cached = held_sizes(config)
    tokens = cached + config.chunk * config.tokens_per_frame
    layer = {"cached": {1: cached}, "cosines": {0: tokens}, "sines": {0: tokens}}
    return {"slot_index": {0: held}}, layer


def _prompt_parts(model: VideoMLA, batch: int) -> dict[str, _Part]:
    begin, config = acting_as(PromptBegin, model, without="blocks"), model.config
    layer = acting_as(PromptLayer, cast(Block, model.blocks[0]).attn2)
    embedded = _spec("embedded", batch, config.text_tokens, config.inner_dim)
    text = contract(config, batch=batch)[PROMPT].inputs
    text_kv = _spec("text_kv", 2, *embedded.shape)
    return {
        BEGIN: _Part(module=begin, signature=Signature(inputs=text, outputs=(embedded,))),
        LAYER: _Part(module=layer, signature=Signature(inputs=(embedded,), outputs=(text_kv,))),
    }


def _step_signature(config: ModelConfig, batch: int, held: bool) -> dict[str, Signature]:
    """Inputs and outputs of the parts of a step, in float32."""
    whole = contract(config, batch=batch)[STEP]
    given = {spec.name: spec for spec in whole.inputs}
    cached, own = given["cache"].shape[2], config.chunk * config.tokens_per_frame
    pairs = (config.qk_rope_head_dim if config.layout == "mla" else config.attention_head_dim) // 2
    tokens = _spec("tokens", batch, own, config.inner_dim)
    embedding = _spec("embedding", batch, config.chunk, config.inner_dim)
    modulation = _spec("modulation", batch, config.chunk, 6, config.inner_dim)
    window = [_spec(name, cached + own, pairs) for name in ("cosines", "sines")]
    if not held:
        window.append(_spec("valid", cached + own, dtype="bool"))
    layer = (
        tokens,
        modulation,
        _spec("text_kv", *given["text_kv"].shape[1:]),
        _spec("cached", *given["cache"].shape[1:]),
        *window,
    )
    after, entries = replace(tokens, name="after"), _spec("entries", batch, own, config.entry_width)
    first = tuple(given[name] for name in ("latents", "timestep", "slot_index", "chunk_index"))
    return {
        BEGIN: Signature(inputs=first, outputs=(tokens, embedding, modulation, *window)),
        LAYER: Signature(inputs=layer, outputs=(after, entries)),
        END: Signature(inputs=(tokens, embedding), outputs=whole.outputs[:1]),
    }


def _spec(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype)


class _Given(nn.Module):
    """A module as a function of its inputs and then of its weights."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.__dict__["inner"], self.names = module, names  # no submodule, so its weights are not lifted

    def forward(self, *tensors: Tensor) -> Any:
        """Inputs, then the weights called `names`."""
        inputs, weights = tensors[: -len(self.names)], tensors[-len(self.names) :]
        named = dict(zip(self.names, weights, strict=True))
        return torch.func.functional_call(self.__dict__["inner"], named, inputs)


def _taking_weights(program: ExportedProgram, part: _Part, precision: Precision) -> ExportedProgram:
    """The lowered `program` with its weights as further inputs, sorted by name."""
    names = sorted(program.state_dict)
    inputs = part.inputs(precision)
    given: list[Any] = [None if part.dynamic is None else part.dynamic.get(spec.name) for spec in inputs]
    with fake_mode_of(part.module), torch.no_grad():
        weights = [program.state_dict[name].detach() for name in names]
        example = (*zeros(inputs, weights[0].device), *weights)
        function = _Given(program.module(check_guards=False), names)
        shapes = ((*given, *[None] * len(names)),)
        taking = torch.export.export(function, example, dynamic_shapes=shapes, strict=False)
    drop_type_checks(taking)
    return taking
