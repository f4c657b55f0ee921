"""The tokenizer of a published model, through transformers, which does whatever its files say.

Those files hold small programs: replacements that a text grows by, and regular expressions. Only those are
taken that end soon and need little memory, whatever the prompt. Those of T5's tokenizers do; expressions that
repeat around groups, as some language models have them, are refused.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from vmla.text.byte_tokenizer import ByteTokenizer
from vmla.text.word_tokenizer import KINDS

LONGEST = 256
"""Times that a text may grow, and bytes that may take a character's place. Of Unicode's own
normalisations the longest takes 33."""
MOST_ADDED = 16
"""Tokens that may be added to each text; T5 adds one."""
PARTS = ("normalizer", "pre_tokenizer", "post_processor")
"""What works on a text, besides the vocabulary."""
SPELT = re.compile(r"\\[pP]\{\^?\w*\}|\\.", re.DOTALL)
"""An escape in a regular expression: one character, or a class of them."""
CLASS = re.compile(r"\[[^\]]*\]")
REPEATED = re.compile(r"[*+?{]")


class PublishedTokenizer:
    """The tokenizer of a published model, through transformers."""

    def __init__(self, inner: Any, where: str) -> None:
        """Take a tokenizer of transformers; `where` names its files in errors.

        Raises:
            UserError: if it has no token to pad with, or a rule that may take very long.
        """
        self._inner, self._where = inner, where
        if not isinstance(inner.pad_token_id, int):
            raise UserError(f"{where} has no token to pad with; copy it again")
        rust = getattr(inner, "backend_tokenizer", None)
        if rust is not None:
            _check_rules(rust, where)

    @classmethod
    def of(cls, folder: Path, kind: str | None) -> PublishedTokenizer:
        """The one in `folder`, saved by the class `kind`; no code from there runs."""
        inner = _published(kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return cls(inner, f"the tokenizer in {folder}")

    @property
    def kind(self) -> str:
        """The class of transformers that reads its files."""
        return type(self._inner).__name__

    @property
    def pad(self) -> int:
        """The token number that fills the places behind a prompt's end."""
        return self._inner.pad_token_id

    def __len__(self) -> int:
        """How many token numbers there are."""
        return len(self._inner)

    def numbers(self, text: str, *, limit: int | None = None) -> list[int]:
        """Token numbers of `text`, then of its end; with a `limit`, the text is cut to fit.

        Raises:
            UserError: if the tokenizer fails.
        """
        try:
            found = self._inner(text, truncation=limit is not None, max_length=limit)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in Rust is no `Exception`
            said = str(error).partition("\n")[0]
            raise UserError(f"{self._where} cannot read the prompt: {said}; copy it again") from error
        numbers: list[int] = found["input_ids"]
        return numbers

    def save(self, folder: Path) -> None:
        """Write its files into `folder`."""
        self._inner.save_pretrained(folder)


def _published(kind: str | None) -> Any:
    """transformers' class for a tokenizer saved as `kind`; `AutoTokenizer` needs a model beside some."""
    if kind == ByteTokenizer.kind:
        from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

        return ByT5Tokenizer
    if kind in KINDS:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _check_rules(rust: Any, where: str) -> None:
    """Refuse rules by which a text might grow without measure, or be read for hours."""
    if rust.num_special_tokens_to_add(False) > MOST_ADDED:
        raise UserError(f"{where} adds more than {MOST_ADDED} tokens to each text; copy it again")
    growth = 1
    for part in PARTS:
        rules = getattr(rust, part)
        for rule in () if rules is None else _objects(json.loads(rules.__getstate__())):
            if (pattern := rule.get("Regex")) is not None and not ends_soon(pattern):
                raise UserError(
                    f"{where}: its {part} has a regular expression that may take very long; copy it again"
                )
            growth *= 1 + len(rule.get("content", rule.get("prepend", "")))
            if growth > LONGEST or _longest(rule.get("precompiled_charsmap")) > LONGEST:
                raise UserError(f"{where}: its {part} makes a text far longer; copy it again")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Each JSON object in `value`, `value` itself included."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(each)


def _longest(charsmap: str | None) -> int:
    """Bytes of the longest replacement in SentencePiece's table: a trie's size, the trie, replacements."""
    table = base64.b64decode(charsmap or "")
    return max(map(len, table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")))


def ends_soon(pattern: str) -> bool:
    """Whether a search takes at most the square of a text's length: each alternative repeats one thing.

    A group that is repeated, or two repetitions in a row, may be tried in exponentially many ways.
    """
    plain = SPELT.sub("x", pattern)
    if "(" in plain:
        return not REPEATED.search(plain.replace("(?", "("))
    return all(len(REPEATED.findall(branch)) <= 1 for branch in CLASS.sub("x", plain).split("|"))
