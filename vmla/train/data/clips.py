"""Sets of clips to train on: a folder of `vmla-train encode`, or the rendered clips of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from plugins.documents.json_file import read_json
from plugins.documents.typed import typed
from plugins.errors import UserError
from vmla.config import ModelConfig
from vmla.train.data.latents import LatentSet, joined
from vmla.train.data.shard_column import Column
from vmla.train.loop.state import read_state
from vmla.weights.formats.files import read_tensors

INDEX = "clips.json"
NEGATIVE = "negative.safetensors"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of an encoded set, and the names of its clips."""

    file: str
    names: list[str]

    def __post_init__(self) -> None:
        if self.file in ("", "..") or Path(self.file).name != self.file:
            raise UserError(f"the shard {self.file!r:.60} does not lie beside its index")


@dataclass(frozen=True, kw_only=True)
class ClipIndex:
    """The fields that we read of `clips.json`."""

    settings: dict[str, Any]
    shards: list[Shard]


def read_index(folder: Path) -> ClipIndex:
    """The index of an encoded set.

    Raises:
        UserError: if it is missing, or `vmla-train encode` did not write it.
    """
    mend = "run vmla-train encode again"
    return typed(read_json(folder / INDEX), ClipIndex, str(folder / INDEX), others="ignore", mend=mend)


def open_clips(folder: Path, config: ModelConfig, *, video: bool = True) -> LatentSet:
    """The clips in `folder`, for a model of `config`.

    Args:
        folder: of `vmla-train encode`, or the `latents` folder of a run.
        config: of the model that is to read them.
        video: whether latents are needed; a list of prompts has none.

    Raises:
        UserError: if there are none, or they are of another size than the model's.
    """
    clips = _encoded(folder) if (folder / INDEX).exists() else _rendered(folder)
    if video and not len(clips.latents):
        raise UserError(f"{folder} holds prompts alone; this stage needs clips of video")
    if len(clips.latents):
        _check(folder, "latents", (clips.latents.shape[1], *clips.latents.shape[3:]),
               (config.in_channels, config.sample_height, config.sample_width))  # fmt: skip
    _check(folder, "text", tuple(clips.text.shape[1:]), (config.text_tokens, config.text_dim))
    return clips


def _check(folder: Path, what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        sizes = " x ".join(map(str, found)), " x ".join(map(str, wanted))
        raise UserError(f"{folder} holds {what} of {sizes[0]}, the model reads {sizes[1]}; encode again")


def _encoded(folder: Path) -> LatentSet:
    index = read_index(folder)
    shards = [(folder / shard.file, len(shard.names)) for shard in index.shards]
    settings, has_video = index.settings, bool(index.settings.get("frames"))
    if not shards:
        raise UserError(f"{folder} holds no clips; look at what vmla-train encode skipped")
    path = folder / NEGATIVE
    negative = read_tensors(path)["text"] if path.exists() else None
    latents: Any = Column(shards, "latents") if has_video else torch.empty(0)
    return LatentSet(latents, Column(shards, "text"), settings, negative)


def _rendered(folder: Path) -> LatentSet:
    """The clips of a run's stage `latents`, which are small enough to be held in memory."""
    paths = sorted(folder.glob("latents-*.pt"))
    if not paths:
        raise UserError(f"{folder} holds no clips; make some with vmla-train encode, or vmla-train run")
    return joined([read_state(path) for path in paths])
