"""Ways in which a file can be wrong, whatever its format: another thing in its place, or other bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass(frozen=True)
class Damage:
    """One way."""

    kind: str
    apply: Callable[[Path, Random], None]
    refused: bool = False
    """Whether nobody could use the file afterwards."""


def _gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _folder(path: Path, luck: Random) -> None:
    _gone(path)
    path.mkdir()


def _pipe(path: Path, luck: Random) -> None:
    _gone(path)
    os.mkfifo(path)


def _link_to(target: str) -> Callable[[Path, Random], None]:
    def apply(path: Path, luck: Random) -> None:
        _gone(path)
        path.symlink_to(path.name if target == "itself" else target)

    return apply


def _missing(path: Path, luck: Random) -> None:
    _gone(path)


def rewritten(change: Callable[[bytes, Random], bytes]) -> Callable[[Path, Random], None]:
    """A damage that changes the bytes; the file is a new one, for the old one may have other names."""

    def apply(path: Path, luck: Random) -> None:
        data = change(path.read_bytes(), luck)
        path.unlink()
        path.write_bytes(data)

    return apply


def _cut(data: bytes, luck: Random) -> bytes:
    return data[: luck.randrange(len(data))]


def _flips(data: bytes, luck: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(luck.choice((1, 1, 4, 64))):
        # Headers are short and come first: half of the flips are for them.
        reach = luck.choice((len(changed), min(len(changed), 2000)))
        changed[luck.randrange(reach)] ^= 1 << luck.randrange(8)
    return bytes(changed)


def _noise(data: bytes, luck: Random) -> bytes:
    start = luck.randrange(len(data))
    return data[:start] + luck.randbytes(luck.choice((1, 16, 4096))) + data[start:]


def _zeros(data: bytes, luck: Random) -> bytes:
    start = luck.randrange(len(data))
    return data[:start] + bytes(luck.choice((1, 16, 512))) + data[start + 1 :]


def _doubled(data: bytes, luck: Random) -> bytes:
    return data + data


PLACES = (
    Damage("missing", _missing, refused=True),
    Damage("a folder", _folder, refused=True),
    Damage("a FIFO", _pipe, refused=True),
    Damage("a link to itself", _link_to("itself"), refused=True),
    Damage("a link to nothing", _link_to("nowhere"), refused=True),
    Damage("a link to /dev/zero", _link_to("/dev/zero"), refused=True),
)
BYTES = (
    Damage("empty", rewritten(lambda data, luck: b""), refused=True),
    Damage("nothing but NUL", rewritten(lambda data, luck: bytes(len(data))), refused=True),
    Damage("truncated", rewritten(_cut)),
    Damage("bits flipped", rewritten(_flips)),
    Damage("bytes inserted", rewritten(_noise)),
    Damage("NUL inserted", rewritten(_zeros)),
    Damage("twice in a row", rewritten(_doubled)),
)
