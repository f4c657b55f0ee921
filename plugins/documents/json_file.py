"""Reads JSON from untrusted files; refuses duplicate keys, infinities and deep nesting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plugins.documents.regular_file import LARGEST, read_text
from plugins.errors import UserError

DEEPEST = 32
"""Levels of nesting that are read at most; Python's recursion ends at about 1000."""
LARGEST_NUMBER = 2**128
"""Bound of whole numbers, below which every one converts to a finite float."""


def read_json(path: Path, *, mend: str = "", largest: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        mend: the error's advice if the file is missing or not JSON.
        largest: bytes that it may have.

    Raises:
        UserError: if it is missing, larger, or does not hold an object of plain values.
    """
    value = parse_json(read_text(path, mend=mend, largest=largest), str(path), mend=mend)
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object{mend and f'; {mend}'}")
    return value


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The value on each non-empty line of a file, and the line's name in errors.

    Raises:
        UserError: as `read_json`.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where)


def parse_json(text: str, where: str, *, mend: str = "") -> Any:
    """The value that `text` says.

    Args:
        text: JSON.
        where: the name of the text's source in errors, such as the file's name.
        mend: the error's advice.

    Raises:
        UserError: if it is not JSON, has a duplicate key, or a value that `refuse_odd` refuses.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise UserError(f"{where} is nested more than {DEEPEST} deep{mend and f'; {mend}'}") from error
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON: {error}{mend and f'; {mend}'}") from error
    refuse_odd(value, where)
    return value


def refuse_odd(value: Any, where: str) -> None:
    """Refuse values nested too deeply, numbers that are not finite or far too large, and broken text.

    Raises:
        UserError: naming the field.
    """
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(value, ())]
    while waiting:
        item, place = waiting.pop()
        if (odd := _odd(item)) or len(place) > DEEPEST:
            said = odd or f"it is nested more than {DEEPEST} deep"
            raise UserError(f"{where}: {field(place) or 'the value'}: {said}")
        if isinstance(item, dict):
            waiting += ((key, (*place, key)) for key in item)
            waiting += ((each, (*place, key)) for key, each in item.items())
        elif isinstance(item, list):
            waiting += ((each, (*place, number)) for number, each in enumerate(item))


def field(place: tuple[Any, ...]) -> str:
    """Keys and numbers on the way to a value, as one name: `rows[3].error`."""
    text = "".join(f"[{part}]" if type(part) is int else f".{shown(part)}" for part in place[:DEEPEST])
    return text.removeprefix(".")


def shown(key: object, longest: int = 60) -> str:
    """A key for a person to read, on one line and not too long."""
    text = str(key)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _odd(value: Any) -> str | None:
    """The fault of a value that no JSON file of ours may have."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return "the number is not finite"
    if type(value) is int and abs(value) >= LARGEST_NUMBER:
        return "the number is too large"
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        return "the text holds half a character"
    return None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {shown(key)} stands there twice")
        made[key] = value
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
