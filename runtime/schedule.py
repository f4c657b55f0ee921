"""A file of prompts over time: YAML, or JSON lines if its name ends in .jsonl.

    0: a red star bouncing on a navy background
    20: a blue ring orbiting on a black background
    40: {prompt: a green cross spinning on a gray background, policy: reset}

The same as JSON lines has on each line `{"at": 20, "prompt": "...", "policy": "recache"}`; a YAML list
of such objects will do as well. `at` counts seconds of the video.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from runtime.plan import frames_in
from runtime.prompts import Change, Policy, Schedule
from vmla.config import FRAMES_PER_SECOND
from vmla.errors import UserError
from vmla.vae import Codec


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a file: what shall be seen from second `at` on."""

    at: float
    prompt: str
    policy: Policy = "recache"


def read_schedule(path: Path) -> list[Entry]:
    """The entries of the file at `path`, in their order.

    Raises:
        UserError: if there is no such file, or a line of it is no entry.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts in {path}: {error}") from error
    values = _from_json_lines(text, path) if path.suffix == ".jsonl" else _from_yaml(text, path)
    if not values:
        raise UserError(f"{path} holds no prompt; write one a line, for example: 0: a red star")
    return [_entry(value, f"{path}, entry {number}") for number, value in enumerate(values, 1)]


def to_schedule(entries: Sequence[Entry], *, chunks: int, chunk: int, codec: Codec) -> Schedule:
    """The entries at the edges of chunks: each applies from the first chunk that begins at or after it.

    Raises:
        UserError: for entries out of order, two at one edge, one past the end, or none at the start.
    """
    starts = [frames_in(n, chunk, codec) / FRAMES_PER_SECOND if n else 0.0 for n in range(chunks)]
    changes: list[Change] = []
    before = 0.0
    for entry in entries:
        if not entry.at >= before:
            raise UserError(f"prompts out of order: one at {entry.at:g} s comes after one at {before:g} s")
        number = next((n for n, start in enumerate(starts) if start >= entry.at), None)
        if number is None:
            raise UserError(
                f"the prompt at {entry.at:g} s would begin past the last chunk, at {starts[-1]:g} s; "
                "make the video longer or leave the prompt out"
            )
        if changes and changes[-1].chunk == number:
            raise UserError(
                f"prompts overlap: those at {before:g} s and {entry.at:g} s both begin with the chunk "
                f"at {starts[number]:g} s; keep them {starts[1] if chunks > 1 else 1:g} s apart"
            )
        changes.append(Change(chunk=number, prompts=(entry.prompt,), policy=entry.policy))
        before = entry.at
    if not changes or changes[0].chunk != 0:
        raise UserError("no prompt begins at 0 s; add one, or give the first with --prompt")
    return Schedule(changes)


def _from_json_lines(text: str, path: Path) -> list[Any]:
    values = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is not valid JSON: {error}") from error
    return values


def _from_yaml(text: str, path: Path) -> list[Any]:
    """A list as it is; of a mapping each pair in its order, also doubles, which YAML would drop."""
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            value = None if node is None else loader.construct_document(node)
        else:
            pairs = [[loader.construct_object(part, deep=True) for part in pair] for pair in node.value]
            value = [
                {"at": at, **said} if isinstance(said, dict) else {"at": at, "prompt": said}
                for at, said in pairs
            ]
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {reason}") from error
    finally:
        loader.dispose()
    if value is not None and not isinstance(value, list):
        raise UserError(f"{path} holds no list of prompts; write one a line, for example: 0: a red star")
    return value or []


def _entry(value: Any, where: str) -> Entry:
    if not isinstance(value, dict) or not {"at", "prompt"} <= value.keys() <= {"at", "prompt", "policy"}:
        raise UserError(f"{where} is not what a prompt looks like: it has at, prompt and perhaps policy")
    at, prompt, policy = value["at"], value["prompt"], value.get("policy", "recache")
    if isinstance(at, bool) or not isinstance(at, int | float):
        raise UserError(f"{where}: {at!r} is no time; give seconds of the video")
    if not isinstance(prompt, str):
        raise UserError(f"{where}: {prompt!r} is no prompt; put quotes around it")
    Change(chunk=0, prompts=(prompt,), policy=policy)  # refuses what cannot be
    return Entry(at=float(at), prompt=prompt, policy=cast(Policy, policy))
