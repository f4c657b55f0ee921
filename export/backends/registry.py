"""The backends by name; where several would do, they are chosen in this order.

It is not an order of speed. Those that compile for one kind of GPU come first, because whoever installs one
wants it; none of them has been timed. On a CPU AOTInductor comes before ONNX Runtime: what was measured of
the two (`engines` in docs/results.md) overlaps in float32, and only AOTInductor has bfloat16 there.
"""

from __future__ import annotations

from export.backends.aoti import AOTI
from export.backends.base import Backend
from export.backends.onnx import ONNX
from export.backends.tensorrt import TensorRT
from export.backends.tensorrt_rtx import TensorRTRTX
from export.backends.torch_tensorrt import TorchTensorRT
from vmla.cli.options.names import unknown_name

BACKENDS: dict[str, Backend] = {
    each.name: each for each in (TensorRT(), TorchTensorRT(), TensorRTRTX(), AOTI(), ONNX())
}


def backend_named(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        UserError: if there is none, listing those there are.
    """
    if name not in BACKENDS:
        raise unknown_name("backend", name, sorted(BACKENDS))
    return BACKENDS[name]
