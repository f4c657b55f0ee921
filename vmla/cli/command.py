"""How every command of the project fails: one line on the error stream, no traceback, status 2."""

from __future__ import annotations

from typing import Any

import click

from plugins.errors import UserError


class OneLineErrors(click.Group):
    """A command group whose user errors and interruptions end in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; `UserError` becomes its message."""
        with one_line_errors():
            return super().invoke(ctx)


class OneLineCommand(click.Command):
    """As `OneLineErrors`, for a command without subcommands."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; `UserError` becomes its message."""
        with one_line_errors():
            return super().invoke(ctx)


class Refusal(click.ClickException):
    """What click shows as one line."""

    exit_code = 2


class one_line_errors:  # noqa: N801 - reads as a statement
    """Turns a `UserError` raised inside into click's own exit with one line."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Replace the error of a user."""
        if isinstance(error, UserError):
            raise Refusal(str(error)) from error
