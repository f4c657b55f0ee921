"""Loads the programs of an engine folder through the backend that built them, and checks their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from export.backends.base import Program
from export.checks import backend_of, build_command
from export.engine.manifest import Manifest, Signature
from plugins.errors import UserError


def load_program(folder: Path, name: str, manifest: Manifest) -> Program:
    """Load the program called `name` of the engine in `folder`.

    Raises:
        UserError: if its file does not load on this machine.
    """
    try:
        return backend_of(manifest, folder).load(folder, name, manifest)
    except (RuntimeError, OSError) as error:
        said = str(error).strip().splitlines()[0]
        mend = build_command(manifest, folder)
        raise UserError(f"{folder}: {name} does not load ({said}); run: {mend}") from error


def check_inputs(signature: Signature, tensors: Sequence[Tensor]) -> None:
    """Refuse tensors whose shape or dtype the program was not compiled for; it would not notice itself.

    Raises:
        ValueError: naming the tensor.
    """
    for spec, tensor in zip(signature.inputs, tensors, strict=True):
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tuple(tensor.shape) != spec.shape or dtype != spec.dtype:
            wanted = f"{spec.dtype} {list(spec.shape)}"
            raise ValueError(f"{spec.name} is {dtype} {list(tensor.shape)}; the engine takes {wanted}")
