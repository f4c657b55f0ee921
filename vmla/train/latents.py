"""Stage `latents`: render, encode once, and keep; the denoiser then reads nothing but these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmla.errors import UserError
from vmla.text import TextEncoder
from vmla.train.column import Column
from vmla.train.state import load_state, save_state
from vmla.vae.tiny import TinyCodec
from vmla.weights.folder import open_checkpoint
from vmla.world.caption import describe
from vmla.world.render import render
from vmla.world.scene import draw_scene


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """How much is rendered, and how it is kept."""

    clips: int = 3072
    frames: int = 36
    """Latent frames of a clip."""
    shard: int = 128
    """Clips to a file; what is interrupted loses at most one."""
    seed: int = 0


@dataclass(frozen=True)
class LatentSet:
    """Every clip of a training set."""

    latents: Tensor | Column
    """[clips, z, frames, h, w] float16, normalised."""
    text: Tensor | Column
    """[clips, text tokens, text width] float16."""
    settings: dict[str, Any]
    """What determined it."""
    negative: Tensor | None = None
    """[text tokens, text width]: what guidance steers away from, where there is one."""


def make_latents(
    settings: LatentSettings,
    codec: TinyCodec,
    text: TextEncoder,
    text_settings: dict[str, Any],
    folder: Path,
    report: Callable[[str], None],
) -> LatentSet:
    """Encode what is not yet in `folder`, and load all of it.

    `text_settings` is what determined `text`: embeddings of another encoder are refused, not reused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    known = {"latents": asdict(settings), "codec": asdict(codec.config), "text": text_settings}
    for first in range(0, settings.clips, settings.shard):
        path = folder / f"latents-{first:06d}.pt"
        shard = load_state(path, known)
        if shard is None:
            report(f"latents: clip {first} of {settings.clips}")
            clips = range(first, min(first + settings.shard, settings.clips))
            shard = {"settings": known, **_encode(settings, clips, codec, text)}
            save_state(path, shard)
        shards.append(shard)
    latents, captions = (torch.cat([shard[key] for shard in shards]) for key in ("latents", "text"))
    return LatentSet(latents, captions, known)


def render_latents(
    settings: LatentSettings, checkpoint: str, folder: Path, report: Callable[[str], None], *,
    clips: int | None = None,
) -> LatentSet:  # fmt: skip
    """`make_latents` with the codec and text encoder of `checkpoint`, of its first `clips` if given.

    Raises:
        UserError: for a checkpoint that is none or has another codec, or a folder of another one's clips.
    """
    opened = open_checkpoint(checkpoint)
    codec = opened.codec()
    if not isinstance(codec, TinyCodec):
        raise UserError(f"{checkpoint} has Wan's codec, and rendered clips are for the small one")
    chosen = settings if clips is None else replace(settings, clips=clips)
    known = {"checkpoint": checkpoint}
    made = make_latents(chosen, codec, opened.text(), known, folder, report)
    report(f"{len(made.latents)} clips in {folder}")
    return made


@torch.inference_mode()
def _encode(
    settings: LatentSettings, clips: range, codec: TinyCodec, text: TextEncoder
) -> dict[str, Any]:
    latents, captions = [], []
    for clip in clips:
        rng = np.random.default_rng([settings.seed, clip, 2])
        scene = draw_scene(rng)
        video = render(scene, settings.frames * codec.temporal_ratio, start=int(rng.integers(4096)))
        latents.append(codec.encode(video[None])[0].half())
        captions.append(describe(scene, rng))
    return {"latents": torch.stack(latents), "text": text(captions).half()}
