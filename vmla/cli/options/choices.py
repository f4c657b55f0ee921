"""Options that take one of several names or some of them: shown as choices, refused with the nearest one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

from vmla.cli.options.names import unknown_name

WIDEST = 48
"""Characters that choices may take beside an option's name; longer ones are listed below it."""


class Choice(click.Choice[str]):
    """An option whose value is one of several names."""

    def __init__(self, choices: Iterable[str], *, kind: str | None = None, also: Sequence[str] = ()) -> None:
        """Accept one of `choices`.

        Args:
            choices: the names.
            kind: what they name, for the message that refuses one; by the name of the option if not given.
            also: names that are taken but not shown, for the command has something to say about them.
        """
        super().__init__(choices)
        self._kind, self._also = kind, also

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The choices between bars, or `NAME` where those are too wide and the help lists them."""
        shown = super().get_metavar(param, ctx)
        return "NAME" if is_listed(self, param) else shown

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name that was given.

        Raises:
            UserError: if there is none such, with what there is and what may have been meant.
        """
        if value not in self.choices and value not in self._also:
            raise unknown_name(self._kind or kind_of(param), str(value), self.choices)
        return str(value)


class ChoiceList(click.ParamType):  # no generic one in click 8.2
    """Some of several names, separated by commas, in the order in which they are given."""

    name = "names"

    def __init__(self, choices: Iterable[str]) -> None:
        self.choices = tuple(choices)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The choices between bars, or `NAMES` where those are too wide and the help lists them."""
        return "NAME,..." if is_listed(self, param) else f"[{'|'.join(self.choices)}],..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The names of the list, each once.

        Raises:
            UserError: for one that there is not.
        """
        if isinstance(value, tuple):
            return value
        named = dict.fromkeys(part.strip() for part in value.split(","))
        return tuple(Choice(self.choices).convert(name, param, ctx) for name in named)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Complete the last name of the list."""
        before, comma, last = incomplete.rpartition(",")
        found = Choice(self.choices).shell_complete(ctx, param, last)
        for item in found:
            item.value = before + comma + item.value
        return found


def kind_of(param: click.Parameter | None) -> str:
    """The word for one value of an option or argument, from its name: `precision` for `--precisions`."""
    if param is None:
        return "name"
    longest = max(param.opts, key=len).lstrip("-")
    return longest.removesuffix("s") if isinstance(param.type, ChoiceList) else longest


def is_listed(kind: click.ParamType[Any], param: click.Parameter) -> bool:
    """Whether the choices of an option are listed in its help, because they are too wide for a column."""
    wide = isinstance(kind, Choice | ChoiceList) and len("|".join(kind.choices)) > WIDEST
    return wide and isinstance(param, click.Option)


def list_choices(param: click.Parameter) -> None:
    """Give the help of an option that takes many names a sentence that lists them."""
    if isinstance(param, click.Option) and is_listed(param.type, param):
        kind: Any = param.type
        param.help = f"{param.help} One of: {', '.join(kind.choices)}."
