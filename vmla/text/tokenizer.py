"""The protocol of tokenizers, and opening a folder's: ours, or a published model's by transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from plugins.documents.json_file import read_json
from plugins.documents.regular_file import check_size
from plugins.documents.typed import Between, typed
from plugins.errors import UserError
from vmla.text.byte_tokenizer import ByteTokenizer
from vmla.text.published import PublishedTokenizer
from vmla.text.word_tokenizer import KINDS, WordTokenizer

PIECES = "tokenizer.json"
"""The file that holds the vocabulary."""
LARGEST = 2**26
"""Bytes of it that are read at most: four times the file of UMT5, of 256,000 pieces."""
SMALL = ("added_tokens.json", "special_tokens_map.json")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The fields of `tokenizer_config.json` that decide who reads the rest, and for how long."""

    tokenizer_class: str | None = None
    extra_ids: Annotated[int, Between(0, 1000)] | None = None
    """Tokens that T5's classes make up one by one; there are 100, 125 or 300 of them."""


class Tokenizer(Protocol):
    """Text to token numbers, in the files that transformers' class of the name `kind` reads and writes."""

    @property
    def kind(self) -> str:
        """The class of transformers that reads its files."""

    @property
    def pad(self) -> int:
        """The token number that fills the places behind a prompt's end."""

    def __len__(self) -> int:
        """How many token numbers there are."""

    def numbers(self, text: str, *, limit: int | None = None) -> list[int]:
        """Token numbers of `text`, then of its end; with a `limit`, the text is cut to fit."""

    def save(self, folder: Path) -> None:
        """Write its files into `folder`."""


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`; no code from that folder runs, whatever its files ask for.

    Raises:
        UserError: if its files are damaged, or do not fit together.
    """
    place = folder / "tokenizer_config.json"
    settings = read_json(place)
    kind = typed(settings, Kind, str(place), others="ignore").tokenizer_class
    for name in SMALL:  # transformers reads these files: damage is reported here first, in one line of ours
        _read(folder / name)
    ours: Tokenizer | None = ByteTokenizer.of(settings)
    if ours is None and kind in KINDS:
        ours = WordTokenizer.of(settings, _read(folder / PIECES))
    return _read_published(folder, kind) if ours is None else ours


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, largest=LARGEST) if path.exists() else {}


def _read_published(folder: Path, kind: str | None) -> PublishedTokenizer:
    """The tokenizer in `folder`, by transformers, which parses `PIECES` four times as fast as we would."""
    if (folder / PIECES).exists():
        check_size(folder / PIECES, largest=LARGEST)
    try:
        return PublishedTokenizer.of(folder, kind)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - the reader of tokenizer.json raises the bare class
        _read(folder / PIECES)  # names the byte at which the JSON is damaged
        raise UserError(f"cannot load the tokenizer in {folder}; copy it again") from error
