"""Runs ONNX graphs as functions of tensors, with ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from export.engine.manifest import Signature
from plugins.errors import UserError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def session(graph: Path, signature: Signature) -> Callable[..., Sequence[Tensor]]:
    """Open `graph` in a session with as many threads as torch uses now.

    Raises:
        UserError: if it has inputs or outputs of a type that ONNX Runtime does not support on a CPU.
        RuntimeError: if it does not load.
    """
    check_types(signature)
    made = inference_session(graph)
    names = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        feeds = {key: tensor.numpy() for key, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in made.run(outputs, feeds)]

    return run


def inference_session(graph: Path) -> InferenceSession:
    """Open `graph` with as many threads as torch uses now.

    Raises:
        RuntimeError: if it does not load.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns about every constant that it does not fold
    options.intra_op_num_threads = torch.get_num_threads()
    # Its fusions of quantised layers are for integers.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except (states.Fail, states.InvalidGraph, states.NotImplemented) as error:
        raise RuntimeError(str(error)) from error


def check_types(signature: Signature) -> None:
    """Refuse a program of a type that ONNX Runtime does not support on a CPU.

    Raises:
        UserError: naming types that it supports.
    """
    if any(spec.dtype == "bfloat16" for spec in (*signature.inputs, *signature.outputs)):
        raise UserError("ONNX Runtime has no bfloat16 on a CPU; build with --precision fp32 or fp16")
