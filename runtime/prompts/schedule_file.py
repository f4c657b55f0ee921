"""A file of prompts over time: YAML, or JSON lines if its name ends in .jsonl.

    0: a red star bouncing on a navy background
    20: a blue ring orbiting on a black background
    40: {prompt: a green cross spinning on a gray background, policy: reset}

The same as JSON lines has on each line `{"at": 20, "prompt": "...", "policy": "recache"}`; a YAML list
of such objects will do as well. `at` counts seconds of the video.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from plugins.errors import UserError
from runtime.prompts.prompt_file import read_listing
from runtime.prompts.sources import Policy, PromptChange, PromptSchedule
from vmla.cache import ChunkLengths
from vmla.config import FRAMES_PER_SECOND
from vmla.vae import Codec, frames_in


@dataclass(frozen=True, kw_only=True)
class ScheduleEntry:
    """One line of a schedule: the prompt from second `at` of the video on."""

    at: float
    prompt: str
    policy: Policy = "recache"

    def __post_init__(self) -> None:
        PromptChange(chunk=0, prompts=(self.prompt,), policy=self.policy)  # raises for an empty prompt


def read_schedule(path: Path) -> list[ScheduleEntry]:
    """The entries of the file at `path`, in their order.

    Raises:
        UserError: if there is no such file, or a line of it is not an entry.
    """
    return read_listing(path, ScheduleEntry, key="at", example="0: a red star")


def to_schedule(
    entries: Sequence[ScheduleEntry], *, chunks: int, lengths: ChunkLengths, codec: Codec
) -> PromptSchedule:
    """The entries at the edges of chunks: each applies from the first chunk that begins at or after it.

    Raises:
        UserError: for entries out of order, two at one edge, one past the end, or none at the start.
    """
    frames = [frames_in(lengths.start(n), codec) if n else 0 for n in range(chunks)]
    starts = [first / FRAMES_PER_SECOND for first in frames]
    changes: list[PromptChange] = []
    before = 0.0
    for entry in entries:
        if not entry.at >= before:
            raise UserError(f"prompts out of order: one at {entry.at:g} s comes after one at {before:g} s")
        number = bisect_left(starts, entry.at)
        if number == len(starts):
            raise UserError(
                f"the prompt at {entry.at:g} s would begin past the last chunk, at {starts[-1]:g} s; "
                "make the video longer or leave the prompt out"
            )
        if changes and changes[-1].chunk == number:
            raise UserError(
                f"prompts overlap: those at {before:g} s and {entry.at:g} s both begin with the chunk "
                f"at {starts[number]:g} s; keep them {_longest(starts):g} s apart"
            )
        changes.append(PromptChange(chunk=number, prompts=(entry.prompt,), policy=entry.policy))
        before = entry.at
    if not changes or changes[0].chunk != 0:
        raise UserError("no prompt begins at 0 s; add one, or give the first with --prompt")
    return PromptSchedule(changes)


def _longest(starts: Sequence[float]) -> float:
    """Seconds of the longest chunk before the last; 1 for a lone chunk, whose length is not known here."""
    return max((after - before for before, after in pairwise(starts)), default=1.0)
