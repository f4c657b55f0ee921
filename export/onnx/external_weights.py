"""Writes weights beside an ONNX graph one at a time, so that no model is ever whole in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Source = Callable[[str, Tensor], Tensor | None]
"""Returns the values of a weight, given its name and a tensor of its shape and dtype; None for zeros."""

ALIGNMENT = 4096
"""Alignment in bytes: a page, so that each weight can be memory-mapped."""


def put_beside(model: Any, path: Path, source: Source) -> None:
    """Write the weights of `model` to a file beside `path`, and make the model refer to it.

    A weight of zeros becomes a hole in the file, which takes no disk space.
    """
    import onnx_ir as ir

    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for name, value in model.graph.initializers.items():
            tensor, beside = value.const_value, {"name": name, "base_dir": path.parent}
            start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.seek(start)
            numbers = source(name, tensor.raw)
            if numbers is not None:
                file.write(numbers.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            file.truncate(start + tensor.nbytes)  # extends the file: for zeros, by a hole
            file.seek(start + tensor.nbytes)
            value.const_value = ir.ExternalTensor(
                data.name, start, tensor.nbytes, tensor.dtype, shape=tensor.shape, **beside
            )
