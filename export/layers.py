"""The linear layers of a model, by the precision in which an engine multiplies them; attention on codes."""

from __future__ import annotations

from torch import nn

from export.lowering.calibration import attention_input_names
from export.lowering.exclusions import WIDTHS, ends, reason_to_exclude
from export.lowering.precision import FLOAT32_PREFIXES
from export.lowering.trace import fake_model
from export.settings import Settings
from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.config import ModelConfig


def layers_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Outputs and inputs of every linear layer, by its name in the model."""
    modules = fake_model(config).named_modules()
    return {name: tuple(part.weight.shape) for name, part in modules if isinstance(part, nn.Linear)}


def check_attention(config: ModelConfig, settings: Settings) -> None:
    """Refuse attention on float8 codes for a model of `config` that would not have it.

    Raises:
        UserError: if its heads have a width that tensor cores do not take, or if its step masks slots:
            masked attention has no codes, and a cache of one slot is masked (`export.build.step_window`).
    """
    if settings.attention_form != "fp8":
        return
    if (width := config.attention_head_dim) % WIDTHS:
        raise UserError(
            f"attention in fp8 needs heads whose width is a multiple of {WIDTHS}, and this model's is "
            f"{width}; leave --attention out"
        )
    if CacheSpec.of(config).slots == 1:
        raise UserError(
            "attention in fp8 takes no mask, which a cache of one slot needs; leave --attention out"
        )


def attention_inputs(config: ModelConfig, settings: Settings) -> tuple[str, ...]:
    """The names in a calibration of queries, keys and values that `settings` quantise, of all blocks.

    None are in the first and last blocks, whose linear layers are not quantised either.
    """
    if settings.attention_form != "fp8":
        return ()
    edge = ends(config.num_layers)
    blocks = range(edge, config.num_layers - edge)
    return tuple(name for block in blocks for name in attention_input_names(f"blocks.{block}.attn1"))


def by_precision(config: ModelConfig, settings: Settings) -> dict[str, tuple[str, ...]]:
    """The names of all linear layers by precision, narrowest first.

    Raises:
        UserError: if no layer can be quantised that should be.
    """
    layers: dict[str, list[str]] = {settings.precision: [], settings.base: [], "fp32": []}
    for name, shape in layers_of(config).items():
        exact = f"{name}.".startswith(FLOAT32_PREFIXES)
        quantized = settings.quantized and reason_to_exclude(name, shape, config.num_layers) is None
        layers["fp32" if exact else settings.precision if quantized else settings.base].append(name)
    if not layers[settings.precision]:
        raise UserError(f"no linear layer of this model can be in {settings.precision}; use {settings.base}")
    return {precision: tuple(names) for precision, names in layers.items()}
