"""Options that every command has: its version, and how much it logs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from plugins.errors import UserError
from vmla.cli.logs import LEVELS, default_level
from vmla.cli.machine import check_threads
from vmla.cli.options.choices import Choice
from vmla.cli.terminal import say

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
"""Settings of click's context, for commands and their subcommands."""
COMMON = ("config", "verbose", "quiet", "log_level", "version", "help")
"""Options that mean the same for every command that has them, by the names of their parameters."""
_LEVEL = "vmla.cli.log_level"


class FiniteRange(click.FloatRange):
    """A finite number within bounds: click alone accepts NaN, since every comparison with it is false."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert `value`, and refuse NaN and infinities."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class ThreadCount(click.IntRange):
    """A number of CPU threads that this machine has use for."""

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; refuses one that would end the process."""
        number = super().convert(value, param, ctx)
        check_threads(number)
        return number


def log_level(context: click.Context) -> str:
    """The level that the command line asks for, else the default."""
    return str(context.meta.get(_LEVEL) or default_level())


def log_options() -> list[click.Option]:
    """The options `-v`, `-q` and `--log-level`; each stores a level, and the last one given wins."""
    return [
        _option(["-v", "--verbose"], _setting("debug"), is_flag=True, help="Log everything."),
        _option(["-q", "--quiet"], _setting("error"), is_flag=True, help="Log only errors; no progress."),
        _option(["--log-level"], _setting(None), type=Choice(LEVELS),
                help="Lowest level that is logged (default: info on a terminal, else warning)."),
    ]  # fmt: skip


def version_option() -> click.Option:
    """The option `--version`, which prints the installed version and exits before anything else runs."""
    return _option(["--version"], _say_version, is_flag=True, is_eager=True, help="Print the version.")


def _option(names: list[str], callback: Callable[..., None], **settings: Any) -> click.Option:
    return click.Option(names, expose_value=False, callback=callback, **settings)


def _setting(level: str | None) -> Callable[..., None]:
    def note(context: click.Context, option: click.Parameter, value: Any) -> None:
        if value:
            context.meta[_LEVEL] = level or value

    return note


def _say_version(context: click.Context, option: click.Parameter, value: bool) -> None:
    """Print the version and exit.

    Raises:
        UserError: where the project is not installed.
    """
    if not value or context.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        say(f"{context.find_root().info_name} {version('videomla')}")
    except PackageNotFoundError as error:
        raise UserError("this checkout is not installed, so it has no version: pip install -e .") from error
    context.exit()
