"""From Python: a prompt in, frames out, as a generator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.planning.request import prepare, to_pixels
from runtime.prompts.sources import LivePrompts
from vmla.weights.checkpoint import SHIPPED


def generate(
    prompt: str | LivePrompts,
    *,
    seconds: float = 10.0,
    seed: int = 0,
    checkpoint: str | Path = SHIPPED,
    steps: int | None = None,
    device: str = "cpu",
    dtype: str = "auto",
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a video, each as soon as its chunk of twelve is decoded.

    Args:
        prompt: what the video shows; `LivePrompts` may change it on the way, at the edges of chunks.
        seconds: its length when played, at 16 frames per second.
        seed: the same seed gives the same video.
        checkpoint: a checkpoint folder, or `sprites` for the shipped model.
        steps: denoising steps for each chunk; the checkpoint's own number if not given.
        device: a torch device.
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, bfloat16 elsewhere.

    Yields:
        Frames [H, W, 3] uint8, red green blue. Memory does not grow with their number.

    Raises:
        UserError: for an empty prompt, an impossible length, a missing checkpoint or device.
    """
    job, left = prepare(
        prompt, checkpoint, seconds=seconds, seed=seed, steps=steps, device=device, dtype=dtype
    )
    for chunk in job.run(job.engine(), job.decoder()):
        frames = to_pixels(chunk.frames[0])[:left]
        left -= len(frames)
        yield from frames
