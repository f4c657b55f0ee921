"""A stage's state on disk: written whole or not at all, refused if it belongs to another recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from plugins.atomic_files import atomic_write
from plugins.documents.regular_file import opened
from plugins.errors import UserError
from vmla.config import current_names
from vmla.weights.formats.pickles import UNREADABLE, load_plain


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` is at every moment either the old state or the new one, whole."""
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state at `path`, None if there is none yet.

    Raises:
        UserError: if it is damaged, or was made with other settings.
    """
    if not os.path.lexists(path):
        return None
    state = read_state(path)
    refuse_other_settings(state["settings"], settings, path)
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The state at `path`, whatever its settings.

    Raises:
        UserError: if it is damaged.
    """
    mend = "remove it to train this part again"
    try:
        with opened(path, mend=mend) as file:
            state: dict[str, Any] = load_plain(file)
        state["settings"]  # KeyError: the file is not a state
    except UNREADABLE as error:
        raise UserError(f"{path} is damaged; {mend}") from error
    return state


def refuse_other_settings(made_with: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    """Compare the settings that a state was made with to those of this run.

    Raises:
        UserError: naming the first that differs.
    """
    theirs, ours = _flat(_under_current_names(made_with)), _flat(settings)
    differing = sorted(
        key for key in theirs.keys() | ours.keys() if theirs.get(key, "null") != ours.get(key, "null")
    )
    if differing:
        key = differing[0]
        raise UserError(
            f"{path} was made with {key} = {theirs.get(key)}, this recipe has {ours.get(key)}; "
            f"use another output folder or remove that file"
        )


def _under_current_names(made_with: dict[str, Any]) -> dict[str, Any]:
    """The settings of a denoiser's state may be older than the names of its model's."""
    return made_with | {"model": current_names(made_with["model"])} if "model" in made_with else made_with


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and JSON text."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
