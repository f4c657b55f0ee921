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
        """Run the plan; results are copies that the next run does not overwrite.

        Raises:
            RuntimeError: if an input has a size that the plan was not built for, or the plan does not run.
        """
        given = dict(zip(self._inputs, tensors, strict=True))
        self._check_sizes(given)
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

    def _check_sizes(self, given: dict[str, Tensor]) -> None:
        """Refuse an input that is not of its full size, unless the plan leaves its sizes open.

        A smaller one would fill the front of its buffer, and the plan would read what an earlier run left
        behind it.
        """
        for name, tensor in given.items():
            full = self._inputs[name].shape
            if name not in self._sized and tensor.shape != full:
                raise RuntimeError(f"the plan takes {name} of {list(full)} alone, not {list(tensor.shape)}")

    def _fit(self, sizes: dict[str, torch.Size]) -> None:
        """Choose the first of the plan's profiles that admits inputs of these sizes; state the sizes."""
        if list(sizes.values()) == self._sizes:
            return  # stating shapes costs a recomputation inside TensorRT
        profiles = range(self._engine.num_optimization_profiles)
        place = next((number for number in profiles if self._admits(number, sizes)), None)
        place = _given(place, f"the plan has no profile for {', '.join(map(_sized, sizes.items()))}")
        chosen = self._context.set_optimization_profile_async(place, self._stream.cuda_stream)
        _given(chosen or None, f"the plan does not take its profile {place}")
        for name, size in sizes.items():
            stated = self._context.set_input_shape(name, tuple(size))
            _given(stated or None, f"the plan takes no {_sized((name, size))}")
        self._sizes = list(sizes.values())

    def _admits(self, profile: int, sizes: dict[str, torch.Size]) -> bool:
        """Whether the ranges of a profile hold inputs of these sizes."""
        for name, size in sizes.items():
            least, _, most = map(tuple, self._engine.get_tensor_profile_shape(name, profile))
            within = (low <= one <= high for low, one, high in zip(least, size, most, strict=True))
            if not all(within):
                return False
        return True

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


def _sized(named: tuple[str, torch.Size]) -> str:
    """An input's name and size, in words."""
    return f"{named[0]} of {list(named[1])}"


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
