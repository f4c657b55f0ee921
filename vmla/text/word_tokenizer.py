"""A tokenizer of whole words, whatever their case, in the files of the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmla.text.special import NAMES, SPECIAL, named
from vmla.weights.formats.files import write_json

BETWEEN_WORDS = r"[\s,.;]+"
"""Separators of words; `vmla.world.caption.read` ignores the same punctuation."""
KINDS = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Names of one class of transformers, in its versions 5 and 4."""
NAMED = re.compile(f"({'|'.join(SPECIAL)})")


class WordTokenizer:
    """Each word that it knows is a token, every other word is the same one; it ends a prompt as T5 does."""

    kind = KINDS[1]
    pad = SPECIAL.index("<pad>")

    def __init__(self, words: Sequence[str]) -> None:
        """`words`, in lower case, are the vocabulary besides T5's special tokens."""
        self._number = {word: number for number, word in enumerate([*SPECIAL, *words])}

    @classmethod
    def of(cls, settings: Mapping[str, Any], contents: Mapping[str, Any]) -> WordTokenizer | None:
        """The tokenizer of a `tokenizer_config.json` and a `tokenizer.json`; None for another kind."""
        if settings.get("tokenizer_class") not in KINDS or not named(settings):
            return None
        model = contents.get("model")
        number = model.get("vocab") if isinstance(model, Mapping) else None
        if not isinstance(number, Mapping) or not all(isinstance(n, int) for n in number.values()):
            return None
        tokenizer = cls(sorted(number, key=lambda word: number[word])[len(SPECIAL) :])
        # Older files also say how the last text was cut.
        same = {**contents, "truncation": None, "padding": None} == tokenizer.contents()
        return tokenizer if same else None

    def __len__(self) -> int:
        """How many token numbers there are."""
        return len(self._number)

    def numbers(self, text: str, *, limit: int | None = None) -> list[int]:
        """Token numbers of `text`, then of its end; with a `limit`, the text is cut to fit."""
        content = list(self._numbers(text))
        return [*content[: None if limit is None else limit - 1], self._number["</s>"]]

    def _numbers(self, text: str) -> Iterator[int]:
        for part in NAMED.split(text):
            words = [part] if part in SPECIAL else re.split(BETWEEN_WORDS, part.lower())
            yield from (self._number.get(word, self._number["<unk>"]) for word in words if word)

    def save(self, folder: Path) -> None:
        """Write its files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        inputs = {"model_input_names": ["input_ids", "attention_mask"]}
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": self.kind, **NAMES, **inputs})
        write_json(folder / "tokenizer.json", self.contents())

    def contents(self) -> dict[str, Any]:
        """The content of its `tokenizer.json`, in the format of the `tokenizers` library."""
        pad, end, unknown = SPECIAL
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added = [{"id": number, "content": word, **flags} for number, word in enumerate(SPECIAL)]
        split = {"type": "Split", "pattern": {"Regex": BETWEEN_WORDS}, "behavior": "Removed", "invert": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": split,
            "post_processor": _ending(end, self._number[end]),
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": self._number, "unk_token": unknown},
        }


def _ending(end: str, number: int) -> dict[str, Any]:
    """The post-processor that puts the token `end` behind a text."""
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [first, {"SpecialToken": {"id": end, "type_id": 0}}],
        "pair": [first, second],
        "special_tokens": {end: {"id": end, "ids": [number], "tokens": [end]}},
    }
