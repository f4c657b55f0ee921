"""`vmla-train encode`: videos and captions once through the codec and the text encoder, into shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.documents.json_file import parse_json
from plugins.documents.lock import locked
from plugins.documents.tensor_header import read_header
from plugins.documents.typed import typed
from plugins.errors import UserError
from vmla.text import TextEncoder
from vmla.train.data.by_ray import absolute_if_local, make_shards
from vmla.train.data.clips import INDEX, NEGATIVE, read_index
from vmla.train.data.video_files import Unusable, captioned, read_video, text_of
from vmla.train.loop.state import refuse_other_settings
from vmla.vae import Codec
from vmla.weights.checkpoint import Checkpoint, open_checkpoint
from vmla.weights.formats.files import write_json, write_tensors

Report = Callable[[str], None]
Item = tuple[str, Path | None, str]
"""A clip's name, its video file (None for a prompt alone) and its caption."""


@dataclass(frozen=True)
class Piece:
    """The items that go into one shard."""

    first: int
    """The number of the first of its items."""
    items: list[Item]

    @property
    def names(self) -> list[str]:
        """The clips' names, in the order of the shard."""
        return [name for name, _, _ in self.items]

    def place(self, folder: Path) -> Path:
        """Path of the shard's file in `folder`, which has the number of its first item."""
        return folder / f"clips-{self.first:07d}.safetensors"

    def absolute(self) -> Piece:
        """This piece with absolute paths, for a process in any working directory."""
        return Piece(self.first, [(name, path and path.absolute(), said) for name, path, said in self.items])


@dataclass(frozen=True)
class Encoder:
    """Encodes videos and captions, with all models on one device."""

    codec: Codec | None
    """Encodes the videos; None where only prompts are encoded."""
    text: TextEncoder
    frames: int
    """Latent frames of a clip."""
    height: int
    width: int
    """Size in pixels that videos are scaled and cropped to."""
    device: torch.device

    @torch.inference_mode()
    def __call__(self, item: Item) -> dict[str, Tensor]:
        """`text`, and `latents` if there is a video, both float16.

        Raises:
            Unusable: for a video that cannot be used.
        """
        _, path, caption = item
        if not caption:
            raise Unusable("has no caption")
        made = {"text": self.text([caption])[0].half().cpu()}
        if self.codec is not None and path is not None:
            frames = self.codec.first_frames + (self.frames - 1) * self.codec.temporal_ratio
            video = read_video(path, frames=frames, height=self.height, width=self.width)
            made["latents"] = self.codec.encode(video[None].to(self.device))[0].half().cpu()
        return made


def encode(
    source: Path, checkpoint: str, folder: Path, report: Report, *, frames: int, shard: int, device: str,
    negative: str | None, ray: bool = False,
) -> None:  # fmt: skip
    """Encode a folder of captioned videos, or a text file with a prompt on each line, into `folder`.

    A checkpoint that was converted with a preset gives the preset's negative prompt, unless one is named.
    Shards that are there already are left as they are. Videos that cannot be used are reported and listed in
    the index. With `ray` shards are made over the machines of a cluster, all of which see `source` and
    `folder`.

    Raises:
        UserError: for a missing source, one of which nothing can be encoded, or a folder that was encoded
            otherwise.
    """
    items = _items(source)
    opened, place = open_checkpoint(checkpoint), torch.device(device)
    preset = opened.preset()
    if negative is None and preset is not None and preset.negative_prompt is not None:
        negative = preset.negative_prompt
        report(f"negative prompt of the preset: {negative}")
    encoder = _encoder(opened, place, frames=frames, video=source.is_dir())
    settings = {
        "source": str(source), "checkpoint": str(checkpoint), "frames": frames if source.is_dir() else 0,
        "shard": shard, "height": encoder.height, "width": encoder.width, "negative": negative,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists():
        refuse_other_settings(read_index(folder).settings, settings, folder / INDEX)
    if negative is not None:
        embedded = encoder.text([negative])[0].half().cpu()
        write_tensors(folder / NEGATIVE, {"text": embedded}, {"format": "pt"})
    pieces = [Piece(first, items[first : first + shard]) for first in range(0, len(items), shard)]
    shards: list[dict[str, Any]] = []
    with locked(folder):
        if ray:
            begin = partial(
                _begin, absolute_if_local(checkpoint), frames, source.is_dir(), device, folder.absolute()
            )
            missing = [piece.absolute() for piece in pieces if _made(piece, folder) is None]
            make_shards(begin, missing, report, processors=0, device=device)
        for piece in pieces:
            report(f"encode: {piece.first} of {len(items)}")
            shards.append(_shard(piece, folder, encoder, report))
            kept = [each for each in shards if each["names"]]
            write_json(folder / INDEX, {"settings": settings, "shards": kept, "skipped": _skipped(shards)})
    made = sum(len(each["names"]) for each in shards)
    if not made:
        name, reason = next(iter(_skipped(shards).items()))
        raise UserError(f"none of the clips in {source} could be encoded; {name} {reason}")
    report(f"encoded {made} of {len(items)} into {folder}")


def _encoder(opened: Checkpoint, place: torch.device, *, frames: int, video: bool) -> Encoder:
    config, codec, text = opened.model_config(), opened.codec().to(place) if video else None, opened.text()
    text.encoder.to(place)
    ratio = codec.spatial_ratio if codec is not None else 1
    return Encoder(
        codec, text, frames, config.sample_height * ratio, config.sample_width * ratio, place
    )  # fmt: skip


def _items(source: Path) -> list[Item]:
    if source.is_dir():
        return [(str(path.relative_to(source)), path, caption) for path, caption in captioned(source)]
    if not source.is_file():
        raise UserError(f"no {source}; give a folder of videos, or a text file with a prompt on each line")
    lines = [" ".join(line.split()) for line in text_of(source).splitlines()]
    items: list[Item] = [(f"line {n}", None, line) for n, line in enumerate(lines, start=1) if line]
    if not items:
        raise UserError(f"{source} holds no prompts; write one on each line")
    return items


def _begin(
    checkpoint: str, frames: int, video: bool, device: str, folder: Path
) -> Callable[[Piece], list[str]]:
    """Returns the function that makes a shard, in a process of its own."""
    encoder = _encoder(open_checkpoint(checkpoint), torch.device(device), frames=frames, video=video)

    def make(piece: Piece) -> list[str]:
        said: list[str] = []
        _shard(piece, folder, encoder, said.append)
        return said

    return make


def _made(piece: Piece, folder: Path) -> dict[str, Any] | None:
    """The record in the shard of `piece`, if it is there and holds exactly that piece."""
    notes = _notes(piece.place(folder))
    return notes if notes is not None and notes["wanted"] == piece.names else None


def _shard(piece: Piece, folder: Path, encoder: Encoder, report: Report) -> dict[str, Any]:
    """Encode one shard, or find it encoded: its file, the names in it, and those left out with the reason."""
    if (notes := _made(piece, folder)) is not None:
        return notes
    path, made, names, skipped = piece.place(folder), [], [], {}
    for item in piece.items:
        try:
            made.append(encoder(item))
            names.append(item[0])
        except Unusable as reason:
            skipped[item[0]] = str(reason)
            report(f"skipped {item[0]}: it {reason}")
    notes = {"file": path.name, "names": names, "skipped": skipped, "wanted": piece.names}
    columns = {key: torch.stack([tensors[key] for tensors in made]) for key in (made[0] if made else ())}
    write_tensors(path, columns, {"format": "pt", "notes": json.dumps(notes)})
    return notes


@dataclass(frozen=True, kw_only=True)
class ShardNotes:
    """The clips in a shard, and the videos left out of it."""

    file: str
    names: list[str]
    skipped: dict[str, str]
    wanted: list[str]


def _notes(path: Path) -> dict[str, Any] | None:
    """The notes in a shard's metadata; None if the file is not there.

    Raises:
        UserError: if it is cut short.
    """
    if not path.exists():
        return None
    notes = parse_json(read_header(path, mend="remove it").metadata.get("notes", "{}"), str(path))
    return asdict(typed(notes, ShardNotes, str(path), mend="remove it"))


def _skipped(shards: list[dict[str, Any]]) -> dict[str, str]:
    return {name: reason for shard in shards for name, reason in shard["skipped"].items()}
