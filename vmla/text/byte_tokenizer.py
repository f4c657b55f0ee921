"""ByT5's tokenizer: each byte of a text is a token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vmla.text.special import NAMES, SPECIAL, named
from vmla.weights.formats.files import write_json

EXTRA = 125
"""Tokens that ByT5 reserves after those of the bytes; a text names them like `<extra_id_0>`."""
BYTES = 256
"""Values of a byte, each of which is a token of its own, after the special ones."""
END = SPECIAL.index("</s>")
NAMED = re.compile(rf"\s*({'|'.join(SPECIAL)})\s*|<extra_id_({'|'.join(map(str, range(EXTRA)))})>")
"""Special tokens that a text may name; whitespace around the first three is part of them."""


class ByteTokenizer:
    """ByT5's tokenizer with the settings that transformers' `ByT5Tokenizer` has by default."""

    kind = "ByT5Tokenizer"
    pad = SPECIAL.index("<pad>")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ByteTokenizer | None:
        """The tokenizer that a `tokenizer_config.json` describes; None if it describes another kind."""
        extra = settings.get("extra_special_tokens", settings.get("additional_special_tokens"))
        usual = [f"<extra_id_{number}>" for number in range(EXTRA)]
        if settings.get("tokenizer_class") != cls.kind or not named(settings):
            return None
        return cls() if extra == usual or (extra is None and settings.get("extra_ids") == EXTRA) else None

    def __len__(self) -> int:
        """How many token numbers there are."""
        return len(SPECIAL) + BYTES + EXTRA

    def numbers(self, text: str, *, limit: int | None = None) -> list[int]:
        """Token numbers of `text`, then of its end; with a `limit`, the text is cut to fit."""
        content = list(_numbers(text))[: None if limit is None else limit - 1]
        return content if content[-1:] == [END] else [*content, END]

    def save(self, folder: Path) -> None:
        """Write its files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"tokenizer_class": self.kind, **NAMES, "extra_ids": EXTRA}
        write_json(folder / "tokenizer_config.json", settings)


def _numbers(text: str) -> Iterator[int]:
    place = 0
    for found in NAMED.finditer(text):
        yield from (byte + len(SPECIAL) for byte in text[place : found.start()].encode())
        special, extra = found.groups()
        yield SPECIAL.index(special) if special else len(SPECIAL) + BYTES + int(extra)
        place = found.end()
    yield from (byte + len(SPECIAL) for byte in text[place:].encode())
