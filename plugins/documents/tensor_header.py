"""Reads the header of a safetensors file: names, shapes and types of its tensors, without the tensors.

Eight bytes with the length of a JSON object, that object, and the tensors one behind the other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from plugins.documents.json_file import parse_json
from plugins.documents.regular_file import LARGEST, opened
from plugins.documents.typed import typed
from plugins.errors import UserError

METADATA = "__metadata__"
BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one number, by the format's name of its type."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]
    """Its first byte and the one behind its last, counted from the end of the header."""


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """Names, shapes and notes of a file of tensors."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, by name."""
        return {name: entry.shape for name, entry in self.tensors.items()}


def read_header(path: Path, *, mend: str = "copy it again") -> TensorHeader:
    """The header of the safetensors file `path`, which must be whole.

    Args:
        path: of the file.
        mend: the error's advice if it is missing or damaged.

    Raises:
        UserError: if it is missing, cut short, or describes tensors that its bytes do not hold.
    """
    with opened(path, mend=mend) as file:
        return header_in(file, str(path), mend=mend)


def header_in(file: BinaryIO, where: str, *, mend: str = "copy it again") -> TensorHeader:
    """The header at the beginning of an open file, which errors call `where`.

    Raises:
        UserError: as `read_header`.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(LARGEST, size - 8):
        raise UserError(f"{where} is damaged (it has no whole header){mend and f'; {mend}'}")
    try:
        values = parse_json(file.read(length).decode(), where, mend=mend)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is damaged (its header is not text){mend and f'; {mend}'}") from error
    metadata = values.pop(METADATA, {}) if isinstance(values, dict) else {}
    tensors = typed(values, dict[str, TensorEntry], f"{where} is damaged", mend=mend)
    header = TensorHeader(
        tensors=tensors,
        metadata=typed(metadata, dict[str, str], f"{where} is damaged: {METADATA}", mend=mend),
    )
    if (fault := _fault(tensors, size - 8 - length)) is not None:
        raise UserError(f"{where} is damaged ({fault}){mend and f'; {mend}'}")
    return header


def _fault(tensors: Mapping[str, TensorEntry], held: int) -> str | None:
    """The fault, if any, of the tensors' offsets in the `held` bytes behind the header."""
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda pair: pair[1].data_offsets):
        first, behind = entry.data_offsets
        if first != end or behind < first or any(length < 0 for length in entry.shape):
            return f"tensor {name} lies where no tensor should"
        width: Any = BYTES.get(entry.dtype)
        if width is not None and math.prod(entry.shape) * width != behind - first:
            return f"tensor {name} has not the bytes of its shape"
        end = behind
    return None if end == held else f"its tensors take {end:,} bytes, it holds {held:,}"
