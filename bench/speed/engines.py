"""Engines against each other on one model: speed, first frame, memory, and the error beside every figure.

    vmla-bench engines --checkpoint sprites

Every engine is timed against a baseline (eager `mla` in fp32; on a GPU eager `mha` in bfloat16), chunk by
chunk in the order A B B A in one process, on whole chunks of a rollout with a full window: noise, all passes,
commit; no decoding. The first row times that baseline against itself; a difference counts only if it is more
than three times that row's spread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch

from bench.harness import operation_counts as counting
from bench.harness.document import Record
from bench.harness.engine_arms import BY_NAME, PRECISIONS, EngineArm, choose_arms, failing
from bench.harness.memory_use import Peak
from bench.harness.paired_timing import WaitingClock, paired, percentile
from bench.harness.peaks import machine_peaks
from bench.harness.subject import PROMPT, RandomCheckpoint, endless, filling, open_subject
from bench.harness.time_budget import Budget
from bench.report.elements.engines_table import engines_table
from runtime.cli.verify.engine import single_pass
from runtime.engines.base import Engine
from runtime.rollout.decoding import CodecDecoder, Decoder
from runtime.rollout.rollout import Chunk
from vmla.cli.command import OneLineCommand
from vmla.cli.options.choices import Choice, ChoiceList
from vmla.cli.options.device import choose_device, device_option, tell_device
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.config import FRAMES_PER_SECOND, MODEL_CONFIGS
from vmla.flops import PassCost
from vmla.weights.checkpoint import Checkpoint

BASELINES = {
    "cpu": EngineArm(engine="eager-mla", precision="fp32"),
    "cuda": EngineArm(engine="eager-mha", precision="bf16"),
}
"""The baselines: on a GPU per-head attention in bfloat16, as other projects run."""
FRAMES_PER_LATENT = 4
"""Pixel frames of a latent frame, in every codec."""


@dataclass(kw_only=True)
class Bench:
    """The shared parts of a comparison of engines: checkpoint, prompts, sizes."""

    subject: Checkpoint
    device: torch.device
    batch: int
    rounds: int
    folder: Path
    peaks: dict[str, Any]
    baseline: Iterator[Chunk]
    noise: float = 0.0
    """Spread of the baseline against itself."""
    references: dict[str, Engine] = field(default_factory=dict)
    """Eager fp32 of each layout, as it was needed."""

    @property
    def passes(self) -> int:
        """Passes that make a chunk: the steps and the clean pass."""
        return self.subject.sampler().passes + 1

    @property
    def frames(self) -> int:
        """Pixel frames of a steady chunk, of all videos."""
        return self.batch * self.subject.model_config().chunk * FRAMES_PER_LATENT

    @staticmethod
    def heading(arm: EngineArm) -> dict[str, Any]:
        """The first fields of a row."""
        return {"engine": arm.engine, "precision": arm.precision, "layout": arm.layout}

    def row(self, arm: EngineArm) -> dict[str, Any]:
        """All figures of one arm, or why there are none."""
        found, peak, began = self.heading(arm), Peak(self.device), time.perf_counter()
        engine, refusal = failing(
            lambda: arm.open(self.subject, self.device, batch=self.batch, folder=self.folder)
        )
        if refusal is not None:
            return {**found, "refused": refusal}
        found["load_seconds"] = time.perf_counter() - began
        figures, refusal = failing(lambda: self._measured(arm, engine, peak))
        engine.close()
        return {**found, **figures} if refusal is None else {**found, "refused": refusal}

    def _measured(self, arm: EngineArm, engine: Engine, peak: Peak) -> dict[str, Any]:
        began = time.perf_counter()
        next(endless(engine, self.subject.sampler(), batch=self.batch, decoder=self._decoder()))
        self._wait()
        first = time.perf_counter() - began
        stream = endless(engine, self.subject.sampler(), batch=self.batch)
        # Until the window is full, a chunk attends to fewer keys and is faster than the rest of the video.
        for _ in range(filling(engine.config) + 1):
            next(stream)
        return {
            "first_frame_seconds": first,
            "peak_bytes": peak.bytes(),
            **self._counts(arm, stream),
            **self.timed(arm, stream),
            **self._errors(arm, engine),
        }

    def timed(self, arm: EngineArm, stream: Iterator[Chunk]) -> dict[str, Any]:
        """Chunk times of `stream` and the baseline, with speed-up and spread."""
        clock = WaitingClock(self.device)  # one chunk warms up: both streams have filled their windows before
        pair = paired(
            lambda turn: next(self.baseline), lambda turn: next(stream), clock, rounds=self.rounds, warm_up=1
        )
        median = percentile(pair.other, 50)
        rate = self._flops(arm) / median * 1e3
        peak = self.peaks["matrix"].get(arm.precision)
        return {
            "frames_per_second": self.frames / median * 1e3,
            "times_real_time": self.frames / self.batch / median * 1e3 / FRAMES_PER_SECOND,
            "chunk_ms": {f"p{p}": percentile(pair.other, p) for p in (50, 95, 99)},
            "time_over_baseline": pair.typical,
            "spread": pair.spread,
            "differs": pair.differs(self.noise),
            "flops_per_second": rate,
            "share_of_matrix_peak": rate / peak["per_second"] if peak else None,
            "samples_ms": pair.other,
            "baseline_samples_ms": pair.baseline,
        }

    def _flops(self, arm: EngineArm) -> float:
        config = replace(self.subject.model_config(), layout=arm.layout)
        counted = PassCost(config=config, form=arm.form, batch=self.batch, passes=self.passes)  # type: ignore[arg-type]
        return counted.flops * self.passes

    def _counts(self, arm: EngineArm, stream: Iterator[Chunk]) -> dict[str, Any]:
        """Launches and host reads of a chunk: counted on a GPU, and for eager passes anywhere."""
        if self.device.type == "cuda":
            return {
                "launches_per_chunk": counting.launches(lambda: next(stream), self.device),
                "host_reads_per_chunk": counting.host_reads(lambda: next(stream), self.device),
            }
        if arm.engine not in ("eager-mha", "eager-mla", "absorbed"):
            return {"launches_per_chunk": None, "host_reads_per_chunk": None}
        config = replace(self.subject.model_config(), layout=arm.layout)
        seen = counting.operations(config, absorbed=arm.form == "absorbed")
        return {
            "launches_per_chunk": seen.launches * self.passes,
            "host_reads_per_chunk": seen.reads * self.passes,
        }

    def _errors(self, arm: EngineArm, engine: Engine) -> dict[str, Any]:
        """Relative errors of one pass against eager fp32 of the same weights."""
        if arm.layout not in self.references:
            eager = EngineArm(engine=f"eager-{arm.layout}", precision="fp32")
            opened = eager.open(self.subject, self.device, batch=self.batch, folder=self.folder)
            self.references[arm.layout] = opened
        errors = single_pass(engine, self.references[arm.layout], self.batch)
        return {f"error_{name}": error for name, error in errors.items()}

    def _decoder(self) -> Decoder | None:
        """The decoder that makes the first frame; None for a random shape, which has no codec."""
        if isinstance(self.subject, RandomCheckpoint):
            return None
        return CodecDecoder(self.subject.codec(), self.device)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def open_bench(
    subject: Checkpoint, device: torch.device, *, batch: int, rounds: int, folder: Path, peaks: dict[str, Any]
) -> tuple[Bench, dict[str, Any]]:
    """The bench with its baseline running, and the row of the baseline against itself."""
    arm = BASELINES[device.type]
    engine = arm.open(subject, device, batch=batch, folder=folder)
    streams = [endless(engine, subject.sampler(), batch=batch) for _ in range(2)]
    bench = Bench(
        subject=subject, device=device, batch=batch, rounds=rounds, folder=folder, peaks=peaks,
        baseline=streams[0],
    )  # fmt: skip
    for stream in streams:
        for _ in range(filling(engine.config) + 1):
            next(stream)
    row = bench.timed(arm, streams[1])
    bench.noise = row["spread"]
    # A baseline that differs from itself shows that the machine is too busy to measure anything.
    row["differs"] = abs(row["time_over_baseline"] - 1) > row["spread"]
    return bench, {"engine": "A against A", "precision": arm.precision, "layout": arm.layout, **row}


@click.command("engines", cls=OneLineCommand, groups={
    "What is compared": ("checkpoint", "shape", "engines", "precisions", "batch"),
    "How": ("rounds", "minutes", "device", "folder", "output"),
})  # fmt: skip
@click.option("--checkpoint", help="Checkpoint folder or shipped model (default: sprites).")
@click.option("--shape", type=Choice(MODEL_CONFIGS), help="Named shape with random weights instead.")
@click.option(
    "--engines", type=ChoiceList(BY_NAME), help="Engines to compare (default: all but compile-mha)."
)
@click.option(
    "--precisions",
    type=ChoiceList(PRECISIONS),
    default="fp32,bf16",
    help="Precisions that each engine computes in.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Number of videos made at once."
)
@click.option(
    "--rounds",
    type=click.IntRange(2),
    default=12,
    show_default=True,
    help="Number of rounds of four chunks each.",
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True,
              help="Time limit: no engine is begun that would not end by then.")  # fmt: skip
@device_option()
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=Path("build/engines"),
              show_default=True,
              help="Folder in which compiled engines are built and found again.")  # fmt: skip
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/engines.json).")  # fmt: skip
def main(
    checkpoint: str | None, shape: str | None, engines: tuple[str, ...] | None, precisions: tuple[str, ...],
    batch: int, rounds: int, minutes: float, device: str, folder: Path, output: Path | None,
) -> None:  # fmt: skip
    """Compare the engines of a model: speed, first frame, memory, error."""
    budget = Budget(60 * minutes)
    where = choose_device(device)
    arms = choose_arms(engines, precisions)
    subject = open_subject(checkpoint, shape, device=where.type)
    tell_device(where, device)
    record = Record("engines", output, device=where)
    needed = tuple(name for name in PRECISIONS[:3] if any(arm.precision in (name, "fp32") for arm in arms))
    with ProgressLine(sys.stderr) as line:
        line.show("engines: what the machine can do")
        peaks, baseline = machine_peaks(where, needed, rounds=5), BASELINES[where.type].name
        record.save(subject=subject.name, peaks=peaks, prompt=PROMPT, baseline=baseline)
        line.show("engines: the baseline against itself")
        bench, row = open_bench(subject, where, batch=batch, rounds=rounds, folder=folder, peaks=peaks)
        rows = [row]
        record.save(passes_per_chunk=bench.passes, frames_per_chunk=bench.frames, rows=rows)
        for number, arm in enumerate(arms):
            line.show(f"engines: {arm.name}, {number + 1} of {len(arms)}")
            rows.append(budget.spend(lambda arm=arm: bench.row(arm), bench.heading(arm)))  # type: ignore[misc]
            record.save(rows=rows)
    say(*engines_table(record.document).split("\n"))
    record.finish(**summary(rows))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that are claimed: speeds, and those of the ratios that stand out of the noise."""
    measured = [row for row in rows if "refused" not in row]
    named = {f"{row['engine']} {row['precision']}": row for row in measured}
    return {
        "frames_per_second": {name: round(row["frames_per_second"], 2) for name, row in named.items()},
        "times_as_fast_as_the_baseline": {
            name: round(1 / row["time_over_baseline"], 3) for name, row in named.items() if row["differs"]
        },
        "refused": [f"{row['engine']} {row['precision']}" for row in rows if "refused" in row],
    }


if __name__ == "__main__":
    main()
