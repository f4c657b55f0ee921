"""Sections of the benchmarks of speed and memory."""

from __future__ import annotations

from typing import Any

from bench.quality.drift import MEASURES
from bench.report.elements.bars import Bars
from bench.report.elements.engines_table import or_dash, ratio
from bench.report.elements.lines import Lines
from bench.report.elements.table import Plot, Section, Table

FORMS = {"mha": "per head", "mla": "latent"}


def engines_section(document: dict[str, Any]) -> Section:
    """The speed ladder, and the error beside every speed."""
    measured = [row for row in document["rows"] if "refused" not in row]
    bars = [
        (
            f"{row['engine']} {row['precision']}",
            row["frames_per_second"],
            row["frames_per_second"] * row["spread"] / row["time_over_baseline"],
        )
        for row in measured
    ]
    rows = [
        [
            f"{row['engine']} {row['precision']}", f"{row['frames_per_second']:.1f}", ratio(row),
            f"{row['chunk_ms']['p50']:.1f} / {row['chunk_ms']['p95']:.1f} / {row['chunk_ms']['p99']:.1f}",
            or_dash(row.get("first_frame_seconds"), "{:.2f}"),
            or_dash(row["share_of_matrix_peak"], "{:.0%}"), or_dash(row.get("error_velocity"), "{:.1e}"),
        ]
        for row in measured
    ]  # fmt: skip
    times = "p50 / p95 / p99 ms"
    headings = ["engine", "frames/s", "times baseline", times, "first frame s", "of peak", "error"]
    title = f"engines; baseline {document['baseline']}"
    table = Table(title=title, headings=headings, rows=rows, by_engine=True)
    refused = [[f"{r['engine']} {r['precision']}", r["refused"]] for r in document["rows"] if "refused" in r]
    tables = [table, Table(title="not measured", headings=["engine", "why"], rows=refused, by_engine=True)]
    plot = Bars(title="frames per second", values=bars, by_engine=True)
    return Section(tables=tables[: 1 + bool(refused)], plots=[plot])


def roofline_section(document: dict[str, Any]) -> Section:
    """Rates against intensity, with the parts of a pass under the roof."""
    tables = [
        Table(
            title="floors",
            headings=["layout", "form", "precision", "chunk ms", "frames/s"],
            rows=[
                [f["layout"], f["form"], f["precision"], f"{1e3 * f['chunk_seconds']:.3g}",
                 f"{f['frames_per_second']:.4g}"]
                for f in document.get("floors", [])
            ],
        )
    ]  # fmt: skip
    gaps = [
        [f"{g['engine']} {g['precision']}", f"{g['frames_per_second']:.4g}", f"{g['times_the_floor']:.2f}"]
        for g in document.get("gaps", [])
    ]
    if gaps:
        tables.append(Table(title="gaps", headings=["engine", "frames/s", "times the floor"], rows=gaps))
    return Section(tables=tables, plots=[_roof(document)] if document.get("peaks") else [])


def _roof(document: dict[str, Any]) -> Lines:
    """The roof of each precision, and the parts of the expanded pass in two-byte numbers on it."""
    copy = document["peaks"]["copy"]["per_second"]
    roofs, dots = {}, {}
    for precision, rate in document["peaks"]["matrix"].items():
        peak = rate["per_second"]
        ridge = peak / copy
        roofs[precision] = [(ridge / 1e3, peak / 1e3), (ridge, peak), (ridge * 1e3, peak)]
    best = max(rate["per_second"] for rate in document["peaks"]["matrix"].values())
    for one in document.get("passes", []):
        if (one["layout"], one["form"]) == ("mla", "expanded"):
            for name, part in one["parts"].items():
                intensity = part["flops"] / (2 * part["numbers"])
                dots[name] = [(intensity, min(best, intensity * copy))]
    return Lines(
        title="roofline",
        x="operations per byte",
        y="operations per second",
        series=roofs,
        dots=dots,
        log=True,
    )


def memory_section(document: dict[str, Any]) -> Section:
    """The cache, and the memory of a growing number of streams."""
    fits = {row["layout"]: row for row in document["streams"]}
    rows = [
        [name, f"{c['bytes_per_token_and_layer']:.1f}", f"{c['bytes_per_video'] / 1e6:.1f}",
         str(fits[name]["streams"])]
        for name, c in document["caches"].items()
    ]  # fmt: skip
    claim = document["compared"]
    title = f"the cache: {claim['less']:.1%} less, {claim['times_smaller']:.1f} times smaller"
    headings = ["layout", "bytes per token and layer", "MB per video", "streams that fit"]
    most = max(row["streams"] for row in fits.values())
    series = {
        FORMS[name]: [
            (float(n), (fits[name]["weights_bytes"] + n * cache["bytes_per_video"]) / 1e9)
            for n in (0, min(most, fits[name]["streams"]))
        ]
        for name, cache in document["caches"].items()
    }
    plot = Lines(title="weights and caches by streams", x="streams", y="GB", series=series, zero=True)
    return Section(tables=[Table(title=title, headings=headings, rows=rows)], plots=[plot])


def rollout_section(document: dict[str, Any]) -> Section:
    """Speed, and how it changes as the video grows longer."""
    names = ("wall_seconds", "first_frame_seconds", "frames_per_second", "times_real_time", "peak_bytes")
    rows = [[name.replace("_", " "), f"{document[name]:,.4g}"] for name in names]
    rows += [[f"change of {name}", f"{value:+.1%}"] for name, value in document.get("drift", {}).items()]
    plots: list[Plot] = []
    if points := document.get("picture"):
        first = {name: points[0][name] or 1.0 for name in MEASURES}
        curves = {name: [(p["second"], p[name] / first[name]) for p in points] for name in MEASURES}
        plots.append(
            Lines(title="the picture over time", x="seconds", y="times its first", series=curves, zero=True)
        )
        if points[0].get("grades"):
            passed = {"passes all": [(p["second"], float(p["grades"]["all"])) for p in points]}
            plots.append(
                Lines(title="grades over time", x="seconds", y="1: passed", series=passed, zero=True)
            )
    if chunks := document.get("chunks"):
        times = {"chunk": [(c["second"], 1e3 * c["chunk_seconds"]) for c in chunks]}
        held = {"process": [(c["second"], c["resident_bytes"] / 2**20) for c in chunks]}
        for title, unit, series in (("time of a chunk", "ms", times), ("memory", "MiB", held)):
            plots.append(Lines(title=title, x="seconds of video", y=unit, series=series, zero=True))
    return Section(tables=[Table(title="a whole video", headings=["", ""], rows=rows)], plots=plots)


RUNS = {
    "plain": "a plain loop",
    "unsaved": "the runtime, without saving",
    "now": "the runtime",
    "compiled": "the runtime, with an engine",
}
"""What each arm of `vmla-bench runtime` is."""


def runtime_section(document: dict[str, Any]) -> Section:
    """The runtime beside a plain loop over the same model, and what saving and resuming cost."""
    rates = [
        [RUNS[name], f"{document['frames_per_second'][name]:.1f}"]
        for name in RUNS
        if name in document["frames_per_second"]
    ]
    costs = [
        ["saving its state", f"{document['saving_costs']:.1%} of the time"],
        ["resuming, beside a start", f"{document['resume_adds_seconds']:.3f} s"],
        ["slow chunks, p99 / p50", f"{document['chunk_p99_over_p50']:.2f}"],
    ]
    speed = Table(title="the runtime beside a plain loop", headings=["", "frames/s"], rows=rates)
    return Section(tables=[speed, Table(title="what else it costs", headings=["", ""], rows=costs)], plots=[])


def serve_section(document: dict[str, Any]) -> Section:
    """Delays and stalls of the server's viewers, by their number, and the time to move a stream."""
    headings = [
        "streams", "frames/s", "of those without a server", "first frame p50, s", "gap p50, s", "p95", "p99",
        "late chunks",
    ]  # fmt: skip
    rows = [
        [
            str(crowd["streams"]), f"{crowd['frames_per_second']:.1f}", f"{crowd['share_of_alone']:.0%}",
            f"{crowd['first_frame_seconds']['p50']:.2f}",
            *(f"{crowd['gap_seconds'][name]:.3f}" for name in ("p50", "p95", "p99")),
            f"{crowd['late_share']:.1%}",
        ]
        for crowd in document["crowds"]
    ]  # fmt: skip
    crowds = Table(title="viewers at once", headings=headings, rows=rows)
    times = ["", "median, ms", "worst, ms"]
    moves = Table(title="a stream that moves", headings=times, rows=_moves(document))
    return Section(tables=[crowds, moves, _connects(document["connects"])], plots=[])


def _moves(document: dict[str, Any]) -> list[list[str]]:
    """How long each takes, or that it was not measured."""
    names = ("state_moved", "hand_over", "fork", "cold_return", "ray_hop")
    found = {name.replace("_", " "): document.get(name) for name in names}
    missing = ["not measured yet"] * 2
    return [
        [name, *([f"{one['median_ms']:.0f}", f"{one['worst_ms']:.0f}"] if one else missing)]
        for name, one in found.items()
    ]


def _connects(found: dict[str, Any]) -> Table:
    """Memory that viewers who came and went leave behind."""
    headings = ["connects", "a second", "descriptors more than before", "threads", "MiB"]
    left = (f"{found['left'][name]:+,d}" for name in ("files", "threads"))
    more = f"{found['left']['bytes'] / 2**20:+.1f}"
    row = [f"{found['count']:,}", f"{found['per_second']:.0f}", *left, more]
    return Table(title="who comes and goes", headings=headings, rows=[row])


def kernels_section(document: dict[str, Any]) -> Section:
    """Rates of attention and expansion, the error beside each."""
    rows = [
        [row["arm"], row["dtype"], str(row["shape"]["batch"]), str(row["shape"]["keys"]),
         f"{row['tflops']:.3g}", f"{row['time_over_sdpa']:.3f}", f"{row['error']:.1e}"]
        for row in document["rows"]
        if "refused" not in row
    ]  # fmt: skip
    headings = ["arm", "type", "batch", "keys", "TFLOP/s", "time over SDPA", "error"]
    return Section(tables=[Table(title="attention of one layer", headings=headings, rows=rows)], plots=[])
