"""Loads the programs of an engine folder through the backend that built them, and checks their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from export.backends.base import Backend, Program
from export.checks import backend_of, build_command, sound_copy
from export.engine.manifest import Manifest, Signature
from plugins.errors import UserError


def load_programs(folder: Path, manifest: Manifest) -> dict[str, Program]:
    """Load all programs of the engine in `folder`, from files whose hashes are those of its manifest.

    Raises:
        UserError: if a file has changed since the engine was built, or does not load here.
    """
    backend = backend_of(manifest, folder)
    with sound_copy(manifest, folder) as copy:
        return {name: _loaded(backend, copy, name, manifest, folder) for name in manifest.programs}


def _loaded(backend: Backend, copy: Path, name: str, manifest: Manifest, folder: Path) -> Program:
    try:
        return backend.load(copy, name, manifest)
    except (RuntimeError, OSError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
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
