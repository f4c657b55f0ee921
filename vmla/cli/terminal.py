"""Text from outside on its way to a terminal: prompts, names of files and what lies in them.

A terminal obeys some characters and shows none of them: escape sequences move its cursor, rename its window,
write over what was said before. Here they become what Python calls them, and a line stays a line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import click

JOINERS = "\u200c\u200d"
LONGEST = 1500
"""Characters of a message, as one that repeats a damaged file may have millions."""
SHOWN = 1000, 400
"""Characters of a longer one that are shown, of its start and of its end."""


def printable(text: str) -> str:
    """`text` with every character that a terminal would not simply show as its escape: `\\x1b`, `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(each if _is_harmless(each) else _escaped(each) for each in text)


def one_line(text: str) -> str:
    """`text` as one printable line that a person can still read: the middle of a long one is left out."""
    if len(text) > LONGEST:
        text = f"{text[: SHOWN[0]]} ... {text[-SHOWN[1] :]}"
    return printable(text)


def say(*lines: str, err: bool = False) -> None:
    """Print each of `lines`, whatever is in it, as one printable line; on standard error if `err`."""
    for line in lines:
        click.echo(printable(line), err=err)


def warn(warnings: Iterable[str]) -> None:
    """Print each of `warnings`, as such, on standard error."""
    say(*(f"warning: {warning}" for warning in warnings), err=True)


def _is_harmless(character: str) -> bool:
    """Printable ones, spaces of other scripts, and what joins letters and emoji."""
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
