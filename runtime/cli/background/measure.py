"""Measures what an engine for a CPU gains: its step is compared with the model's, in results and in time."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from plugins.errors import UserError
from runtime.cli.background.records import Measured, weight_bytes
from runtime.cli.verify.engine import SINGLE, relative_error
from runtime.device.threads import Cores, using
from runtime.engines.base import EagerEngine
from runtime.engines.compiled import open_engine
from runtime.engines.timing.step_timing import fewest_seconds, full_window
from runtime.planning.compute import THREADS
from vmla.cli.machine import hardware
from vmla.weights.checkpoint import Checkpoint


def measure(checkpoint: Checkpoint, folder: Path, build_seconds: float) -> Measured:
    """Time passes of the engine in `folder` and of the model, on as many threads as a video has by default.

    Raises:
        UserError: if the engine's results are not the model's.
    """
    cpu, inputs = torch.device("cpu"), full_window(checkpoint.model_config(), torch.float32)
    eager = EagerEngine(checkpoint.transformer(), checkpoint.text(), device=cpu, dtype=torch.float32)
    slots = eager.cache_spec.slots
    threads = Cores.of(THREADS, cpu, silent=False).denoiser
    with using(threads), open_engine(folder, checkpoint) as engine:
        pairs = zip(engine.step(inputs, held=slots), eager.step(inputs, held=slots), strict=True)
        errors = [relative_error(*pair) for pair in pairs]
        if not all(error <= SINGLE["fp32"] for error in errors):  # NaN neither
            by = f"{max(errors, key=lambda error: (error != error, error)):.1e}"
            raise UserError(f"the engine's results differ from the model's by {by}, relative to them")
        fewest = fewest_seconds({
            "eager": partial(eager.step, inputs, held=slots),
            "engine": partial(engine.step, inputs, held=slots),
        })  # fmt: skip
    return Measured(
        checkpoint=checkpoint.name,
        weight_bytes=weight_bytes(checkpoint),
        threads=threads or 1,
        build_seconds=build_seconds,
        eager_seconds=fewest["eager"],
        engine_seconds=fewest["engine"],
        machine=hardware(),
    )
