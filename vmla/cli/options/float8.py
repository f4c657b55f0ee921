"""`--precision` and `--cache`, as every command has them that makes videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from vmla.cli.options.choices import Choice


def precision_option() -> Callable[[Any], Any]:
    """The option `--precision`, of the products of linear layers."""
    return click.option(
        "--precision", type=Choice(["fp8"]),
        help="Compute most linear layers in float8, on a GPU (default: as --dtype).",
    )  # fmt: skip


def cache_option() -> Callable[[Any], Any]:
    """The option `--cache`, of the type of its entries."""
    return click.option(
        "--cache", type=Choice(["fp8"]),
        help="Keep the cache in float8, rotary keys in bfloat16 (default: as --dtype).",
    )  # fmt: skip
