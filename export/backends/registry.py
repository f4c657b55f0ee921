"""The backends by name, fastest first; where several would do, they are chosen in this order."""

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
