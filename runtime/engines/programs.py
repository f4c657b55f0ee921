"""Compiled programs from the files of an engine folder, each a function of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from export.engine.manifest import Manifest, Signature
from runtime.engines.aoti import Library
from runtime.engines.tensorrt import load_plan
from plugins.errors import UserError, missing_extra

Program = Callable[..., Sequence[Tensor]]
"""Dense tensors in the order of the signature's inputs, to those of its outputs."""


def load_program(folder: Path, name: str, manifest: Manifest) -> Program:
    """The program called `name` of the engine in `folder`.

    Raises:
        UserError: if its file does not load here.
    """
    signature = manifest.programs[name]
    try:
        if manifest.backend == "aoti":
            return _load_aoti(folder / f"{name}.pt2", manifest.host.device)
        if manifest.backend == "onnx":
            return _load_onnx(folder, name, signature)
        return load_plan(folder, name, manifest.backend, signature)
    except (RuntimeError, OSError) as error:
        said = str(error).strip().splitlines()[0]
        mend = manifest.build_command(folder)
        raise UserError(f"{folder}: {name} does not load ({said}); run: {mend}") from error


def check_inputs(signature: Signature, tensors: Sequence[Tensor]) -> None:
    """Refuse tensors of another shape or type than the program was compiled for; it would not notice.

    Raises:
        ValueError: naming the tensor.
    """
    for spec, tensor in zip(signature.inputs, tensors, strict=True):
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tuple(tensor.shape) != spec.shape or dtype != spec.dtype:
            wanted = f"{spec.dtype} {list(spec.shape)}"
            raise ValueError(f"{spec.name} is {dtype} {list(tensor.shape)}; the engine takes {wanted}")


def _load_aoti(package: Path, device: str) -> Program:
    """On a GPU by PyTorch's own loader: there a call launches kernels and returns at once."""
    if device == "cpu":
        return Library(package)
    from torch._inductor import aoti_load_package

    compiled = aoti_load_package(str(package))

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        made = compiled(*tensors)
        return (made,) if isinstance(made, Tensor) else made

    return run


def _load_onnx(folder: Path, name: str, signature: Signature) -> Program:
    """ONNX Runtime on the CPU, with as many threads as torch has."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx") from error

    if any(spec.dtype == "bfloat16" for spec in (*signature.inputs, *signature.outputs)):
        raise UserError("ONNX Runtime has no bfloat16 on a CPU; build with --precision fp32 or fp16")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of every constant that it does not fold
    options.intra_op_num_threads = torch.get_num_threads()
    graph = str(folder / f"{name}.onnx")
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except (states.Fail, states.InvalidGraph, states.NotImplemented) as error:
        raise RuntimeError(str(error)) from error
    names = [spec.name for spec in signature.inputs]
    outputs = [spec.name for spec in signature.outputs]

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        feeds = {key: tensor.numpy() for key, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(outputs, feeds)]

    return run
