"""Ways in which a JSON document can be wrong: as text, and as values that look almost right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from faults.damage import Damage, rewritten

DEEP = 100_000
"""Levels."""
ESCAPES = "\x1b[2J\x1b]0;title\x07\r\x08"
"""Clears a terminal, names its window, writes over the line."""
TEXTS = (
    "", " ", ESCAPES, "a\0b", "\ud800", "../../outside", "/etc/passwd", "x" * 1_000_000,
    "\u202eright to left", "first\nsecond", "<script>alert(1)</script>",
)  # fmt: skip
HUGE = (10**15, 10**30, -(10**15), 2**63, 1e308, -1e308, 10**9)
OTHERS = (None, True, False, "text", "7", 7, 0.5, [], {}, [1, 2], {"a": 1}, [[]])
NUMBER = "@@number@@"
"""Stands for a number that Python's writer would not write."""

Place = tuple[Any, Any]
"""A container and a key of it."""


def places(value: Any) -> Iterator[Place]:
    """Every place in a JSON value where another could stand."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield value, key
        yield from places(each)


def is_number(value: Any) -> bool:
    """Whether it is one in JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def anywhere(value: Any, luck: Random, wanted: Callable[[Any], bool] = lambda value: True) -> Place | None:
    """A place that holds what is `wanted`; those near the top are as likely as all of a long list."""
    every = [place for place in places(value) if wanted(place[0][place[1]])]
    top = [place for place in every if place[0] is value]
    chosen = top if top and luck.random() < 0.4 else every
    return luck.choice(chosen) if chosen else None


Change = Callable[[Any, Random], Any]
"""Takes a value that it may change, and returns what is to be written: a value, or text."""


def _put(options: Callable[[Any, Random], Any], wanted: Callable[[Any], bool] = lambda value: True) -> Change:
    def change(value: Any, luck: Random) -> Any:
        place = anywhere(value, luck, wanted)
        if place is not None:
            place[0][place[1]] = options(place[0][place[1]], luck)
        return value

    return change


def _other_type(old: Any, luck: Random) -> Any:
    return luck.choice([each for each in OTHERS if type(each) is not type(old)])


def _removed(value: Any, luck: Random) -> Any:
    place = anywhere(value, luck)
    if place is not None:
        del place[0][place[1]]
    return value


def _unknown(value: Any, luck: Random) -> Any:
    inside = [place[0][place[1]] for place in places(value) if isinstance(place[0][place[1]], dict)]
    holder = luck.choice([value, *inside])
    if isinstance(holder, dict):
        holder[luck.choice(("unknown", "", ESCAPES, "../x", "__class__", "x" * 5000))] = luck.choice(OTHERS)
    return value


def _grown(value: Any, luck: Random) -> Any:
    place = anywhere(value, luck, lambda each: isinstance(each, list) and bool(each))
    if place is not None:
        place[0][place[1]] = place[0][place[1]] * luck.choice((2, 1000))
    return value


def _number(text: str) -> Change:
    """A number that is written as `text`."""
    mark = _put(lambda old, luck: NUMBER, is_number)
    return lambda value, luck: json.dumps(mark(value, luck)).replace(json.dumps(NUMBER), text)


def _nested(value: Any, luck: Random) -> Any:
    mark = _put(lambda old, luck: NUMBER)
    opening, closing = luck.choice((("[", "]"), ('{"a":', "}")))
    deep = opening * DEEP + "1" + closing * DEEP
    return json.dumps(mark(value, luck)).replace(json.dumps(NUMBER), deep, 1)


def _doubled(value: Any, luck: Random) -> Any:
    key = luck.choice(list(value)) if isinstance(value, dict) and value else "a"
    text = json.dumps(value)
    more = f"{json.dumps(key)}: {json.dumps(luck.choice(OTHERS))}"
    return f"{text[:-1]}, {more}}}" if len(text) > 2 else f"{{{more}, {more}}}"


CHANGES: tuple[tuple[str, Change, bool], ...] = (
    ("another type", _put(_other_type), False),
    ("a huge number", _put(lambda old, luck: luck.choice(HUGE), is_number), False),
    ("zero or less", _put(lambda old, luck: luck.choice((0, -1, -0.0)), is_number), False),
    ("a fraction", _put(lambda old, luck: old + 0.5, is_number), False),
    ("NaN", _number("NaN"), False),
    ("Infinity", _number("-Infinity"), False),
    ("5,000 digits", _number("9" * 5000), False),
    ("another text", _put(lambda old, luck: luck.choice(TEXTS), lambda each: isinstance(each, str)), False),
    ("a value missing", _removed, False),
    ("an unknown key", _unknown, False),
    ("a list grown", _grown, False),
    ("nested deep", _nested, True),
    ("a key twice", _doubled, True),
    ("a bare value", lambda value, luck: luck.choice(("null", "[]", "7", '"text"', "true", "")), True),
)


def _encoded(encoding: str) -> Change:
    return lambda value, luck: json.dumps(value).encode(encoding)


ENCODINGS: tuple[tuple[str, Change, bool], ...] = (
    ("with a BOM", _encoded("utf-8-sig"), False),
    ("UTF-16", _encoded("utf-16"), True),
    ("bytes that are no text", lambda value, luck: json.dumps(value).encode()[:-1] + b"\xff\xfe}", True),
)


def in_json(change: Change) -> Callable[[bytes, Random], bytes]:
    """The same as a change of the document's bytes."""

    def apply(data: bytes, luck: Random) -> bytes:
        made = change(json.loads(data), luck)
        if isinstance(made, bytes):
            return made
        return (made if isinstance(made, str) else json.dumps(made)).encode()

    return apply


JSON = tuple(
    Damage(kind, rewritten(in_json(change)), refused) for kind, change, refused in CHANGES + ENCODINGS
)
