"""The ladder: what each step towards the goal gains on a GPU, measured, beside what it should gain.

Goals follow by arithmetic from the rates of an H200 and a B200, and from published figures; they were set
before anything was measured. All speed-ups are over the per-head model in bfloat16, in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

from bench.report.elements.engines_table import ratio
from bench.report.elements.table import Table

Document = dict[str, Any]
Found = tuple[str, ...] | None
"""The cells of one rung, or None if the run has no figures for it."""
OWN, LONG = 9_360, 32_760
"""Keys of the paper's smallest window, and of one of 21 latent frames."""
RUN = {"shape": "wan-1.3b", "window": "total-6"}
"""Options of `vmla-bench gpu` that the goals are for: the published size, and 9,360 keys."""
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step of the ladder."""

    name: str
    least: str
    """The figure from which on it counts as done."""
    goal: str
    measured: Callable[[Document], Found]
    gpu: str = "H200"
    """Part of the name of the GPU that its goal is for."""


def speed_ups(documents: list[Document]) -> tuple[Table, list[Document]]:
    """Rungs that are faster than the per-head model, and the runs that they come from."""
    headings = [
        "9,360 keys, H200", "enough", "goal", "over per head, launched one by one", "over per head, in graphs"
    ]  # fmt: skip
    return _table("times as fast as a per-head cache", headings, SPEED_UPS, documents)


def other_rungs(documents: list[Document]) -> tuple[Table, list[Document]]:
    """Rungs with figures of their own, and the runs that they come from."""
    return _table("other figures", ["figure", "enough", "goal", "measured"], OTHERS, documents)


def _table(
    title: str, headings: list[str], rungs: Iterable[Rung], documents: list[Document]
) -> tuple[Table, list[Document]]:
    cells = len(headings) - 3
    rows, used = [], list[Document]()
    for rung in rungs:
        found, run = _first(rung, documents)
        shown = found or (NOT_MEASURED,) * cells
        rows.append([rung.name, rung.least, rung.goal, *shown, run.get("date", "-")])
        used += [run] if run and run not in used else []
    return Table(title=title, headings=[*headings, "date"], rows=rows), used


def _first(rung: Rung, documents: list[Document]) -> tuple[Found, Document]:
    """The cells of `rung` in the first document that has them, with that document."""
    for document in documents:
        fits = rung.gpu in document["machine"].get("gpu", "") and document["arguments"].items() >= RUN.items()
        if fits and (found := rung.measured(document)) is not None:
            return found, document
    return None, {}


def _row(document: Document, measurement: str, **wanted: object) -> Document | None:
    """The first row of `measurement` that has figures and the `wanted` values."""
    for row in (document.get(measurement) or {}).get("rows", []):
        if "refused" not in row and all(row.get(name) == value for name, value in wanted.items()):
            return cast(Document, row)
    return None


def _over_per_head(document: Document, took: float, in_turns: Document | None = None) -> Found:
    """Speed-ups of a chunk of `took` ms over the per-head model's, launched one by one and in graphs.

    Where `in_turns` is a row that was timed in turns with the latter, its ratio is the second one.
    """
    graphs, chunk = _row(document, "graphs", layout="mha"), _row(document, "chunk", engine="eager-mha")
    if graphs is None or chunk is None:
        return None
    launched, replayed = median(graphs["baseline_samples_ms"]), median(chunk["samples_ms"])
    return f"{launched / took:.2f}", ratio(in_turns) if in_turns else f"{replayed / took:.2f}"


def _latent(document: Document) -> Found:
    """The first figure is of a chunk whose operations are launched one by one, too."""
    graphs, chunk = _row(document, "graphs", layout="mla"), _row(document, "chunk", engine="eager-mla")
    if graphs is None or chunk is None:
        return None
    return _over_per_head(document, median(graphs["baseline_samples_ms"]), chunk)


def _joined(document: Document) -> Found:
    """A chunk with joined products in graphs, not compiled: that of the items without compiled blocks."""
    row = _row(document, "items", item="compiled blocks")
    return None if row is None else _over_per_head(document, row["without_ms"])


def _compiled(document: Document) -> Found:
    row = _row(document, "compile", engine="compile")
    return None if row is None else _over_per_head(document, median(row["samples_ms"]), row)


def _narrow(document: Document) -> Found:
    row = _row(document, "fp8", engine="fp8")
    return None if row is None else _over_per_head(document, row["median_ms"])


def _narrow_over_wide(document: Document) -> Found:
    if (row := _row(document, "fp8", engine="fp8")) is None:
        return None
    fast = 1 / row["time_over_wide"]
    return (f"{fast:.2f} ± {fast * row['spread'] / row['time_over_wide']:.2f}",)


def _kernel(document: Document, arm: str) -> Document | None:
    """The row of the kernel `arm` in bfloat16 at the smallest window."""
    for row in (document.get("kernels") or {}).get("rows", []):
        if (row.get("arm"), row.get("dtype"), row["shape"].get("keys")) == (arm, "bfloat16", OWN):
            return cast(Document, row)
    return None


def _triton(document: Document) -> Found:
    row = _kernel(document, "expanded, triton")
    return None if row is None else (f"{1 / row['time_over_sdpa']:.2f}",)


def _absorbed(document: Document) -> Found:
    row = _kernel(document, "absorbed, triton")
    return None if row is None else (f"{row['time_over_sdpa']:.2f}",)


def _expansion(document: Document) -> Found:
    row = _kernel(document, "expand, triton")
    return None if row is None else (f"{row['time_over_sdpa']:.1%}",)


def _jitter(document: Document) -> Found:
    if (row := _row(document, "compile", engine="compile")) is None:
        return None
    times = row["chunk_ms"]
    return (f"{times['p99'] / times['p50']:.3f}, of {len(row['samples_ms'])} chunks",)


def _launches(document: Document) -> Found:
    row = _row(document, "compile", engine="compile")
    return None if row is None else (str(row["launches_per_chunk"]),)


def _rate(keys: int) -> Callable[[Document], Found]:
    """Frames per second of a compiled chunk with its clean pass, in a window of `keys`."""

    def measured(document: Document) -> Found:
        row, name = _row(document, "windows", keys=keys, batch=1), "with_clean_pass_fps"
        if row is None and keys == OWN:
            row, name = _row(document, "compile", engine="compile"), "frames_per_second"
        return None if row is None else (f"{row[name]:.1f}",)

    return measured


def _narrow_rate(document: Document) -> Found:
    rates = (document.get("fp8") or {}).get("rates") or {}
    return None if "with_clean_pass_fps" not in rates else (f"{rates['with_clean_pass_fps']:.1f}",)


def _long_narrow_rate(document: Document) -> Found:
    row = _row(document, "fp8_long", keys=LONG)
    return None if row is None else (f"{row['with_clean_pass_fps']:.1f}",)


def _never(_: Document) -> Found:
    """For what no measurement covers yet."""
    return None


SPEED_UPS = (
    Rung(name="latent cache, the model as it is", least="1.05", goal="1.2", measured=_latent),
    Rung(name="joined products, in graphs", least="1.5", goal="2.0", measured=_joined),
    Rung(name="compiled, in graphs", least="2.3", goal="3.0", measured=_compiled),
    Rung(name="with linear layers in fp8 (the goal counts attention too)", least="3.0", goal="4.0",
         measured=_narrow),
)  # fmt: skip
OTHERS = (
    Rung(name="fp8, times as fast as bfloat16", least="1.15", goal="1.35", measured=_narrow_over_wide),
    Rung(name="our attention kernel, times as fast as cuDNN's", least="0.65", goal="0.85", measured=_triton),
    Rung(name="absorbed attention, time over cuDNN's expanded", least="≤ 2.0", goal="≤ 1.6",
         measured=_absorbed),
    Rung(name="expansion kernel, of cuDNN's attention time", least="≤ 8%", goal="≤ 5%", measured=_expansion),
    Rung(name="chunk p99 / p50, compiled", least="≤ 1.10", goal="≤ 1.05", measured=_jitter),
    Rung(name="launches per chunk, compiled", least="≤ 50", goal="≤ 3", measured=_launches),
    Rung(name="frames/s, 9,360 keys, compiled", least="-", goal="65 to 75", measured=_rate(OWN)),
    Rung(name="frames/s, 9,360 keys, fp8", least="-", goal="90 to 100", measured=_narrow_rate),
    Rung(name="frames/s, 32,760 keys, compiled", least="35", goal="39", measured=_rate(LONG)),
    Rung(name="frames/s, 32,760 keys, fp8", least="50", goal="60", measured=_long_narrow_rate),
    Rung(name="frames/s on a B200, 9,360 keys, compiled", least="130", goal="165", gpu="B200",
         measured=_rate(OWN)),
    Rung(name="frames/s on a B200, 9,360 keys, fp8", least="185", goal="241", gpu="B200",
         measured=_narrow_rate),
    Rung(name="frames/s on a B200, nvfp4 and attention in fp8", least="230", goal="303", gpu="B200",
         measured=_never),
    Rung(name="videos of 21 latent frames in memory at once", least="150", goal="194", measured=_never),
)  # fmt: skip
