"""`--device`, as every command has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vmla.cli.device import AUTO, KINDS
from vmla.cli.options.choices import Choice

BY_ITSELF = "a GPU if there is one, else the CPU"


class DeviceName(click.ParamType[str]):
    """The name of a torch device, or `auto`. Whether it is there is looked at when it is used."""

    name = "device"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The usual ones; torch knows more."""
        return f"[{'|'.join(KINDS)}|cuda:N|...]"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The usual ones."""
        return Choice(KINDS).shell_complete(ctx, param, incomplete)


def device_option(
    does: str = "Torch device", *, auto: str = BY_ITSELF, kinds: tuple[str, ...] | None = None
) -> Callable[[Any], Any]:
    """The option `--device`.

    Args:
        does: what it is, such as `Torch device that trains`.
        auto: what `auto`, the default, stands for.
        kinds: the only names that it takes, besides `auto`; any device of torch if not given.
    """
    taken: click.ParamType[str] = DeviceName() if kinds is None else Choice((AUTO, *kinds))
    return click.option("--device", type=taken, default=AUTO, help=f"{does}; auto: {auto}.")
