"""Errors for unknown names, which suggest the closest name that exists."""

from __future__ import annotations

from collections.abc import Iterable

from plugins.errors import UserError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that suggests the known name closest to `name`, to end an error with; empty if none is."""
    from difflib import get_close_matches

    written = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), written, n=1)
    return f"; did you mean {written[near[0]]}?" if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown `name` of a `kind`, such as `recipe`, with a list of the known ones."""
    names = list(known)
    return UserError(f"no such {kind}: {name}; there are {', '.join(names)}{did_you_mean(name, names)}")
