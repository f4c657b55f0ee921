"""The reference of all commands, generated from click, so that it cannot differ from them."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]


def scripts() -> dict[str, click.Command]:
    """Every command that `pyproject.toml` installs, by its name."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    found = {}
    for name, place in named.items():
        module, function = place.split(":")
        found[name] = getattr(importlib.import_module(module), function)
    return found


def command_reference() -> str:
    """A reference of all commands, with their arguments, options and defaults, as Markdown."""
    lines = ["# Commands", "", "Generated from the commands themselves; `--help` says the same.", ""]
    for name, command in scripts().items():
        lines += _command(name, _opened(name, command), level=2)
    return "\n".join(lines)


def verbs_help() -> dict[str, str]:
    """The help of each verb of `vmla-bench` for a terminal of 80 columns.

    Stored in `bench/verbs.json`, because the verbs load PyTorch and their help need not wait for it.
    """
    from bench.cli import VERBS, main

    # Two columns stay free at the right, as click leaves them.
    above = click.Context(main, info_name="vmla-bench", terminal_width=78, **main.context_settings)
    found = {verb: main.get_command(above, verb) for verb in VERBS}
    return {
        verb: command.get_help(click.Context(command, parent=above, info_name=verb))
        for verb, command in found.items()
        if command is not None
    }


def _opened(name: str, command: click.Command, above: click.Context | None = None) -> click.Context:
    """The context that the command line would give it: click keeps the first help option that it makes."""
    return click.Context(command, parent=above, info_name=name, **command.context_settings)


def _command(name: str, context: click.Context, level: int) -> Iterator[str]:
    """A command with its subcommands, a section each."""
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from (f"{'#' * level} {name}", "", " ".join((command.help or "").split()), "")
    yield from ("```text", usage, "```", "")
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    if options:
        yield from ("| option | | |", "|---|---|---|", *(_option(one, context) for one in options), "")
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                yield from _command(f"{name} {inner}", _opened(inner, found, context), level + 1)


def _option(option: click.Option, context: click.Context) -> str:
    """One row of an option: its names, its values, its help."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    said = " ".join((option.help or "").split())
    default = option.get_default(context)
    if option.show_default and default not in (None, ()) and not option.is_flag:
        said += f" Default: `{default}`."
    if option.required:
        said += " Required."
    if isinstance(option.type, click.Choice):
        takes = ", ".join(f"`{choice}`" for choice in option.type.choices)
    else:
        takes = "" if option.is_flag else f"`{option.make_metavar(context)}`"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (names, takes, said)) + " |"
