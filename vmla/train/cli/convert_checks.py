"""Options of `vmla-train convert` that a source or a result would leave without effect: they are refused.

An option is checked if it was given, whatever its value; defaults are for the sources that they fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from plugins.errors import UserError
from vmla.config import Layout

OF_FILES = ("preset", "part", "variant", "lora", "strength", "names", "cuts", "heads", "sizes", "revision")
"""Options that say how weights are read."""
OF_OTHERS = ("names", "cuts", "sizes")
"""Options that say what the configuration of a checkpoint of ours says itself."""
OF_NEW_LATENTS = (
    "kv_lora_rank", "qk_rope_head_dim", "q_lora_rank", "init", "whiten", "balance", "key_weight", "stack",
    "gains", "rotary", "biases", "latent_gains",
)  # fmt: skip
"""Options that say how latent attention is made of Wan's."""
OF_A_CHANGE = ("calibration", "clips", "seed")
"""Options that say what a change of layout is fitted to."""


class Given:
    """The options that a user gave, on the command line or in a file."""

    def __init__(self, context: click.Context) -> None:
        defaults = (ParameterSource.DEFAULT, None)
        names = {each.name: each.opts[0] for each in context.command.params if each.name is not None}
        self._flags = {
            name: flag for name, flag in names.items() if context.get_parameter_source(name) not in defaults
        }

    def refuse(self, options: Iterable[str], why: str) -> None:
        """Refuse the first of `options` that was given.

        Raises:
            UserError: in one line that names it.
        """
        for name in options:
            if name in self._flags:
                raise UserError(f"{self._flags[name]} {why}; leave it out")


def check_together(options: Mapping[str, Any], given: Given, auto: str) -> None:
    """Refuse options that need another one, or exclude each other; `auto` is the value of such a `--map`.

    Raises:
        UserError: naming the option.
    """
    if options["lora"] is None:
        given.refuse(["strength"], "is the strength of a LoRA, and there is no --lora")
    if options["cuts"] is not None:
        given.refuse(["names"], "says nothing that --map does not say")
    if options["cuts"] != Path(auto):
        given.refuse(["heads"], f"is for --map {auto}")


def check_ours(path: Path, given: Given) -> None:
    """Refuse options for other people's weights where `path` is a checkpoint of ours.

    Raises:
        UserError: naming the option.
    """
    given.refuse(OF_OTHERS, f"is for weights of others, and {path} is a checkpoint of this project")


def check_change(before: Layout, after: Layout, given: Given) -> None:
    """Refuse options of a change of layout that is not made.

    Raises:
        UserError: naming the option.
    """
    if before == after:
        given.refuse([*OF_NEW_LATENTS, *OF_A_CHANGE], f"is for a change of layout, and {after} stays {after}")
    elif after == "mha":
        given.refuse(OF_NEW_LATENTS, "is for latent attention, which the result does not have")
