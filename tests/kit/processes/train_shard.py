"""One process of sharded runs of the debug model, started by `torchrun`."""

import os
import sys
import time
from pathlib import Path

import torch
from kit.tiny.models import draw, randomise

from vmla.config import named_config
from vmla.train.data.latents import LatentSet
from vmla.train.loop.loop import train
from vmla.train.loop.parallel import checkpoint_blocks, direct, processes, shard, whole
from vmla.train.recipes.from_checkpoint import DISTILLATION_RECIPES
from vmla.train.stages.denoiser import DenoiserStage
from vmla.train.stages.distillation import ConsistencyStage
from vmla.transformer import VideoMLA

STEPS = 10


def forcing_stage(*, sharded):
    """Teacher forcing of a random debug model, ten steps; the same in every process."""
    import dataclasses

    training = DISTILLATION_RECIPES["debug"].forcing
    schedule = dataclasses.replace(training.schedule, steps=STEPS, save_every=3)
    config = named_config("debug")
    latents = draw(4, config.in_channels, 12, config.sample_height, config.sample_width).half()
    text = draw(4, config.text_tokens, config.text_dim, seed=1).half()
    model = randomise(VideoMLA(config)).requires_grad_(True)
    if sharded:
        model = shard(checkpoint_blocks(model), torch.float32)
    return DenoiserStage(
        config, dataclasses.replace(training, schedule=schedule), LatentSet(latents, text, {"made": "here"}),
        model=model, calls=direct,
    )  # fmt: skip


def consistency_stage(*, sharded):
    """Consistency distillation, whose target is a moving average that never sees a backward pass."""
    config = named_config("debug")
    latents = draw(4, config.in_channels, 12, config.sample_height, config.sample_width).half()
    text = draw(4, config.text_tokens, config.text_dim, seed=1).half()
    models = [randomise(VideoMLA(config), seed) for seed in (0, 0, 1)]
    models[0].requires_grad_(True)
    if sharded:
        models = [shard(model, torch.float32) for model in models]
    data = LatentSet(latents, text, {"made": "here"})
    return ConsistencyStage(*models, DISTILLATION_RECIPES["debug"].consistency, data, calls=direct)


def hanging(folder, step, rank):
    """A watcher that never returns from `step` of teacher forcing, and says so in a file with its number."""

    def watch(name, line, average):
        if name == "denoiser" and line["step"] == step:
            aside = folder / f"hanging-{rank}.tmp"
            aside.write_text(str(os.getpid()))
            aside.rename(folder / f"hanging-{rank}")
            time.sleep(3600)

    return watch


def main(folder, accumulate, stop_after, hang):
    torch.set_num_threads(1)
    with processes(accumulate, "cpu") as parallel:
        for make in (consistency_stage, forcing_stage):
            stage = make(sharded=parallel.sharded)
            average = train(
                stage, folder, report=lambda line: None, stop_after=stop_after, parallel=parallel,
                watchers=[hanging(folder, hang, parallel.rank)],
            )  # fmt: skip
            tensors = None if average is None else whole(average)
            if parallel.rank == 0 and tensors is not None:
                torch.save(tensors, folder / f"{stage.name}-average.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) or None, int(sys.argv[4]))
