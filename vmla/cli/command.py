"""How every command of the project ends: with one line on standard error and no traceback.

A mistake of the user exits with status 2, a signal with 128 plus its number (`Stop`, the `obj` of click's
context, handles all signals). A command goes on if standard output or standard error cannot be written to.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from plugins.errors import UserError
from vmla.cli.common_options import COMMON, SETTINGS, log_level, log_options, version_option
from vmla.cli.logs import logging_to_stderr
from vmla.cli.options.choices import list_choices
from vmla.cli.stopping import Interrupted, Stop
from vmla.cli.streams import forgiving_streams
from vmla.cli.terminal import LONGEST, one_line, say

log = logging.getLogger(__name__)

HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What click since 8.2 raises where a command has nothing to do: its help, which has many lines."""


class Verb(click.Command):
    """A command that logs as `-v`, `-q` and `--log-level` say, and shows defaults in its help."""

    def __init__(
        self, *arguments: Any, groups: Mapping[str, Sequence[str]] | None = None, **settings: Any
    ) -> None:
        """`groups` are headings for options in the help, which are listed by name; the rest come after."""
        settings["context_settings"] = {**SETTINGS, **(settings.get("context_settings") or {})}
        super().__init__(*arguments, **settings)
        taken = {name for each in self.params for name in each.opts}
        self.params += [each for each in log_options() if not taken & {*each.opts}]
        self._groups = groups or {}
        for each in self.params:
            list_choices(each)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands, if this is a group, then options under their headings, the common ones last."""
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        options = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        left = {_name(each): line for each in options if (line := each.get_help_record(ctx))}
        parts = {heading: [left.pop(name) for name in names] for heading, names in self._groups.items()}
        common = [left.pop(name) for name in COMMON if name in left]
        rest = "Other options" if self._groups else "Options"
        for heading, lines in {**parts, rest: [*left.values()], "Common options": common}.items():
            if lines:
                with formatter.section(heading):
                    formatter.write_dl(lines)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; `-` is a path only where it stands for standard output."""
        left = super().parse_args(ctx, args)
        for each in self.params:
            given = ctx.params.get(each.name or "")
            paths = given if isinstance(given, tuple) else (given,)
            if not isinstance(each.type, click.Path) or each.type.allow_dash:
                continue
            if Path("-") in paths:
                raise click.BadParameter("- is not a standard stream here; name a file or folder", ctx, each)
            if each.name == "output" and given is not None and (odd := _no_place(Path(given))):
                raise click.BadParameter(odd, ctx, each)
        return left

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, with logging set to the level that its options ask for."""
        with logging_to_stderr(log_level(ctx)):
            return super().invoke(ctx)


def _name(option: click.Option) -> str:
    """The name of the parameter of `option`; click's own name for `--help` changes with its version."""
    return "help" if "--help" in option.opts else str(option.name)


class OneLine(Verb):
    """Base of `OneLineErrors` and `OneLineCommand`: signals, streams and the conversion of errors."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.params.append(version_option())

    def main(self, args: Sequence[str] | None = None, *others: Any, **kwargs: Any) -> Any:
        """Run the command, with signals and streams taken care of.

        Without `args` it is the command of this process, which ends with it.
        """
        with forgiving_streams(), Stop(final=args is None) as stop:
            return super().main(args, *others, obj=stop, **kwargs)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the command line; a mistake in it is reported in one line too."""
        with one_line_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; `UserError` becomes its message."""
        stop = ctx.ensure_object(Stop)
        with one_line_errors(stop), stop.raised():
            return super().invoke(ctx)


class OneLineErrors(OneLine, click.Group):
    """A command group whose user errors and interruptions end in one line.

    Its commands are listed in the order in which they were defined, each with all of its first sentence.
    """

    command_class = Verb

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order in which they were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their short help."""
        with formatter.section("Commands"):
            formatter.write_dl([
                (name, command.get_short_help_str(limit=LONGEST))
                for name in self.list_commands(ctx)
                if (command := self.get_command(ctx, name)) is not None
            ])  # fmt: skip


class OneLineCommand(OneLine):
    """A command without subcommands whose user errors and interruptions end in one line."""


class Refusal(click.ClickException):
    """A `UserError` as click's own exception, which click prints as one line and exits with status 2."""

    exit_code = 2


class one_line_errors:  # noqa: N801 - reads as a statement
    """Turns a `UserError` raised inside into click's own exit with one line, a signal into its status."""

    def __init__(self, stop: Stop | None = None) -> None:
        """`stop` gives the lines to print after a signal: what was saved and how to resume."""
        self._stop = stop or Stop()

    def __enter__(self) -> None:
        """Begin the block; errors are converted when it ends."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Convert a `UserError`, an `OSError` or a signal into click's exit; let all else pass."""
        if isinstance(error, UserError):
            raise Refusal(one_line(_with_place(str(error)))) from error
        if isinstance(error, Interrupted):
            say(*self._stop.parting(f"stopped by {error}"), err=True)
            raise click.exceptions.Exit(error.status) from error
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _of_memory(error)):
            raise Refusal("memory ran out; ask for less at once") from error
        if isinstance(error, OSError):
            raise Refusal(one_line(_with_place(_refused_by_the_system(error)))) from error
        if isinstance(error, click.UsageError) and not isinstance(error, HELP):
            said = error.format_message()
            if (better := one_line(_with_place(said))) != said:
                raise click.UsageError(better, error.ctx) from error


def _refused_by_the_system(error: OSError) -> str:
    """The system's error and its file: a name that is too long, a folder that may not be read."""
    log.debug("in full:", exc_info=error)
    told = error.strerror or str(error) or type(error).__name__
    return told if error.filename is None else f"{told}: {os.fsdecode(error.filename)}"


def _of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch got no memory: on a GPU it has a class for that, on a CPU a sentence."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _no_place(output: Path) -> str | None:
    """Why no file or folder can be made at `output`, as far as that can be known before; None if it can."""
    try:
        kind = output.lstat().st_mode
        if stat.S_ISLNK(kind) and not output.is_dir():
            return f"{output} is a link to {output.readlink()}; name that instead"
    except (OSError, ValueError):
        return None  # whoever writes there says what is wrong
    if output.is_dir() or stat.S_ISREG(kind):
        return None
    return f"{output} is neither a regular file nor a folder; name another"


def _with_place(said: str) -> str:
    """`said`, and what it may come from: that the folder which names are looked up in has been removed."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return f"{said}; the working directory was removed: change to one that is there"
    return said
