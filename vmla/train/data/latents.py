"""Stage `latents`: renders clips and encodes them once; the denoiser then reads only these files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plugins.documents.lock import locked
from plugins.errors import UserError
from vmla.text import TextEncoder
from vmla.train.data.by_ray import absolute_if_local, make_shards
from vmla.train.data.shard_column import Column
from vmla.train.loop.state import load_state, save_state
from vmla.vae.tiny import TinyCodec
from vmla.weights.checkpoint import open_checkpoint
from vmla.world.caption import describe
from vmla.world.labels import label
from vmla.world.render import render
from vmla.world.scene import Scene, draw_scene
from vmla.world.worlds import FIRST, World, world_named

CPU = torch.device("cpu")
COLUMNS = ("latents", "text", "objects", "labels")
"""The tensors of a shard, each with one row for a clip."""
GPU_BATCH = 16
"""Clips that a GPU encodes at once."""


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """How many clips are rendered, and how they are stored."""

    clips: int = 3072
    frames: int = 36
    """Latent frames of a clip."""
    shard: int = 128
    """Clips to a file; an interruption loses at most one file."""
    seed: int = 0
    world: str = FIRST.name
    label_grid: int = 0
    """Places across and down that labels of the scene are stored for (`vmla.world.labels`); 0 stores none."""


@dataclass(frozen=True)
class LatentSet:
    """Every clip of a training set."""

    latents: Tensor | Column
    """[clips, z, frames, h, w] float16, normalised."""
    text: Tensor | Column
    """[clips, text tokens, text width] float16."""
    settings: dict[str, Any]
    """The settings that determined the set, as JSON values; a stage's state records them."""
    negative: Tensor | None = None
    """[text tokens, text width]: embeddings of the negative prompt, if guidance has one."""
    objects: Tensor | None = None
    """[clips] int64: objects of a rendered scene."""
    labels: Tensor | None = None
    """[clips, frames, places, numbers] float16 of `vmla.world.labels`, where they were asked for."""

    def to(self, device: torch.device) -> LatentSet:
        """This set on `device`, so that no batch has to be copied; clips read from files stay there."""
        latents, text = (x.to(device) if isinstance(x, Tensor) else x for x in (self.latents, self.text))
        return replace(self, latents=latents, text=text)


def drawn_clip(seed: int, number: int, world: World) -> tuple[Scene, int, np.random.Generator]:
    """Scene and first picture of clip `number` of the set of `seed`, and what draws its caption."""
    # The last number keeps these draws apart from those of stages with the same seed.
    rng = np.random.default_rng([seed, number, 2])
    scene = draw_scene(rng, world=world)
    return scene, int(rng.integers(4096)), rng


class Clips(Dataset[tuple[Tensor, str, int, Tensor]]):
    """Rendered clips with their captions, each drawn by its number alone."""

    def __init__(self, settings: LatentSettings, frames: int, numbers: list[int]) -> None:
        """Draw the clips called `numbers`, each `frames` pictures long."""
        self._seed, self._frames, self._numbers = settings.seed, frames, numbers
        self._world, self._grid = world_named(settings.world), settings.label_grid

    def __len__(self) -> int:
        """Number of clips in the set."""
        return len(self._numbers)

    def __getitem__(self, place: int) -> tuple[Tensor, str, int, Tensor]:
        """The clip [frames, 3, H, W] at `place`, its caption, its number of objects and its labels."""
        scene, start, rng = drawn_clip(self._seed, self._numbers[place], self._world)
        shown = label(scene, self._frames, start, grid=self._grid) if self._grid else torch.empty(0)
        return render(scene, self._frames, start), describe(scene, rng), len(scene.sprites), shown


def make_latents(
    settings: LatentSettings,
    codec: TinyCodec,
    text: TextEncoder,
    text_settings: dict[str, Any],
    folder: Path,
    report: Callable[[str], None],
    *,
    workers: int = 0,
    device: torch.device = CPU,
) -> LatentSet:
    """Encode the clips that `folder` lacks, and load all; refuses a folder that another process fills.

    `text_settings` determined `text`: embeddings of another encoder are refused, not reused.
    `workers` processes render; with none, this one does. The codec encodes on `device`, where it lies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known, parts = _known(settings, codec, text_settings), _parts(settings)
    found = {part: load_state(_place(folder, part), known) for part in parts}
    shards = {part: shard for part, shard in found.items() if shard is not None}
    missing = [part for part in parts if part not in shards]
    made = _made(settings, known, missing, codec, text, workers, device)
    with locked(folder) if missing else nullcontext():
        for part in missing:
            report(f"latents: clip {part.start} of {settings.clips}")
            shards[part] = next(made)
            save_state(_place(folder, part), shards[part])
    return joined([shards[part] for part in parts])


def _known(settings: LatentSettings, codec: TinyCodec, text: dict[str, Any]) -> dict[str, Any]:
    """The settings that determine a shard, which are compared before it is reused."""
    return {"latents": asdict(settings), "codec": asdict(codec.config), "text": text}


def _parts(settings: LatentSettings) -> list[range]:
    """The numbers of the clips of each shard."""
    firsts = range(0, settings.clips, settings.shard)
    return [range(first, min(first + settings.shard, settings.clips)) for first in firsts]


def _made(
    settings: LatentSettings, known: dict[str, Any], parts: list[range], codec: TinyCodec, text: TextEncoder,
    workers: int, device: torch.device,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The shards of `parts`, rendered and encoded, one after the other."""
    clips = Clips(settings, settings.frames * codec.temporal_ratio, [n for part in parts for n in part])
    batch = 1 if device.type == "cpu" else GPU_BATCH  # a CPU is busy with one clip, and gains nothing
    encoded = _encoded(DataLoader(clips, batch_size=batch, num_workers=workers), codec, text, device)
    for part in parts:
        rows = list(islice(encoded, len(part)))
        columns = (torch.stack(column) for column in zip(*rows, strict=True))
        yield {"settings": known, **dict(zip(COLUMNS, columns, strict=True))}


def joined(shards: list[dict[str, Any]]) -> LatentSet:
    """The clips of all `shards`, as `make_latents` writes them; before it counted objects they were fewer."""
    found = {key: torch.cat([s[key] for s in shards]) for key in COLUMNS if all(key in s for s in shards)}
    if "labels" in found and not found["labels"].numel():
        del found["labels"]
    return LatentSet(**found, settings=shards[0]["settings"])


def _place(folder: Path, part: range) -> Path:
    return folder / f"latents-{part.start:06d}.pt"


@torch.inference_mode()
def _encoded(
    batches: DataLoader[Any], codec: TinyCodec, text: TextEncoder, device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """The `COLUMNS` of one clip after the other: [z, F, h, w], [tokens, width], [], [F, places, numbers]."""
    for videos, captions, objects, labels in batches:
        latents = codec.encode(videos.to(device)).half().cpu()
        yield from zip(latents, text(list(captions)).half().cpu(), objects, labels.half(), strict=True)


def render_latents(
    settings: LatentSettings, checkpoint: str, folder: Path, report: Callable[[str], None], *,
    clips: int | None = None, workers: int = 0, device: str = "cpu", ray: bool = False,
) -> LatentSet:  # fmt: skip
    """`make_latents` with the codec and text encoder of `checkpoint`, of its first `clips` if given.

    Clips show the world that the checkpoint was trained on; that of `settings`, if it names none. With `ray`
    they are made over the machines of a cluster, all of which see `folder`.

    Raises:
        UserError: for an invalid checkpoint or one with another codec, or a folder of another one's clips.
    """
    opened, place = open_checkpoint(checkpoint), torch.device(device)
    codec = opened.codec()
    if not isinstance(codec, TinyCodec):
        raise UserError(f"{checkpoint} has Wan's codec, and rendered clips are for the small one")
    world = opened.world() or world_named(settings.world)
    chosen = replace(settings, world=world.name, clips=clips or settings.clips)
    text = opened.text()
    text.encoder.to(place)
    known = {"checkpoint": checkpoint}
    if ray:
        _make_by_ray(chosen, checkpoint, _known(chosen, codec, known), folder, report, workers, device)
    made = make_latents(chosen, codec.to(place), text, known, folder, report, workers=workers, device=place)
    report(f"{len(made.latents)} clips in {folder}")
    return made


def _make_by_ray(
    settings: LatentSettings, checkpoint: str, known: dict[str, Any], folder: Path,
    report: Callable[[str], None], workers: int, device: str,
) -> None:  # fmt: skip
    """Make the clips that are not yet in `folder`, over the machines of a cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [part for part in _parts(settings) if load_state(_place(folder, part), known) is None]
    begin = partial(
        _begin, settings, absolute_if_local(checkpoint), known, folder.absolute(), workers, device
    )
    with locked(folder):
        make_shards(begin, missing, report, processors=workers, device=device)


def _begin(
    settings: LatentSettings, checkpoint: str, known: dict[str, Any], folder: Path, workers: int, device: str
) -> Callable[[range], list[str]]:
    """Returns the function that makes a shard, in a process of its own."""
    opened, place = open_checkpoint(checkpoint), torch.device(device)
    codec, text = opened.codec(), opened.text()
    assert isinstance(codec, TinyCodec)
    codec.to(place)
    text.encoder.to(place)

    def make(part: range) -> list[str]:
        (shard,) = _made(settings, known, [part], codec, text, workers, place)
        save_state(_place(folder, part), shard)
        return []

    return make
