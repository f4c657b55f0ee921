"""What lies on disk of a stream: its video, its state, its chunks, its prompts, and what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from plugins.atomic_files import ASIDE, atomic_write_text
from runtime.prompts.sources import Policy, PromptChange
from runtime.resume.sidecar import sidecar_path
from runtime.resume.state import state_path
from runtime.serve.disk.index import ChunkIndex

Kind = Literal["session", "video"]
Status = Literal["queued", "ready", "paused", "completed", "stopped", "failed"]
OVER = ("completed", "stopped", "failed")
"""States in which no more chunks will be made."""


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """What a stream is, as `stream.json` records it."""

    id: str
    kind: Kind
    prompt: str
    seed: int
    frames: int | None
    """Of the whole video; None if it is endless."""
    created: float
    """Seconds since 1970."""
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
    """What those who asked for it called it."""

    @property
    def change(self) -> PromptChange:
        """The same for a rollout."""
        return PromptChange(chunk=self.chunk, prompts=(self.prompt,), policy=self.policy)


class StreamFolder:
    """The folder of a stream, `path`, whose name is its id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.video, self.state = path / "video.mp4", state_path(path / "video.mp4")
        self.chunks, self._info = path / "chunks.txt", path / "stream.json"
        self._prompts = path / "prompts.jsonl"
        self.owner = path / "owner"
        """Which server has it, where several share the store; see `runtime.serve.disk.fence`."""

    def read(self) -> StreamInfo:
        """What the stream is.

        Raises:
            OSError, ValueError, TypeError: if it does not say.
        """
        return StreamInfo(**json.loads(self._info.read_text()))

    def write(self, info: StreamInfo) -> None:
        """Record what the stream is."""
        self.path.mkdir(exist_ok=True)
        atomic_write_text(self._info, json.dumps(asdict(info), indent=1))

    @property
    def has_info(self) -> bool:
        """Whether there is a stream here."""
        return self._info.exists()

    def stamp(self) -> tuple[int, ...]:
        """Another one whenever what lies here is."""
        there = [file.stat() for file in (self._info, self.chunks, self._prompts) if file.exists()]
        return tuple(number for one in there for number in (one.st_mtime_ns, one.st_size))

    def changes(self) -> list[AppliedChange]:
        """The prompts that took effect after the first, as far as they were recorded."""
        lines = self._prompts.read_text().split("\n")[:-1] if self._prompts.exists() else []
        read: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [AppliedChange(**one | {"event_ids": tuple(one["event_ids"])}) for one in read]

    def add_change(self, change: AppliedChange) -> None:
        """Record it, before any chunk is made under it."""
        with self._prompts.open("a") as file:
            file.write(json.dumps(asdict(change)) + "\n")

    def fork(
        self, other: StreamFolder, info: StreamInfo, *, end: int, changes: Sequence[AppliedChange]
    ) -> None:
        """Give `other`, of the stream `info`, the past of this one: `end` bytes and these `changes`."""
        other.write(info)
        if end:
            _copy(self.video, other.video, end)
            shutil.copyfile(self.chunks, other.chunks)
            ChunkIndex(other.chunks, info.first).cut(end)
        for change in changes:
            other.add_change(change)

    def remove(self) -> None:
        """Remove what was written here, and the folder if nothing else is in it."""
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
            file.with_name(file.name + ASIDE).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()


def _copy(source: Path, target: Path, count: int) -> None:
    """The first `count` bytes of a file that grows."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while count and (piece := reader.read(min(count, 1 << 20))):
            count -= writer.write(piece)
