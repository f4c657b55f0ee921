"""`vmla-train codec`: a tiny decoder for a checkpoint's latents, from clips that were encoded with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from vmla.cli.stopping import Stop
from vmla.train.data.clips import open_clips
from vmla.train.loop.loop import train
from vmla.train.loop.parallel import Parallel
from vmla.train.optim.optimizers import TrainingSchedule
from vmla.train.stages.tiny_decoder import TinyDecoderStage, TinyTraining
from vmla.vae.taehv import Taehv
from vmla.weights.formats.files import hash_weights, write_tensors
from vmla.weights.locate import find_checkpoint

RESULT = "taehv.safetensors"
"""The file of a finished run, under TAEHV's names, for `--decoder`."""


def distil(
    name: str, data: Path, output: Path, report: Callable[[str], None], *, steps: int, clips: int,
    device: torch.device, stop_after: int | None = None, stop: Stop | None = None,
) -> Path | None:  # fmt: skip
    """Distil the codec of checkpoint `name` on the clips in `data`, or continue that training.

    Args:
        name: a folder, a shipped model or a hub id.
        data: a folder of `vmla-train encode`.
        output: gets the state, the log, and the result when it is finished.
        report: takes a line.
        steps: of the optimizer.
        clips: of a batch.
        device: that trains.
        stop_after: so many more steps.
        stop: ends it after the step under way, with its state saved.

    Returns:
        The file, under TAEHV's names; None if it is not finished.

    Raises:
        UserError: if the clips are not the checkpoint's, or no tiny architecture fits its codec.
    """
    checkpoint = find_checkpoint(name)
    held = open_clips(data, checkpoint.model_config())
    schedule = TrainingSchedule(
        steps=steps, learning_rate=5e-4, warmup=min(50, steps // 10), decay=steps // 4
    )  # fmt: skip
    training = TinyTraining(schedule=schedule, clips=clips)
    source = {"data": held.settings, "vae": hash_weights(checkpoint.weights_path("vae"))}
    stage = TinyDecoderStage(checkpoint.codec().to(device), held.latents, training, source, device)
    average = train(
        stage, output, report=report, stop_after=stop_after, parallel=Parallel(device=device), stop=stop
    )
    if average is None:
        return None
    tiny = Taehv(stage.tiny.config)
    tiny.load_state_dict(average)
    tensors = {key: tensor.to("cpu", torch.float16) for key, tensor in tiny.state_dict().items()}
    write_tensors(output / RESULT, tensors, {"format": "pt"})
    return output / RESULT
