"""The folder of a stream on disk: its video, state, index of chunks, changes of prompt and description."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from plugins.atomic_files import atomic_write_text, temporary_path
from plugins.documents.json_file import parse_json, read_json
from plugins.documents.regular_file import read_text
from plugins.documents.typed import typed
from plugins.errors import UserError
from runtime.prompts.sources import Policy, PromptChange
from runtime.resume.sidecar import sidecar_path
from runtime.resume.state import state_path
from runtime.serve.disk.index import ChunkIndex

Kind = Literal["session", "video"]
Status = Literal["queued", "ready", "paused", "completed", "stopped", "failed"]
OVER = ("completed", "stopped", "failed")
"""Statuses in which no more chunks will be made."""


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """The description of a stream, as `stream.json` records it."""

    id: str
    kind: Kind
    prompt: str
    seed: int
    frames: int | None
    """Frames of the whole video; None if it is endless."""
    created: float
    """When the stream was begun, in seconds since 1970."""
    lease: float
    """Seconds that it stays in memory without viewers."""
    first: int = 0
    """The number of the first chunk in its file: more than 0 if it came here from another server."""
    parent: str | None = None
    """The stream that it was forked from."""
    status: Status = "queued"
    error: str | None = None
    """Why it failed, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class AppliedChange:
    """A change of prompt that took effect."""

    chunk: int
    prompt: str
    policy: Policy
    event_ids: tuple[str, ...] = ()
    """The ids under which clients asked for it."""

    @property
    def change(self) -> PromptChange:
        """The change in the form that a rollout takes."""
        return PromptChange(chunk=self.chunk, prompts=(self.prompt,), policy=self.policy)


class StreamFolder:
    """The folder of a stream, `path`, whose name is its id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video, self.state = path / "video.mp4", state_path(path / "video.mp4")
        self.chunks, self._info = path / "chunks.txt", path / "stream.json"
        self._prompts = path / "prompts.jsonl"
        self.owner = path / "owner"
        """The file that says which server has the stream, where several share the store; see
        `runtime.serve.disk.fence`."""

    def read(self) -> StreamInfo:
        """Read the description of the stream.

        Raises:
            UserError: if there is no valid one.
        """
        info = typed(read_json(self._info), StreamInfo, "this stream", others="ignore")
        if info.id != self.path.name or info.first < 0:
            raise UserError(f"{self._info} is of another stream")
        return info

    def write(self, info: StreamInfo) -> None:
        """Write the description of the stream."""
        self.path.mkdir(exist_ok=True)
        atomic_write_text(self._info, json.dumps(asdict(info), indent=1))

    @property
    def has_info(self) -> bool:
        """Whether there is a stream here."""
        return self._info.exists()

    def stamp(self) -> tuple[int, ...]:
        """A value that changes whenever the files in the folder do."""
        there = [file.stat() for file in (self._info, self.chunks, self._prompts) if file.exists()]
        return tuple(number for one in there for number in (one.st_mtime_ns, one.st_size))

    def changes(self) -> list[AppliedChange]:
        """The prompts that took effect after the first; a last line that a crash left unfinished is dropped.

        Raises:
            UserError: if a line is not a change of prompt.
            OSError: if the file cannot be read.
        """
        if not self._prompts.exists():
            return []
        lines = read_text(self._prompts).split("\n")[:-1]
        where = str(self._prompts)
        return typed([parse_json(line, where) for line in lines], list[AppliedChange], where)

    def add_change(self, change: AppliedChange) -> None:
        """Append a change before a chunk is made under it, replacing a line that a crash left unfinished."""
        if self._prompts.exists() and not (before := read_text(self._prompts)).endswith("\n"):
            atomic_write_text(self._prompts, before[: before.rfind("\n") + 1])
        with self._prompts.open("a") as file:
            file.write(json.dumps(asdict(change)) + "\n")

    def fork(
        self, other: StreamFolder, info: StreamInfo, *, end: int, changes: Sequence[AppliedChange]
    ) -> None:
        """Copy the past of this stream into `other`, the folder of the stream `info`.

        That is the first `end` bytes of its video with their index, and these `changes` of the prompt.
        """
        other.write(info)
        if end:
            _copy(self.video, other.video, end)
            shutil.copyfile(self.chunks, other.chunks)
            ChunkIndex(other.chunks, info.first).cut(end)
        for change in changes:
            other.add_change(change)

    def remove(self) -> None:
        """Remove all files written here, and the folder if nothing else is in it."""
        ours = (
            self.video,
            self.state,
            sidecar_path(self.video),
            self.chunks,
            self._prompts,
            self._info,
            self.owner,
        )
        for file in ours:
            file.unlink(missing_ok=True)
            temporary_path(file).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()


def _copy(source: Path, target: Path, count: int) -> None:
    """Copy the first `count` bytes of a file that may still grow."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while count and (piece := reader.read(min(count, 1 << 20))):
            count -= writer.write(piece)
