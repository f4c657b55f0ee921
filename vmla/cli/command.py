"""How every command of the project fails: one line on the error stream, no traceback, status 2."""

from __future__ import annotations

from typing import Any

import click

from plugins.errors import UserError
from vmla.cli.terminal import one_line

HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What click since 8.2 raises where a command has nothing to do: its help, which has many lines."""


class OneLineErrors(click.Group):
    """A command group whose user errors and interruptions end in one line."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the command line; what is wrong with it is said in one line too."""
        with one_line_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; `UserError` becomes its message."""
        with one_line_errors():
            return super().invoke(ctx)


class OneLineCommand(click.Command):
    """As `OneLineErrors`, for a command without subcommands."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the command line; what is wrong with it is said in one line too."""
        with one_line_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; `UserError` becomes its message."""
        with one_line_errors():
            return super().invoke(ctx)


class Refusal(click.ClickException):
    """What click shows as one line."""

    exit_code = 2


class one_line_errors:  # noqa: N801 - reads as a statement
    """Turns a `UserError` raised inside into click's own exit with one line that can be printed."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Replace the error of a user."""
        if isinstance(error, UserError):
            raise Refusal(one_line(str(error))) from error
        if isinstance(error, click.UsageError) and not isinstance(error, HELP):
            said = error.format_message()
            if one_line(said) != said:
                raise click.UsageError(one_line(said), error.ctx) from error
