"""Runs plans of TensorRT and TensorRT-RTX as functions of tensors, on static buffers and their own stream.

Copying inputs into buffers that never move costs a thousandth of a pass, and lets TensorRT reuse everything
that depends on an address.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.engine.manifest import Signature, TensorSpec

log = logging.getLogger(__name__)


class PlanProgram:
    """A plan with its buffers; maps dense tensors in the order of the signature's inputs to its outputs."""

    def __init__(self, trt: Any, plan: bytes, signature: Signature, *, device: str = "cuda") -> None:
        """Load `plan` and bind it to buffers on the GPU.

        Raises:
            RuntimeError: if it does not load, or its inputs and outputs are not the signature's.
        """
        self._device = device
        self._runtime = trt.Runtime(_logger(trt))
        self._engine = _given(self._runtime.deserialize_cuda_engine(plan), "the plan does not load")
        check_table(trt, self._engine, signature)
        self._context = _given(self._engine.create_execution_context(), "no memory for a context")
        self._inputs, self._outputs = (
            {spec.name: self._bound(spec) for spec in specs}
            for specs in (signature.inputs, signature.outputs)
        )
        self._sized = [name for name in self._inputs if -1 in tuple(self._engine.get_tensor_shape(name))]
        """Inputs with a size that may differ from call to call."""
        self._sizes: list[torch.Size] = []
        self._stream = torch.cuda.Stream()

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Run the plan; results are copies that the next run does not overwrite."""
        given = dict(zip(self._inputs, tensors, strict=True))
        for name, tensor in given.items():
            self._inputs[name].view(-1)[: tensor.numel()].copy_(tensor.reshape(-1))
        # TensorRT synchronises by itself on the default stream, so the plan has a stream of its own, which
        # waits for the caller's and is waited for.
        caller = torch.cuda.current_stream()
        self._stream.wait_stream(caller)
        self._fit({name: given[name].shape for name in self._sized})
        _given(self._context.execute_async_v3(self._stream.cuda_stream) or None, "the plan does not run")
        caller.wait_stream(self._stream)
        return [buffer.clone() for buffer in self._outputs.values()]

    def _fit(self, sizes: dict[str, torch.Size]) -> None:
        """Choose the profile (`export.backends.tensorrt_process`) for inputs of these sizes; state them."""
        if list(sizes.values()) == self._sizes:
            return  # stating shapes costs a recomputation inside TensorRT
        fills = any(size != self._inputs[name].shape for name, size in sizes.items())
        chosen = self._context.set_optimization_profile_async(int(fills), self._stream.cuda_stream)
        _given(chosen or None, "the plan has no profile for such a window")
        for name, size in sizes.items():
            stated = self._context.set_input_shape(name, tuple(size))
            _given(stated or None, f"the plan takes no {name} of {list(size)}")
        self._sizes = list(sizes.values())

    def _bound(self, spec: TensorSpec) -> Tensor:
        """A buffer that the plan reads or writes under its name."""
        buffer = torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=self._device)
        bound = self._context.set_tensor_address(spec.name, buffer.data_ptr())
        _given(bound or None, f"the plan takes no address for {spec.name}")
        return buffer


def load_plan(trt: Any, path: Path, signature: Signature) -> PlanProgram:
    """Load the plan in the file `path` with the library `trt`: TensorRT or TensorRT-RTX.

    Raises:
        RuntimeError: as `PlanProgram`.
    """
    return PlanProgram(trt, path.read_bytes(), signature)


def check_table(trt: Any, engine: Any, signature: Signature) -> None:
    """Refuse a plan whose tensors are not those of the signature.

    Raises:
        RuntimeError: naming the tensors that differ.
    """
    modes = {trt.TensorIOMode.INPUT: "in", trt.TensorIOMode.OUTPUT: "out"}
    types = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.BF16: "bfloat16",
        trt.DataType.INT32: "int32",
    }
    names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
    full = {spec.name: spec.shape for spec in (*signature.inputs, *signature.outputs)}
    found = {
        (modes[engine.get_tensor_mode(name)], name, _filled(engine.get_tensor_shape(name), full.get(name)),
         types.get(engine.get_tensor_dtype(name)))
        for name in names
    }  # fmt: skip
    wanted = {
        (mode, spec.name, spec.shape, spec.dtype)
        for mode, specs in (("in", signature.inputs), ("out", signature.outputs))
        for spec in specs
    }
    if found != wanted:
        differing = ", ".join(sorted({str(entry[1]) for entry in found ^ wanted}))
        raise RuntimeError(f"the plan takes or gives something else than its manifest says: {differing}")


def _filled(shape: Any, full: tuple[int, ...] | None) -> tuple[int, ...]:
    """`shape` with the sizes of `full` where it leaves them open."""
    given = tuple(shape)
    if full is None or len(full) != len(given):
        return given
    return tuple(size if one == -1 else one for one, size in zip(given, full, strict=True))


def _given(value: Any, otherwise: str) -> Any:
    """Return `value`, or raise if it is the None or False by which the library reports an error."""
    if value is None:
        raise RuntimeError(otherwise)
    return value


def _logger(trt: Any) -> Any:
    """A logger that forwards warnings and errors to this module's."""
    levels = {
        trt.Logger.Severity.WARNING: logging.WARNING,
        trt.Logger.Severity.ERROR: logging.ERROR,
        trt.Logger.Severity.INTERNAL_ERROR: logging.ERROR,
    }

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in levels:
                log.log(levels[severity], message)

    return Log()
