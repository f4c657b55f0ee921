"""Makes text from outside safe for a terminal: prompts, file names and the content of files.

A terminal obeys some characters instead of showing them: escape sequences move its cursor, rename its window
or overwrite earlier lines. Here they are shown as Python's escapes, and a line stays one line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import click

JOINERS = "\u200c\u200d"
LONGEST = 1500
"""Characters of a message that is shown whole; one that quotes a prompt or a damaged file may have
millions."""
SHOWN = 1000, 400
"""Characters shown of the start and of the end of a longer message."""


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
    """Print each of `lines` as one printable line, to standard error if `err`."""
    for line in lines:
        click.echo(printable(line), err=err)


def warn(warnings: Iterable[str]) -> None:
    """Print each of `warnings` to standard error, in one line with `warning:` before it."""
    say(*(one_line(f"warning: {warning}") for warning in warnings), err=True)


def _is_harmless(character: str) -> bool:
    """Whether a terminal simply shows the character: printable ones, other scripts' spaces, and joiners."""
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
