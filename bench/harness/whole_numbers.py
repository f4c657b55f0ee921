"""Lists of whole numbers as options take them: seconds of a video, numbers of streams."""

from __future__ import annotations

from typing import Any

import click


class WholeNumbers(click.ParamType):
    """Reads a list such as 1,60,179: numbers of 1 or more, in order, each once."""

    def __init__(self, what: str = "seconds", example: str = "1,60,179") -> None:
        self.name, self._example = what, example

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers of the list; anything else is refused."""
        if isinstance(value, tuple):
            return value
        if not all(part.isdecimal() and int(part) > 0 for part in value.split(",")):
            self.fail(f"{value!r} is not a list of whole {self.name} such as {self._example}", param, ctx)
        return tuple(sorted({int(part) for part in value.split(",")}))
