"""The hardware's limits: operations and bytes of a pass by part, this machine's peaks, and the floor.

    vmla-bench roofline --shape wan-1.3b
    vmla-bench roofline --checkpoint sprites --against bench/results/engines-sprites.json

The floor of a pass is the sum over its parts of the longer of two times: its operations at the measured
matrix peak, and its bytes at the measured copy peak. No engine can be faster; the gap says how many times
longer one takes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench.harness.document import Record, machine_name
from bench.harness.peaks import TYPES, machine_peaks
from bench.harness.subject import open_subject
from plugins.errors import UserError
from vmla.cli.command import OneLineCommand
from vmla.cli.options.choices import Choice, ChoiceList
from vmla.cli.options.device import choose_device, device_option, tell_device
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.config import MODEL_CONFIGS, WINDOWS, ModelConfig
from vmla.flops import FORMS, PassCost
from vmla.weights.checkpoint import Checkpoint

FRAMES_PER_LATENT = 4
VARIANTS = (("mha", "expanded"), *(("mla", form) for form in FORMS))
"""Layouts, and the ways in which they attend."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The least time of a chunk of `counted` in one precision."""

    counted: PassCost
    precision: str
    matrix: float
    """Measured peak of matrix products in this precision, in operations per second."""
    copy: float
    """Measured peak of a large copy, in bytes read and written per second."""

    @property
    def size(self) -> int:
        """Bytes that one number takes."""
        return TYPES[self.precision].itemsize

    @property
    def seconds(self) -> float:
        """Seconds that a chunk takes at least."""
        parts = self.counted.parts()
        # A part's arithmetic and transfers may overlap (the roofline model); parts follow one another.
        once = sum(max(p.flops / self.matrix, p.bytes(self.size) / self.copy) for p in parts)
        return once * self.counted.passes

    @property
    def frames_per_second(self) -> float:
        """Pixel frames of all videos."""
        frames = self.counted.batch * self.counted.config.chunk * FRAMES_PER_LATENT
        return frames / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """The figures as a results document holds them."""
        return {
            "layout": self.counted.config.layout,
            "form": self.counted.form,
            "precision": self.precision,
            "chunk_seconds": self.seconds,
            "frames_per_second": self.frames_per_second,
        }


def variants(config: ModelConfig, *, batch: int, passes: int) -> list[PassCost]:
    """The pass in every layout and form."""
    return [
        PassCost(config=replace(config, layout=layout), form=form, batch=batch, passes=passes)  # type: ignore[arg-type]
        for layout, form in VARIANTS
    ]


def described(counted: PassCost) -> dict[str, Any]:
    """A pass for a document."""
    parts = {part.name: {"flops": part.flops, "numbers": part.numbers} for part in counted.parts()}
    return {
        "layout": counted.config.layout,
        "form": counted.form,
        "keys": counted.window,
        "queries": counted.queries,
        "flops": counted.flops,
        "chunk_flops": counted.flops * counted.passes,
        "parts": parts,
    }


def floors(counted: list[PassCost], peaks: dict[str, Any]) -> list[Floor]:
    """The floor of every pass in every precision whose peak was measured."""
    copy = peaks["copy"]["per_second"]
    return [
        Floor(counted=one, precision=precision, matrix=rate["per_second"], copy=copy)
        for one in counted
        for precision, rate in peaks["matrix"].items()
        if precision in TYPES
    ]


def gaps(
    document: dict[str, Any], found: list[Floor], subject: str, across: bool
) -> Iterator[dict[str, Any]]:
    """For each engine of a results file, how far it is from its floor on this machine.

    Raises:
        UserError: if the file is about something else, or about another machine and `across` is not set.
    """
    if document["kind"] != "engines" or document.get("subject") != subject:
        what = f"{document['kind']} of {document.get('subject')}"
        raise UserError(f"the results file holds {what}; give one of: vmla-bench engines, of {subject}")
    by_variant: dict[tuple[str, str, str], Floor] = {
        (f.counted.config.layout, f.counted.form, f.precision): f for f in found
    }
    for row in document["rows"]:
        form = "absorbed" if row["engine"] == "absorbed" else "expanded"
        floor = by_variant.get((row["layout"], form, row["precision"]))
        if floor is not None and "refused" not in row:
            yield {
                "engine": row["engine"],
                "precision": row["precision"],
                "frames_per_second": row["frames_per_second"],
                "floor_frames_per_second": floor.frames_per_second,
                "times_the_floor": floor.frames_per_second / row["frames_per_second"],
                "across_machines": across,
            }


@click.command("roofline", cls=OneLineCommand, groups={
    "What is counted": ("checkpoint", "shape", "window", "batch", "precisions"),
    "Where": ("device", "output"),
    "Beside what was measured": ("against", "across_machines"),
})  # fmt: skip
@click.option("--checkpoint", help="Checkpoint folder or shipped model (default: sprites).")
@click.option("--shape", type=Choice(MODEL_CONFIGS), help="Named shape instead.")
@click.option("--window", type=Choice(list(WINDOWS)), help="Reading of the paper's window.")
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Number of videos made at once."
)
@click.option(
    "--precisions", type=ChoiceList(TYPES), default="fp32,bf16", help="Precisions that passes compute in."
)
@device_option()
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Results file of `engines`, whose distance from the roofline is printed.",
)
@click.option("--across-machines", is_flag=True, help="Compare even if that file is from another machine.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/roofline.json).")  # fmt: skip
def main(
    checkpoint: str | None, shape: str | None, window: str | None, batch: int, precisions: tuple[str, ...],
    device: str,
    against: Path | None, across_machines: bool, output: Path | None,
) -> None:  # fmt: skip
    """Count what a pass costs, measure this machine's peaks, and compute a chunk's least time."""
    from bench.report.schema.kinds import read_results

    where = choose_device(device)
    subject = open_subject(checkpoint, shape)
    earlier = None if against is None else read_results(against)
    tell_device(where, device)
    record = Record("roofline", output, device=where)
    if earlier is not None:
        _same_machine(record.document, earlier, across_machines)
    counted = variants(_windowed(subject, window), batch=batch, passes=subject.sampler().passes + 1)
    record.save(subject=subject.name, batch=batch, passes=[described(one) for one in counted])
    with ProgressLine(sys.stderr) as line:
        line.show("roofline: what the machine can do")
        peaks = machine_peaks(where, precisions)
    found = floors(counted, peaks)
    record.save(peaks=peaks, floors=[floor.as_dict() for floor in found])
    if earlier is not None:
        record.save(gaps=list(gaps(earlier, found, subject.name, across_machines)))
    say(*show(record.document).split("\n"))
    record.finish(**_summary(record.document))


def _windowed(subject: Checkpoint, window: str | None) -> ModelConfig:
    config = subject.model_config()
    if window is None:
        return config
    sink, history = WINDOWS[window]
    return replace(config, sink=sink, history=history)


def _same_machine(here: dict[str, Any], document: dict[str, Any], across: bool) -> None:
    ours, theirs = machine_name(here), machine_name(document)
    if ours != theirs and not across:
        mend = "add --across-machines to compare them all the same"
        raise UserError(f"the results are from {theirs}, this is {ours}; {mend}")


def show(document: dict[str, Any]) -> str:
    """Parts, peaks, floors and gaps as tables."""
    parts = Table(title=f"{document['subject']}: GFLOP of a pass by part")
    names = list(dict.fromkeys(name for one in document["passes"] for name in one["parts"]))
    for heading in ("layout", "form", *names, "pass", "chunk"):
        parts.add_column(heading, justify="right")
    for one in document["passes"]:
        cells = [f"{one['parts'].get(name, {'flops': 0})['flops'] / 1e9:.4g}" for name in names]
        totals = [f"{one[what] / 1e9:.4g}" for what in ("flops", "chunk_flops")]
        parts.add_row(one["layout"], one["form"], *cells, *totals)
    bound = Table(title="floors on this machine")
    for heading in ("layout", "form", "precision", "chunk ms", "frames/s"):
        bound.add_column(heading, justify="right")
    for one in document["floors"]:
        cells = [f"{1e3 * one['chunk_seconds']:.3g}", f"{one['frames_per_second']:.4g}"]
        bound.add_row(one["layout"], one["form"], one["precision"], *cells)
    console = Console(width=150)
    with console.capture() as caught:
        console.print(parts, bound)
    return "\n".join([caught.get().rstrip(), *_peak_lines(document["peaks"]), *_gap_lines(document)])


def _peak_lines(peaks: dict[str, Any]) -> Iterator[str]:
    side = peaks["size"]
    for precision, rate in peaks["matrix"].items():
        yield f"matrix peak, {precision}, {side} x {side} x {side}: {rate['per_second'] / 1e12:.4g} TFLOP/s"
    yield f"copy peak, read and write: {peaks['copy']['per_second'] / 1e9:.4g} GB/s"


def _gap_lines(document: dict[str, Any]) -> Iterator[str]:
    for gap in document.get("gaps", []):
        yield (
            f"{gap['engine']} {gap['precision']}: {gap['frames_per_second']:.4g} frames/s, "
            f"{gap['times_the_floor']:.2f} times the floor's time"
        )


def _summary(document: dict[str, Any]) -> dict[str, Any]:
    named = {
        f"{one['layout']} {one['form']} {one['precision']}": one["frames_per_second"]
        for one in document["floors"]
    }
    return {
        "subject": document["subject"],
        "chunk_tflop": {
            f"{one['layout']} {one['form']}": round(one["chunk_flops"] / 1e12, 6)
            for one in document["passes"]
        },
        "floor_frames_per_second": {name: round(value, 2) for name, value in named.items()},
    }


if __name__ == "__main__":
    main()
