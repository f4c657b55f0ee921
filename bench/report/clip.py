"""The README's clip: a wall of videos by the shipped model, late in their life.

python -m bench.report.clip docs/sprites.webp
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from plugins.errors import missing_extra
from runtime.engines.base import EagerEngine
from runtime.outputs.writer import to_pixels
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import CodecDecoder
from runtime.rollout.rollout import rollout
from vmla.cli.command import OneLineCommand
from vmla.cli.terminal import say
from vmla.config import FRAMES_PER_SECOND
from vmla.weights.checkpoint import open_checkpoint

PROMPTS = (
    "a red star bouncing on a navy background",
    "a yellow triangle spinning on a maroon background",
    "a cyan ring orbiting on a black background",
    "a purple cross drifting on a beige background",
    "a green square bouncing on a gray background",
    "a white star spinning on a forest background",
    "an orange circle orbiting on a navy background",
    "a blue square bouncing and a yellow cross resting on a black background",
)
COLUMNS = 4
"""Videos side by side in a row of the clip."""
ENLARGED = 2
"""Pixels across and down for each pixel of a video, which would be too small in the README otherwise."""


def roll_out_prompts(checkpoint: str, *, start: float, seconds: float) -> Tensor:
    """Frames [videos, n, 3, H, W] in [0, 1] of every prompt, from second `start` on."""
    opened, device = open_checkpoint(checkpoint), torch.device("cpu")
    engine = EagerEngine(opened.transformer(), opened.text(), device=device, dtype=torch.float32)
    first, last = (round(edge * FRAMES_PER_SECOND) for edge in (start, start + seconds))
    chunks = engine.cache_spec.chunks.count(-(-last // 4))
    stream = rollout(
        engine, CodecDecoder(opened.codec(), device), FixedPrompts(*PROMPTS), opened.sampler(),
        seeds=range(len(PROMPTS)), chunks=chunks,
    )  # fmt: skip
    kept, seen = [], 0
    for chunk in stream:
        kept.append(chunk.frames[:, max(first - seen, 0) :])
        seen += chunk.frames.shape[1]
    return torch.cat(kept, dim=1)[:, : last - first]


def tile_videos(videos: Tensor) -> Tensor:
    """Tile videos [videos, n, 3, H, W], `COLUMNS` to a row, into frames [n, 3, rows * H, columns * W]."""
    rows = [torch.cat(list(row), dim=-1) for row in videos.split(COLUMNS)]
    return torch.cat(rows, dim=-2)


@click.command(cls=OneLineCommand)
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--checkpoint", default="sprites", show_default=True, help="Checkpoint folder.")
@click.option(
    "--start", default=170.0, show_default=True, help="Second of the videos at which the clip begins."
)
@click.option("--seconds", default=6.0, show_default=True, help="Length of the clip in seconds.")
def main(output: Path, checkpoint: str, start: float, seconds: float) -> None:
    """Write an animated WebP of eight videos side by side."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("pillow", "png") from error
    frames = to_pixels(tile_videos(roll_out_prompts(checkpoint, start=start, seconds=seconds)))
    big = np.repeat(np.repeat(frames, ENLARGED, axis=1), ENLARGED, axis=2)
    pictures = [Image.fromarray(frame) for frame in big]
    duration = round(1000 / FRAMES_PER_SECOND)
    pictures[0].save(output, save_all=True, append_images=pictures[1:], duration=duration, loop=0, quality=80)
    say(f"{output}: {len(pictures)} frames, {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
