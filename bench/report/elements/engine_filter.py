"""A choice of engine at the top of the page, made of CSS alone, for a page that runs no script.

What belongs to an engine carries a name that begins with it: `data-engine="aoti fp32"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

HIDDEN = {"tr": "display:none", "g": "opacity:.12"}
"""Styles of elements that belong to other engines: rows vanish, bars fade because their places stay."""


def named(name: str) -> str:
    """The attribute of an element that belongs to the engine that `name` begins with."""
    return f' data-engine="{escape(name)} "'


def engines_of(documents: Sequence[dict[str, object]]) -> list[str]:
    """The engines that have a row in one of the documents, as they come."""
    found: dict[str, None] = {}
    for document in documents:
        parts = [document, *(part for part in document.values() if isinstance(part, dict))]
        for rows in (part.get("rows") for part in parts):
            for row in rows if isinstance(rows, list | tuple) else ():
                if isinstance(row, dict) and {"engine", "precision"} <= row.keys():
                    found[str(row["engine"])] = None
    return list(found)


def choice(engines: Sequence[str]) -> str:
    """The buttons, and the rules that hide the other engines' results; nothing for a single engine."""
    if len(engines) < 2:
        return ""
    names = ["all engines", *engines]
    buttons = "".join(
        f'<label><input type="radio" name="engine" id="engine-{number}"{" checked" if not number else ""}> '
        f"{escape(name)}</label> "
        for number, name in enumerate(names)
    )
    rules = "".join(
        f"body:has(#engine-{number}:checked) {element}[data-engine]:not([data-engine^={_quoted(name + ' ')}])"
        f"{{{hidden}}}"
        for number, name in enumerate(names)
        for element, hidden in HIDDEN.items()
        if number
    )
    return f"<form class=filter>{buttons}</form><style>{rules}</style>"


def _quoted(text: str) -> str:
    """A string of CSS, which cannot end the element that it stands in either."""
    safe = (sign if sign.isalnum() or sign in " -_." else f"\\{ord(sign):x} " for sign in text)
    return f'"{"".join(safe)}"'
