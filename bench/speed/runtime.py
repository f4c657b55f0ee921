"""The runtime on this machine, in one run: its speed, its evenness and its costs.

    vmla-bench runtime
    vmla-bench runtime --engine engines/sprites

All arms make the same video from one checkpoint, in the order A B C C B A:

    plain    the first runtime, rebuilt from today's parts: the model's own modules with nothing laid out
             or tabulated, a whole step for the clean pass, decoding on the rollout's thread, no states.
             The fixed buffers and the file format are today's; neither was slower before.
    now      what `vmla-run` does, states on disk included
    unsaved  the same without states
    compiled what `vmla-run --engine` does, if an engine is given

Then a video is stopped and resumed, and the operations of one chunk are counted.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from torch import Tensor

from bench.harness.document import Record
from bench.harness.operation_counts import Operations, launches
from bench.harness.subject import filling
from bench.speed.rollout import PROMPT, shares
from plugins.errors import UserError
from runtime.engines.base import EagerEngine, Engine
from runtime.outputs.writer import FrameWriter, to_pixels
from runtime.rollout.decoding import CodecDecoder
from runtime.rollout.rollout import Rollout, rollout
from runtime.session.destination import open_sink
from runtime.session.generate import make_videos
from runtime.session.outcome import Outcome
from runtime.session.replay import Order, new, resume
from runtime.telemetry.events import ChunkReport, NoTelemetry
from runtime.telemetry.metrics import percentile
from vmla.cli.command import OneLineCommand
from vmla.cli.options.device import device_option, say_device
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.transformer import StepInputs

ARMS = ("plain", "now", "unsaved")
COMPILED = "compiled"
SAVE_EVERY = 5.0
"""Seconds between two states: the default of `vmla-run`."""
STOPPED = 24
"""Chunks of the video that is stopped once the first two are shown: more than any queue holds."""


@dataclass(frozen=True, kw_only=True)
class TimedRun:
    """One run of one arm, which makes the video once."""

    frames_per_second: float
    """From the first chunk to the last."""
    gaps: list[float]
    """Seconds from each chunk to the next."""
    shares: dict[str, float]
    """Shares of the time, named as in `bench.speed.rollout.shares`; none for the arm `plain`."""


class Reports(NoTelemetry):
    """Collects the report of each chunk; at chunk `last`, sets `stop`."""

    def __init__(self, last: int | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.stop, self._last = threading.Event(), last

    def chunk(self, report: ChunkReport) -> None:
        """Keep the report of a finished chunk."""
        self.events.append(asdict(report))
        if report.chunk == self._last:
            self.stop.set()


class PlainEngine(EagerEngine):
    """The model's own modules, unchanged; its clean pass is a whole step."""

    def entries(self, inputs: StepInputs, *, held: int | None = None) -> Tensor:
        """The entries [L, B, S, E] that a whole step returns."""
        return self.step(inputs, held=held)[1]


def plain_engine(order: Order) -> Engine:
    """The engine of the arm `plain`."""
    job = order.job
    model, text = job.checkpoint.transformer(), job.checkpoint.text()
    return PlainEngine(model, text, device=job.device, dtype=job.dtype, as_it_is=True)


def run_plain_loop(order: Order, output: Path) -> TimedRun:
    """Make the video on one thread and write it on another."""
    job, engine = order.job, plain_engine(order)
    decoder = CodecDecoder(job.checkpoint.codec(), job.device)
    ends: list[float] = []
    with FrameWriter(open_sink(output, scale=order.scale)) as writer:
        for chunk in rollout(engine, decoder, job.prompts, job.sampler, seeds=[job.seed], chunks=job.chunks):
            pixels = to_pixels(chunk.frames[0])
            writer.write(pixels)
            ends.append(perf_counter())
    return _timed_run(ends, len(pixels), {})


def run_session(order: Order, output: Path, *, saved: bool) -> TimedRun:
    """Make the video as `vmla-run` does."""
    reports = Reports()
    outcome = _make(order, output, reports, save_every=SAVE_EVERY if saved else None)
    events = reports.events
    ends, last = [event["seconds"] for event in events], events[-1]["frames"] - events[-2]["frames"]
    return _timed_run(ends, last, shares(events, {"state_seconds": outcome.state_seconds}))


def _make(order: Order, output: Path, reports: Reports, *, save_every: float | None = SAVE_EVERY) -> Outcome:
    (ending,) = make_videos(
        {output: order}, telemetry=lambda output: reports, stop=reports.stop, save_every=save_every
    )
    if ending.failure is not None:
        raise UserError(ending.failure)
    return ending.outcome


def _timed_run(ends: list[float], frames: int, parts: dict[str, float]) -> TimedRun:
    """The run whose chunks, of `frames` frames each, were finished at the seconds `ends`."""
    gaps = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    return TimedRun(frames_per_second=frames * len(gaps) / sum(gaps), gaps=gaps, shares=parts)


def seconds_to_first_chunk(order_of: Callable[[int], Order], output: Path) -> dict[str, float]:
    """Seconds before the first chunk of a new video and of a resumed one, both in this process.

    Reading checkpoints and states, comparing hashes and loading is all in them; starting Python is not.
    """
    began = perf_counter()
    order = order_of(STOPPED)
    ordered = perf_counter() - began
    half = _make(order, output, Reports(1))
    began = perf_counter()
    rest = resume(output, {})
    looked = perf_counter() - began
    whole = _make(rest, output, Reports())
    start, again = ordered + half.load_seconds, looked + whole.load_seconds
    return {"frames": whole.frames, "start_seconds": start, "resume_seconds": again, "adds": again - start}


def operations_per_chunk(order: Order, engine: Engine) -> int:
    """How many operations one chunk and its clean pass run on the device.

    On a GPU, the host's launches, in which a graph is one; on a CPU, operations that compute.
    """
    videos = Rollout(engine, order.job.prompts, order.job.sampler, seeds=[order.job.seed])

    def chunk() -> None:
        videos.denoise()
        videos.update_cache()

    for _ in range(filling(engine.config) + 1):  # fills the window and encodes the prompt
        chunk()
    launched = launches(chunk, order.job.device)
    if launched is not None:
        return launched
    with Operations() as counter:
        chunk()
    return counter.launches


def figures_of(runs: dict[str, list[TimedRun]]) -> dict[str, Any]:
    """The claims, checked against all runs of each arm."""
    speed = {arm: statistics.mean(run.frames_per_second for run in runs[arm]) for arm in runs}
    mean = {
        name: round(statistics.mean(run.shares[name] for run in runs["now"]), 4)
        for name in runs["now"][0].shares
    }
    figures = {
        "frames_per_second": {arm: round(value, 2) for arm, value in speed.items()},
        **_against_plain(runs, speed, "now"),
        "outside_share": mean.pop("other_share"),
        **mean,
        "saving_costs": round(1 - speed["now"] / speed["unsaved"], 4),
    }
    return figures if COMPILED not in runs else {**figures, COMPILED: _against_plain(runs, speed, COMPILED)}


def _against_plain(runs: dict[str, list[TimedRun]], speed: dict[str, float], arm: str) -> dict[str, Any]:
    """Speed in terms of the plain arm's, and how even the chunks are."""
    halves = zip(runs[arm], runs["plain"], strict=True)
    gaps = sorted(gap for run in runs[arm] for gap in run.gaps)
    p50, p95, p99 = (percentile(gaps, share) for share in (0.5, 0.95, 0.99))
    return {
        "times_plain": round(speed[arm] / speed["plain"], 3),
        "times_plain_by_half": [round(a.frames_per_second / b.frames_per_second, 3) for a, b in halves],
        "chunk_p50": round(p50, 5),
        "chunk_p95": round(p95, 5),
        "chunk_p99": round(p99, 5),
        "chunk_p99_over_p50": round(p99 / p50, 3),
    }


def measure(
    order_of: Callable[[int], Order],
    chunks: int,
    told: Callable[[str], None],
    compiled: Callable[[int], Order] | None = None,
) -> dict[str, Any]:
    """The results of all arms, of the stopped video and of the counts, with their samples."""
    arms = ARMS if compiled is None else (*ARMS, COMPILED)
    # There and back, so that a steady drift of the machine's speed affects all arms alike.
    schedule = (*arms, *reversed(arms))
    runs: dict[str, list[TimedRun]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        for number, arm in enumerate(schedule, 1):
            told(f"runtime: {arm}, {number} of {len(schedule)}")
            order = compiled(chunks) if compiled and arm == COMPILED else order_of(chunks)
            output = Path(folder) / f"{number}.mp4"
            made = (
                run_plain_loop(order, output)
                if arm == "plain"
                else run_session(order, output, saved=arm != "unsaved")
            )
            runs[arm].append(made)
        told("runtime: stopped and resumed")
        resumed = seconds_to_first_chunk(order_of, Path(folder) / "halves.mp4")
    told("runtime: operations")
    order = order_of(chunks)
    counts = {
        "plain": operations_per_chunk(order, plain_engine(order)),
        "now": operations_per_chunk(order_of(chunks), order.job.engine()),
    }
    return {
        "figures": {
            **figures_of(runs),
            "resume_adds_seconds": round(resumed["adds"], 3),
            "resume_seconds": round(resumed["resume_seconds"], 3),
            "launches_per_chunk" if order.job.device.type == "cuda" else "operations_per_chunk": counts,
        },
        "resumed": resumed,
        "takes": {arm: [asdict(run) for run in made] for arm, made in runs.items()},
    }


@click.command("runtime", cls=OneLineCommand)
@click.option("--checkpoint", default="sprites", show_default=True, help="Checkpoint folder.")
@click.option("--chunks", type=click.IntRange(min=4), default=100, show_default=True,
              help="Length of each video; each arm makes two.")  # fmt: skip
@click.option(
    "--engine", type=click.Path(path_type=Path), help="Engine folder, which is measured as one more arm."
)
@device_option()
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/runtime.json).")  # fmt: skip
def main(checkpoint: str, chunks: int, engine: Path | None, device: str, output: Path | None) -> None:
    """Compare the runtime with a plain one: speed, evenness, cost of saving, cost of resuming."""
    device = str(say_device(device))

    def order_of(length: int) -> Order:
        return new(PROMPT, checkpoint, scale=None, chunks=length, device=device)

    def compiled(length: int) -> Order:
        return new(PROMPT, checkpoint, scale=None, chunks=length, device=device, engine=engine)

    order = order_of(chunks)
    record = Record("runtime", output, device=order.job.device)
    with ProgressLine(sys.stderr) as line:
        measured = measure(order_of, chunks, line.show, None if engine is None else compiled)
    figures = measured.pop("figures")
    sampler, dtype = order.job.sampler.settings(), str(order.job.dtype).removeprefix("torch.")
    record.save(checkpoint=checkpoint, sampler=sampler, dtype=dtype, **figures, **measured)
    for name, value in figures.items():
        say(f"{name:>22}  {value}")
    record.finish(**figures)


if __name__ == "__main__":
    main()
