"""`--config video.yaml`: options from a file, under the names that they have on the command line."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import click

from plugins.errors import UserError


def read_config(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    """Take the values in the YAML file at `path` as the command's defaults; the command line overrides them.

    Raises:
        UserError: for a key that is not an option, or a value of another type.
    """
    if path is None:
        return
    from plugins.documents.typed import typed
    from plugins.documents.yaml_file import read_yaml

    values = read_yaml(path)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} is not a mapping of options; write for example: seconds: 5")
    known = {each.name: _kind(each) for each in context.command.params if _may_be_given(each)}
    fields = [(name, kind | None, field(default=None)) for name, kind in known.items()]
    given = {key.replace("-", "_"): value for key, value in values.items()}
    if odd := [key for key, value in values.items() if isinstance(value, str) and "\0" in value]:
        raise UserError(f"{path}: field {odd[0]} has a NUL in it; write it again")
    typed(given, make_dataclass("Options", fields, kw_only=True, frozen=True), str(path))
    context.default_map = {**(context.default_map or {}), **given}


def _may_be_given(each: click.Parameter) -> bool:
    return isinstance(each, click.Option) and each.expose_value


def _kind(each: click.Parameter) -> Any:
    """The type of an option's value in a file."""
    if isinstance(each, click.Option) and each.is_flag:
        return bool
    kinds = {click.types.IntParamType: int, click.types.FloatParamType: float}
    kind = next((made for kind, made in kinds.items() if isinstance(each.type, kind)), str)
    return list[kind] if each.multiple else kind  # type: ignore[attr-defined,valid-type]


config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="YAML file of options, by their long names; the command line wins.",
)
