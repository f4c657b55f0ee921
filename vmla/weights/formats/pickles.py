"""Files that `torch.save` wrote, read as tensors alone: no code in them is ever run.

A zip file (since PyTorch 1.6) is mapped, so that a tensor takes memory when it is used; a legacy file is
read whole, because its tensors lie behind one another in one pickle.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from plugins.documents.regular_file import opened
from plugins.errors import UserError

PARTS = ("generator_ema", "generator", "model", "critic", "state_dict", "module")
"""Networks that a training checkpoint may hold, in the order of preference."""
LORA_PART = "generator_lora"
"""The generator's part of LongLive's LoRA files, which also hold the critic's."""
PLAIN = (bool, int, float, str, bytes, type(None), np.generic)
"""Types that may lie among the tensors without being weights: a step, a loss, a version."""


UNREADABLE = (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, LookupError, TypeError)
"""Exceptions of `load_plain`, for files that are damaged or hold anything else."""
CODE = re.compile(r"GLOBAL ([\w.]{1,100})")
"""Finds in PyTorch's refusal the name of the class or function that it did not import."""


def open_pickle(path: Path, part: str | None = None) -> dict[str, Tensor]:
    """The tensors of `read_pickle`, among which nothing else may lie.

    Raises:
        UserError: as there, and for a value that is not a tensor.
    """
    tensors, plain = read_pickle(path, part)
    if plain:
        raise _no_tensor(path, plain[0])
    return tensors


def read_pickle(path: Path, part: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a file of `torch.save`, and the names of other entries beside its tensors.

    That is plain values among them, and the file's other networks.

    Args:
        path: loaded with `weights_only`: no code in it is ever run.
        part: one of `PARTS`; the first that is there if not given.

    Raises:
        UserError: if it is damaged, needs code to be run, holds more than tensors, or has no such part.
    """
    chosen, others = _chosen(path, part)
    tensors = {name: value for name, value in chosen.items() if isinstance(value, Tensor)}
    return tensors, [*(name for name in chosen if name not in tensors), *others]


def _chosen(path: Path, part: str | None) -> tuple[Mapping[str, Any], list[str]]:
    held = _load(path)
    if not isinstance(held, Mapping):
        raise UserError(f"{path} holds a {type(held).__name__}, not tensors by name")
    if part == LORA_PART:  # a file of one LoRA has its tensors at the top
        part = part if part in held else None
    elif LORA_PART in held:
        raise UserError(f"{path} holds LoRA weights; give their base model with --from, and it with --lora")
    chosen, others = _part(held, part, path)
    for name, value in chosen.items():
        if not isinstance(name, str) or not isinstance(value, (Tensor, *PLAIN)):
            raise _no_tensor(path, str(name))
        if isinstance(value, Tensor) and not _dense(value):
            raise UserError(f"{path}: tensor {name} is sparse, quantized or without values; save it densely")
    return chosen, others


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor has all its numbers, one by one."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _no_tensor(path: Path, name: str) -> UserError:
    return UserError(f"{path}: {name} is not a tensor; save its state dict alone, or name its part")


def _load(path: Path) -> Any:
    try:
        with opened(path, mend="copy it again") as file, torch.serialization.safe_globals(_numbers()):
            mapped = zipfile.is_zipfile(file)
            file.seek(0)
            return load_plain(path if mapped else file)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    named = CODE.search(str(error)) if isinstance(error, UnpicklingError) else None
    if named is not None:
        return UserError(
            f"{path} holds {named[1]} beside its tensors; reading it would run code, so that it is refused; "
            f"save its state dict alone"
        )
    return UserError(
        f"{path} cannot be read as a file of tensors alone; copy it again, or save its state dict again"
    )


def load_plain(file: Path | BinaryIO) -> Any:
    """The object in a file of `torch.save`, of tensors and plain values; a path is memory-mapped.

    Raises:
        Exception: one of `UNREADABLE`, if it is damaged or holds anything else.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # PyTorch warns about old files and protocols, which are refused or read here anyway
        return torch.load(file, map_location="cpu", weights_only=True, mmap=isinstance(file, Path))


def _numbers() -> list[Any]:
    """The functions of a pickled numpy number, under the names of numpy 1 and 2; they only hold bytes."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [np.dtype, *kinds, *((scalar, name) for name in names)]


def _part(held: Mapping[str, Any], part: str | None, path: Path) -> tuple[Mapping[str, Any], list[str]]:
    """The network that is asked for, or the first that is there, and the names of the others."""
    there = [name for name in (*PARTS, LORA_PART) if isinstance(held.get(name), Mapping)]
    if part is None and not there:
        return held, []
    name = part or there[0]
    if name not in there:
        raise UserError(f"{path} has no part {name}; it has {', '.join(there) or 'tensors alone'}")
    return held[name], [other for other in there if other != name]
