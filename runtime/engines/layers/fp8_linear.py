"""Linear layers in float8 with a scale for each row, for the eager model and its compiled blocks.

Weights are quantised once, inputs at every call (`plugins.fp8.rows`), so no calibration is needed.
`export.lowering.exclusions` decides which layers stay as they are, as for compiled engines. Where attention's
products are joined (`vmla.fused_attention`), those of `quantisable` have to be left apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from export.lowering.exclusions import reason_to_exclude
from plugins.errors import UserError
from plugins.fp8.product import OLDEST_GPU, scaled_product
from plugins.fp8.rows import quantize_rows
from vmla.fused_attention import replaced
from vmla.transformer import VideoMLA


class Fp8Linear(nn.Module):
    """Replaces the given `nn.Linear`; computes from float8 codes, without gradients."""

    weight: Tensor
    """Codes of the weights [outputs, inputs] float8_e4m3fn."""
    weight_scales: Tensor
    """Scale of each row of the weights [outputs] float32."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise the weights of `linear`; its bias is shared with it."""
        super().__init__()
        codes, scales = quantize_rows(linear.weight.detach())
        self.register_buffer("weight", codes)
        self.register_buffer("weight_scales", scales.flatten())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs], in the type of x."""
        codes, scales = quantize_rows(x)
        made = scaled_product(
            codes.flatten(0, -2), scales.flatten(0, -2), self.weight, self.weight_scales, self.bias,
            dtype=x.dtype,
        )  # fmt: skip
        return made.unflatten(0, x.shape[:-1])


def in_fp8(model: VideoMLA) -> VideoMLA:
    """A shallow copy of `model`, sharing all else, whose layers that fp8 is for are `Fp8Linear`."""
    chosen = dict(quantisable(model))
    layers = {name: Fp8Linear(layer) for name, layer in chosen.items()}
    return cast(VideoMLA, replaced(model, lambda name, _: layers.get(name)))


def quantisable(model: VideoMLA) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of `model` that fp8 is for, by name."""
    blocks = len(model.blocks)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and reason_to_exclude(name, layer.weight.shape, blocks) is None:
            yield name, layer


def choose_fp8(precision: str | None, device: torch.device, dtype: torch.dtype, engine: Path | None) -> bool:
    """Whether layers shall compute in float8: `precision` says so, and nothing is against it.

    Raises:
        UserError: naming the alternative.
    """
    if precision != "fp8":
        return False
    if engine is not None:
        raise UserError(f"{engine} has a precision of its own; leave out --precision, or say --engine eager")
    if device.type != "cuda":
        raise UserError(
            f"--precision fp8 is for a GPU, and {device} would be slower with it; leave it out, or see its "
            "error with: vmla-export build --precision fp8 --backend onnx"
        )
    if (found := torch.cuda.get_device_capability(device)) < OLDEST_GPU:
        raise UserError(
            "sm_{}{} does not multiply fp8, sm_{}{} and newer do; leave --precision out".format(
                *found, *OLDEST_GPU
            )
        )
    if dtype != torch.bfloat16:
        raise UserError("--precision fp8 goes with --dtype bfloat16, a GPU's default; leave --dtype out")
    return True


def fp8_line(dtype: torch.dtype) -> str:
    """A line that tells the user whether layers compute in float8."""
    return f"precision: fp8 in most linear layers, {str(dtype).removeprefix('torch.')} elsewhere"
