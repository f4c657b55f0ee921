"""`vmla-train encode`: videos and captions once through the codec and the text encoder, into shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.documents.json_file import parse_json
from plugins.documents.tensor_header import read_header
from plugins.documents.typed import typed
from plugins.errors import UserError
from vmla.text import TextEncoder
from vmla.train.data.clips import INDEX, NEGATIVE, read_index
from vmla.train.data.video_files import Unusable, captioned, read_video, text_of
from vmla.train.loop.state import refuse_other_settings
from vmla.vae import Codec
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.formats.files import write_json, write_tensors

Report = Callable[[str], None]
Item = tuple[str, Path | None, str]
"""Name, video and caption."""


@dataclass(frozen=True)
class Encoder:
    """What turns a video and a caption into tensors, all on one device."""

    codec: Codec | None
    """None for prompts alone."""
    text: TextEncoder
    frames: int
    """Latent frames of a clip."""
    height: int
    width: int
    """In pixels."""
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
    negative: str | None,
) -> None:  # fmt: skip
    """Encode a folder of captioned videos, or a text file with a prompt on each line, into `folder`.

    A checkpoint that was converted with a preset gives the preset's negative prompt, unless one is named.
    What is there already is left as it is. Videos that cannot be used are reported and listed in the index.

    Raises:
        UserError: for a missing source, or a folder that was encoded otherwise.
    """
    items = _items(source)
    opened, place = open_checkpoint(checkpoint), torch.device(device)
    preset = opened.preset()
    if negative is None and preset is not None and preset.negative_prompt is not None:
        negative = preset.negative_prompt
        report(f"negative prompt of the preset: {negative}")
    config, video = opened.model_config(), source.is_dir()
    codec = opened.codec().to(place) if video else None
    text = opened.text()
    text.encoder.to(place)
    ratio = codec.spatial_ratio if codec is not None else 1
    sizes = config.sample_height * ratio, config.sample_width * ratio
    settings = {
        "source": str(source), "checkpoint": str(checkpoint), "frames": frames if video else 0,
        "shard": shard, "height": sizes[0], "width": sizes[1], "negative": negative,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists():
        refuse_other_settings(read_index(folder).settings, settings, folder / INDEX)
    encoder = Encoder(codec, text, frames, *sizes, place)
    if negative is not None:
        write_tensors(folder / NEGATIVE, {"text": text([negative])[0].half().cpu()}, {"format": "pt"})
    shards: list[dict[str, Any]] = []
    for first in range(0, len(items), shard):
        report(f"encode: {first} of {len(items)}")
        shards.append(_shard(items[first : first + shard], folder, first, encoder, report))
        kept = [each for each in shards if each["names"]]
        write_json(folder / INDEX, {"settings": settings, "shards": kept, "skipped": _skipped(shards)})
    report(f"encoded {sum(len(each['names']) for each in shards)} of {len(items)} into {folder}")


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


def _shard(items: list[Item], folder: Path, first: int, encoder: Encoder, report: Report) -> dict[str, Any]:
    """Encode one shard, or find it encoded: its file, the names in it, and those left out with the reason."""
    path, wanted = folder / f"clips-{first:07d}.safetensors", [name for name, _, _ in items]
    if (notes := _notes(path)) is not None and notes["wanted"] == wanted:
        return notes
    made, names, skipped = [], [], {}
    for item in items:
        try:
            made.append(encoder(item))
            names.append(item[0])
        except Unusable as reason:
            skipped[item[0]] = str(reason)
            report(f"skipped {item[0]}: it {reason}")
    notes = {"file": path.name, "names": names, "skipped": skipped, "wanted": wanted}
    columns = {key: torch.stack([tensors[key] for tensors in made]) for key in (made[0] if made else ())}
    write_tensors(path, columns, {"format": "pt", "notes": json.dumps(notes)})
    return notes


@dataclass(frozen=True, kw_only=True)
class ShardNotes:
    """What lies in a shard, and what was left out of it."""

    file: str
    names: list[str]
    skipped: dict[str, str]
    wanted: list[str]


def _notes(path: Path) -> dict[str, Any] | None:
    """What a shard says of itself; None if it is not there.

    Raises:
        UserError: if it is cut short.
    """
    if not path.exists():
        return None
    notes = parse_json(read_header(path, mend="remove it").metadata.get("notes", "{}"), str(path))
    return asdict(typed(notes, ShardNotes, str(path), mend="remove it"))


def _skipped(shards: list[dict[str, Any]]) -> dict[str, str]:
    return {name: reason for shard in shards for name, reason in shard["skipped"].items()}
