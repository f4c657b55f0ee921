"""Ways in which other formats can be wrong: safetensors, what `torch.save` writes, lists of prompts."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from faults.contract import EXECUTED
from faults.damage import BYTES, PLACES, Damage, rewritten
from faults.values import CHANGES, ESCAPES, JSON, in_json


def _header(change: Callable[[bytes, Random], bytes]) -> Callable[[bytes, Random], bytes]:
    """A change of the JSON text at the start of a safetensors file."""

    def apply(data: bytes, luck: Random) -> bytes:
        (size,) = struct.unpack_from("<Q", data)
        text = change(data[8 : 8 + size], luck)
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return apply


def _length(data: bytes, luck: Random) -> bytes:
    return struct.pack("<Q", luck.choice((0, 1, 2**63, 10**9, 99_999_999, len(data)))) + data[8:]


def _not_finite(data: bytes, luck: Random) -> bytes:
    """One tensor of NaN or infinities."""
    (size,) = struct.unpack_from("<Q", data)
    tensors = {k: v for k, v in json.loads(data[8 : 8 + size]).items() if k != "__metadata__"}
    chosen = luck.choice([each for each in tensors.values() if each["dtype"] in ("F16", "F32")])
    begin, end = (8 + size + offset for offset in chosen["data_offsets"])
    form = "<e" if chosen["dtype"] == "F16" else "<f"
    number = struct.pack(form, luck.choice((float("nan"), float("inf"))))
    return data[:begin] + number * ((end - begin) // len(number)) + data[end:]


class _Bomb:
    """Makes a folder when it is unpickled by who runs what a pickle says."""

    def __reduce__(self) -> Any:
        return os.mkdir, (EXECUTED,)


def _pickled(data: bytes, luck: Random) -> bytes:
    import pickle

    import torch

    kind = luck.randrange(3)
    if kind == 0:
        return pickle.dumps(_Bomb())
    file = io.BytesIO()
    torch.save({"settings": {}, "weight": _Bomb()}, file, _use_new_zipfile_serialization=kind == 1)
    return file.getvalue()


def _zipped(data: bytes, luck: Random) -> bytes:
    """A zip file of something else, or one that unpacks to far more than it is."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        if luck.random() < 0.5:
            archive.writestr("../outside.txt", "text")
        else:
            archive.writestr("archive/data.pkl", bytes(200_000_000))
    return file.getvalue()


def _text(lines: str) -> Callable[[Path, Random], None]:
    return rewritten(lambda data, luck: lines.encode())


LAUGHS = "a: &a [x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = (
    Damage("a date for a key", _text("2024-99-99: a red star\n")),
    Damage("a date for a prompt", _text("0: 2024-13-45\n")),
    Damage("a tag that runs code", _text(f"0: !!python/object/apply:os.mkdir [{EXECUTED}]\n"), refused=True),
    Damage("an unknown tag", _text("0: !thing {a: 1}\n"), refused=True),
    Damage("an anchor in itself", _text("&a {0: *a}\n"), refused=True),
    Damage("anchors a billion times", _text(LAUGHS), refused=True),
    Damage("nested deep", _text("0: " + "[" * 20_000 + "]" * 20_000 + "\n"), refused=True),
    Damage("nested by indents", _text("".join(" " * n + "a:\n" for n in range(2000))), refused=True),
    Damage("NUL", _text("0: a red\0star\n"), refused=True),
    Damage("escapes of a terminal", _text(f'0: "a red star\\e[2J{ESCAPES!r}"\n')),
    Damage("a key with escapes", _text('"\\e[2J\\a": a red star\n'), refused=True),
    Damage("100,000 entries", _text("".join(f"{n}: a red star\n" for n in range(100_000))), refused=True),
    Damage("a time not finite", _text("0: a red star\n.nan: a blue ring\n"), refused=True),
    Damage("a time without end", _text("0: a red star\n.inf: a blue ring\n"), refused=True),
    Damage("a time below zero", _text("-5: a red star\n"), refused=True),
    Damage("a key that is a list", _text("? [1, 2]\n: a red star\n"), refused=True),
    Damage("a scalar alone", _text("a red star"), refused=True),
    Damage("two documents", _text("0: a red star\n---\n1: a blue ring\n"), refused=True),
    Damage("5,000 digits", _text("9" * 5000 + ": a red star\n"), refused=True),
    Damage("a merge of itself", _text("<<: 7\n0: a red star\n"), refused=True),
    Damage("no text", rewritten(lambda data, luck: b"\xff\xfe0: a red star\n"), refused=True),
    Damage("a lone surrogate", _text('0: "a red \\ud800 star"\n')),
)
LINES = tuple(
    Damage(damage.kind, damage.apply, damage.refused)
    for damage in (
        *(Damage(kind, rewritten(in_json(change)), refused) for kind, change, refused in CHANGES),
        Damage("lines of other things", _text('{"at": 0, "prompt": "a"}\n[1]\nnull\n7\n'), refused=True),
        Damage("100,000 lines", _text('{"at": 0, "prompt": "a"}\n' * 100_000), refused=True),
    )
)
SAFETENSORS = (
    *(Damage(f"header: {kind}", rewritten(_header(in_json(change)))) for kind, change, _ in CHANGES),
    Damage("header: another length", rewritten(_length)),
)
NOT_FINITE = Damage("a tensor not finite", rewritten(_not_finite), refused=True)
PICKLE = (
    Damage("a pickle with code", rewritten(_pickled), refused=True),
    Damage("another zip file", rewritten(_zipped), refused=True),
)

WAYS: dict[str, tuple[Damage, ...]] = {
    "json": JSON,
    "jsonl": LINES,
    "yaml": YAML,
    "safetensors": SAFETENSORS,
    "weights": (*SAFETENSORS, NOT_FINITE),
    "pickle": PICKLE,
    "mp4": (),
}
"""By format, beside what can happen to every file; `weights` are read, of other tensors only the header."""


def ways(form: str) -> tuple[tuple[Damage, ...], ...]:
    """All damages of a file of this format, in groups of which each is as likely as the others."""
    own = WAYS[form]
    return (PLACES, BYTES, own, own) if own else (PLACES, BYTES)
