"""A rollout for callers that observe the model through hooks: it decodes nothing and returns nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from runtime.engines.base import EagerEngine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import rollout
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def drive(
    model: VideoMLA, checkpoint: Checkpoint, prompts: Sequence[str], *, seed: int, chunks: int,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> None:  # fmt: skip
    """Roll out `prompts` as one batch with `model`, in float32 on its device; prompt i has seed + i.

    `told` is called after each chunk with the number of finished chunks and of all chunks.
    """
    device = next(model.parameters()).device
    engine = EagerEngine(model, checkpoint.text(), device=device, dtype=torch.float32, as_it_is=True)
    seeds = [seed + number for number in range(len(prompts))]
    sampler = checkpoint.sampler()
    made = rollout(engine, NoDecoder(), FixedPrompts(*prompts), sampler, seeds=seeds, chunks=chunks)
    for number, _ in enumerate(made, 1):
        log.info("calibrating: chunk %d of %d", number, chunks)
        told(number, chunks)
