"""Tables and plots of the documents, made from the committed results: no figure in them is typed by hand.

python -m bench.report.readme          make them anew
python -m bench.report.readme --check  fail if they differ from the results
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench.report import gpu_tables
from bench.report.elements.engines_table import or_dash, ratio
from bench.report.gpu_files import COMMAND, NEWEST, gpu_documents, newest_with, where
from bench.report.sections.kinds import SECTIONS
from bench.report.summary import summary_table
from bench.site.commands import verbs_help
from bench.site.drawings import drawings
from plugins.atomic_files import atomic_write_text
from plugins.documents.json_file import read_json
from plugins.errors import UserError
from vmla.cli.command import OneLineCommand
from vmla.train.publish.model_card import grade_rows
from vmla.weights.checkpoint import shipped_names

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = ("README.md", "docs/results.md", "docs/training.md", "docs/study.md", "plugins/README.md",
             *(f"vmla/checkpoints/{name}/README.md" for name in shipped_names()))  # fmt: skip
PLOTS = {
    "layouts-sprites.json": ("layouts-right.svg", "layouts-saturation.svg"),
    "caches-sprites.json": ("caches-bytes.svg", "caches-time.svg"),
}
"""Files in `docs` of the first plots of a results file's section."""
MISSING = "not measured yet"
JOINT: dict[str, Callable[[Path], list[str]]] = {
    "summary": summary_table, "gpu_ladder": gpu_tables.ladder_lines
}  # fmt: skip
"""Blocks that are made from several results files."""


@dataclass(frozen=True, kw_only=True)
class GeneratedTable:
    """A table of a document: its results file, how that becomes lines, and the command that measures it."""

    file: str
    table: Callable[[dict[str, Any]], list[str]]
    command: str
    measurement: str | None = None
    """What it shows of a run on a GPU; where `file` has no figures of it, those of an earlier run serve."""

    def lines(self) -> list[str]:
        """The table with the machine and command that measured it, or the command that would."""
        if (result := self._result()) is None:
            return [f"{MISSING}: `{self.command} -o bench/results/{self.file}`"]
        whole = "" if result.get("complete", True) else " Interrupted: not all was measured."
        whole += f" {result['note']}" if "note" in result else ""
        command = result.get("command", self.command)
        return [*self.table(result), "", f"{where(result)}.{whole} `{command}` repeats this."]

    def _result(self) -> dict[str, Any] | None:
        path = RESULTS / self.file
        own = read_json(path) if path.exists() else None
        if self.measurement is None:
            return own
        return newest_with(gpu_documents(RESULTS), self.measurement) or own


def rollout_table(result: dict[str, Any]) -> list[str]:
    """Speed and memory of one whole video."""
    memory = result["resident_bytes"]
    rows = [
        ("three minutes of video, from the command to the whole file", f"{result['wall_seconds']:.0f} s"),
        ("first frame in the file", f"{result['first_frame_seconds']:.1f} s"),
        ("times real time", f"{result['times_real_time']:.1f}"),
        ("most memory the process ever held", f"{result['peak_bytes'] / 2**20:.0f} MiB"),
        ("growth of memory from minute 1 to minute 3", f"{memory['growth']:.1%}"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def grades_table(result: dict[str, Any]) -> list[str]:
    """Shares of held-out prompts that pass each question, over time."""
    return [*grade_rows(result["grades"]), "", f"{result['prompts']} held-out prompts."]


def engines_table(result: dict[str, Any]) -> list[str]:
    """Speeds with their spread, and the error beside each; a ratio in brackets is within the noise."""
    return [
        f"| engine | frames/s | times {result['baseline']} | p99 / p50 | of matrix peak | error |",
        "|---|---|---|---|---|---|",
        *(_engine_row(row) for row in result["rows"] if "refused" not in row),
    ]


def _engine_row(row: dict[str, Any]) -> str:
    jitter = row["chunk_ms"]["p99"] / row["chunk_ms"]["p50"]
    cells = [
        f"{row['engine']} {row['precision']}", f"{row['frames_per_second']:.1f}", ratio(row),
        f"{jitter:.2f}", or_dash(row["share_of_matrix_peak"], "{:.0%}"),
        or_dash(row.get("error_velocity"), "{:.1e}"),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def memory_table(result: dict[str, Any]) -> list[str]:
    """The cache of both layouts as the machine holds it."""
    fits = {row["layout"]: row["streams"] for row in result["streams"]}
    claim = result["compared"]
    gib = result["streams"][0]["memory_bytes"] / 2**30
    return [
        f"| cache of {result['subject']}, bfloat16 | bytes per token and layer | MB per video "
        f"| streams in {gib:.0f} GiB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {cache['bytes_per_token_and_layer']:.1f} | {cache['bytes_per_video'] / 1e6:.1f} "
            f"| {fits[name]} |"
            for name, cache in result["caches"].items()
        ),
        "",
        f"{claim['less']:.1%} less: {claim['times_smaller']:.1f} times smaller.",
    ]


def section_tables(result: dict[str, Any]) -> list[str]:
    """The tables that a report shows of a document, each under its title."""
    return gpu_tables.titled(SECTIONS[result["kind"]](result).tables)


TABLES = {
    "rollout": GeneratedTable(
        file="rollout-sprites.json", table=rollout_table, command="python -m bench.speed.rollout"
    ),
    "grades": GeneratedTable(
        file="grades-sprites.json", table=grades_table, command="python -m bench.quality.grades"
    ),
    "speed": GeneratedTable(
        file="speed-sprites.json",
        table=section_tables,
        command="vmla-bench layouts --prompts 0 --model 'first world=runs/first-world' "
        "--model 'eight guided steps=runs/unrefined' --model sprites",
    ),
    "engines": GeneratedTable(file="engines-sprites.json", table=engines_table, command="vmla-bench engines"),
    "serve": GeneratedTable(file="serve-sprites.json", table=section_tables, command="vmla-bench serve"),
    "memory": GeneratedTable(file="memory-wan.json", table=memory_table, command="vmla-bench memory"),
    "caches": GeneratedTable(file="caches-sprites.json", table=section_tables, command="vmla-bench caches"),
    "study": GeneratedTable(file="study-mini.json", table=section_tables, command="vmla-bench study mini"),
    "layouts": GeneratedTable(
        file="layouts-sprites.json",
        table=section_tables,
        command="vmla-bench layouts --prompts 96 --model latent=runs/sprites-mla-forcing/checkpoint "
        "--model 'per head=runs/sprites-mha-forcing/checkpoint'",
    ),
    "first_layouts": GeneratedTable(
        file="first-world/layouts-sprites.json",
        table=section_tables,
        command="vmla-bench layouts --prompts 32 "
        + " ".join(
            f"--model '{name}, four steps=runs/sprites-{layout}-distribution/checkpoint'"
            for name, layout in (("latent", "mla"), ("per head", "mha"))
        ),
    ),
    "spectrum": GeneratedTable(
        file="spectrum-mini.json",
        table=section_tables,
        command="vmla-bench spectrum "
        + " ".join(
            f"runs/study/mini/{arm}-0/denoiser/{name}"
            for arm in ("mha", "mla")
            for name in (*(f"step-{step:06d}" for step in (0, 300, 600, 900)), "checkpoint")
        ),
    ),
    "conversion": GeneratedTable(
        file="conversion-mini.json",
        table=section_tables,
        command="vmla-bench conversion mini "
        + " ".join(f"--from runs/study/mini/mha-{seed}/denoiser/checkpoint" for seed in range(3))
        + " --calibration runs/study/mini/world/latents",
    ),
    **{
        name: GeneratedTable(file=NEWEST, table=table, command=COMMAND, measurement=measurement)
        for name, measurement, table in (
            ("gpu", "chunk", gpu_tables.chunk_table),
            ("gpu_kernels", "kernels", gpu_tables.kernel_table),
            ("gpu_profile", "profile", gpu_tables.profile_lines),
            ("gpu_items", "items", gpu_tables.items_lines),
            ("gpu_windows", "windows", gpu_tables.windows_lines),
            ("gpu_fp8", "fp8", gpu_tables.fp8_lines),
            ("gpu_training", "training", gpu_tables.training_table),
        )
    },
}
"""How each marked block of a document is made."""


def render(text: str) -> str:
    """`text` with every block `<!-- results: NAME --> ... <!-- end -->` made anew.

    Raises:
        UserError: for a block without a table.
    """

    def block(found: re.Match[str]) -> str:
        name = found[1]
        if name in JOINT:
            return "\n".join([f"<!-- results: {name} -->", *JOINT[name](RESULTS), "<!-- end -->"])
        if name not in TABLES:
            raise UserError(f"a document has a block {name!r}; known are {', '.join((*TABLES, *JOINT))}")
        return "\n".join([f"<!-- results: {name} -->", *TABLES[name].lines(), "<!-- end -->"])

    return re.sub(r"<!-- results: (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def plots() -> Iterator[tuple[str, str]]:
    """Drawings, plots whose results are there, the help of verbs: each file, from the root, and its text."""
    yield from ((f"docs/{file}", text) for file, text in drawings())
    yield "bench/verbs.json", json.dumps(verbs_help(), indent=1, ensure_ascii=False) + "\n"
    for name, files in PLOTS.items():
        if (RESULTS / name).exists():
            result = read_json(RESULTS / name)
            drawn = SECTIONS[result["kind"]](result).plots
            yield from ((f"docs/{file}", plot.text()) for file, plot in zip(files, drawn, strict=False))


@click.command(cls=OneLineCommand)
@click.option("--check", is_flag=True, help="Change nothing; fail if a table or a plot differs.")
def main(check: bool) -> None:
    """Make the documents' tables and plots from bench/results."""
    tables = ((name, render((ROOT / name).read_text())) for name in DOCUMENTS)
    for name, new in (*tables, *plots()):
        path = ROOT / name
        old = path.read_text() if path.exists() else None
        if check and new != old:
            raise UserError(f"{name} differs from bench/results; run: python -m bench.report.readme")
        if new != old:
            atomic_write_text(path, new)


if __name__ == "__main__":
    main()
