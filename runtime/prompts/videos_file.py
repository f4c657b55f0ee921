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

from plugins.errors import UserError
from runtime.prompts.prompt_file import read_listing
from runtime.prompts.sources import FixedPrompts

LONGEST_NAME = 200
"""Bytes of a name at most: file systems allow 255, and the files beside a video append to its name."""


@dataclass(frozen=True, kw_only=True)
class VideoEntry:
    """One line of a `--videos` file: a video with its name, prompt and seed."""

    name: str
    """Name of its file, without the suffix."""
    prompt: str
    seed: int | None = None
    """Its seed; None takes the one of the command line."""

    def __post_init__(self) -> None:
        name = self.name
        if not name.isprintable() or name != name.strip(" .") or not name or set(name) & set("/\\:"):
            raise UserError(f"{name!r} is not a name for a file; use letters, figures and dashes")
        if len(name.encode()) > LONGEST_NAME:
            raise UserError(f"its name has more than {LONGEST_NAME} bytes; use a shorter one")
        FixedPrompts(self.prompt)  # raises for an empty prompt


def read_videos(path: Path) -> list[VideoEntry]:
    """The videos of the file at `path`, in their order, no two of one name.

    Raises:
        UserError: if there is no such file, or a line of it does not describe a video.
    """
    videos = read_listing(path, VideoEntry, key="name", example="star: a red star")
    # Some file systems treat names that differ only in case as equal.
    name, count = Counter(video.name.casefold() for video in videos).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path} names {count} videos {name!r}; give each a name of its own")
    return videos
