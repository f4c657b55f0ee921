"""A file of videos to make at once, one a line: YAML, or JSON lines if its name ends in .jsonl.

    star: a red star bouncing on a navy background
    ring: {prompt: a blue ring orbiting on a black background, seed: 3}

The same as JSON lines has on each line `{"name": "ring", "prompt": "...", "seed": 3}`; a YAML list of
such objects will do as well.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from runtime.prompts.prompt_file import read_listing
from runtime.prompts.sources import FixedPrompts

LONGEST_NAME = 200
"""Bytes: file systems allow 255, of which endings of the files beside the video take some."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """One line of a file."""

    name: str
    """Of its file, without the ending."""
    prompt: str
    seed: int | None = None
    """None for that of all who name none."""


def read_videos(path: Path) -> list[Video]:
    """The videos of the file at `path`, in their order, no two of one name.

    Raises:
        UserError: if there is no such file, or a line of it is no video.
    """
    values = read_listing(path, key="name", example="star: a red star")
    videos = [_video(value, f"{path}, video {number}") for number, value in enumerate(values, 1)]
    # Some file systems take names that differ in case alone for the same.
    name, count = Counter(video.name.casefold() for video in videos).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path} names {count} videos {name!r}; give each a name of its own")
    return videos


def _video(value: Any, where: str) -> Video:
    if not isinstance(value, dict) or not {"name", "prompt"} <= value.keys() <= {"name", "prompt", "seed"}:
        raise UserError(f"{where} is not what a video looks like: it has name, prompt and perhaps seed")
    name, prompt, seed = value["name"], value["prompt"], value.get("seed")
    if not isinstance(name, str):
        raise UserError(f"{where}: {name!r} is no name; put quotes around it")
    if not name.isprintable() or name != name.strip(" .") or not name or set(name) & set("/\\:"):
        raise UserError(f"{where}: {name!r} is no name for a file; use letters, figures and dashes")
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"{where}: its name has more than {LONGEST_NAME} bytes; use a shorter one")
    if not isinstance(prompt, str):
        raise UserError(f"{where}: {prompt!r} is no prompt; put quotes around it")
    if "seed" in value and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise UserError(f"{where}: {seed!r} is no seed; give a whole number")
    FixedPrompts(prompt)  # refuses what cannot be
    return Video(name=name, prompt=prompt, seed=seed)
