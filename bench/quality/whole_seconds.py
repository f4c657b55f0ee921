"""Seconds of a video at which something is looked at, as the `--seconds` of a command lists them."""

from __future__ import annotations

from typing import Any

import click


class WholeSeconds(click.ParamType):
    """Reads a list such as 1,60,179: whole seconds, in order, each once."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The seconds of the list; refuses what is no such list."""
        if isinstance(value, tuple):
            return value
        if not all(part.isdecimal() and int(part) > 0 for part in value.split(",")):
            self.fail(f"{value!r} is not a list of whole seconds such as 1,60,179", param, ctx)
        return tuple(sorted({int(part) for part in value.split(",")}))
