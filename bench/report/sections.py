"""For each kind of document, its tables and plots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.quality.drift import MEASURES
from bench.quality.grades import mean_right
from bench.report import svg
from bench.report.elements.table import Section, Table
from bench.report.engines_table import or_dash, ratio

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
    plot = svg.bars("frames per second", bars, "", by_engine=True)
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


def _roof(document: dict[str, Any]) -> str:
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
    return svg.lines("roofline", roofs, "operations per byte", "operations per second", log=True, dots=dots)


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
    plot = svg.lines("weights and caches against streams", series, "streams", "GB", zero=True)
    return Section(tables=[Table(title=title, headings=headings, rows=rows)], plots=[plot])


def rollout_section(document: dict[str, Any]) -> Section:
    """Speed, and what changes as the video grows longer."""
    names = ("wall_seconds", "first_frame_seconds", "frames_per_second", "times_real_time", "peak_bytes")
    rows = [[name.replace("_", " "), f"{document[name]:,.4g}"] for name in names]
    rows += [[f"change of {name}", f"{value:+.1%}"] for name, value in document.get("drift", {}).items()]
    plots = []
    if points := document.get("picture"):
        first = {name: points[0][name] or 1.0 for name in MEASURES}
        curves = {name: [(p["second"], p[name] / first[name]) for p in points] for name in MEASURES}
        plots.append(svg.lines("the picture against time", curves, "seconds", "times its first", zero=True))
        if points[0].get("grades"):
            passed = {"passes all": [(p["second"], float(p["grades"]["all"])) for p in points]}
            plots.append(svg.lines("grades against time", passed, "seconds", "1: passed", zero=True))
    if chunks := document.get("chunks"):
        times = {"chunk": [(c["second"], 1e3 * c["chunk_seconds"]) for c in chunks]}
        held = {"process": [(c["second"], c["resident_bytes"] / 2**20) for c in chunks]}
        plots.append(svg.lines("time of a chunk", times, "seconds of video", "ms", zero=True))
        plots.append(svg.lines("memory", held, "seconds of video", "MiB", zero=True))
    return Section(tables=[Table(title="a whole video", headings=["", ""], rows=rows)], plots=plots)


def serve_section(document: dict[str, Any]) -> Section:
    """What viewers of the server see, by their number, and how fast a stream moves."""
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
    moves = ("state_moved", "hand_over", "fork", "cold_return")
    times = [
        [name.replace("_", " "), *(f"{document[name][key]:.0f}" for key in ("median_ms", "worst_ms"))]
        for name in moves
    ]
    return Section(
        tables=[
            Table(title="viewers at once", headings=headings, rows=rows),
            Table(title="a stream that moves", headings=["", "median, ms", "worst, ms"], rows=times),
        ],
        plots=[],
    )


def grades_section(document: dict[str, Any]) -> Section:
    """Shares of prompts that pass, over time."""
    marks = document["grades"]
    questions = list(next(iter(marks.values())))
    rows = [[f"{mark} s", *(f"{row[q]:.1%}" for q in questions)] for mark, row in marks.items()]
    series = {q: [(float(mark), row[q]) for mark, row in marks.items()] for q in questions}
    plot = svg.lines("share that passes", series, "seconds", "share", zero=True)
    table = Table(title=f"{document['prompts']} held-out prompts", headings=["after", *questions], rows=rows)
    return Section(tables=[table], plots=[plot])


def spectrum_section(document: dict[str, Any]) -> Section:
    """Effective ranks by layer, and the energy that the first directions hold."""
    plots, rows = [], []
    for one in document["checkpoints"]:
        name = f"{one['checkpoint']}, {one['layout']}"
        series: dict[str, list[tuple[float, float]]] = {}
        for row in one["layers"]:
            for share, rank in row["ranks"].items():
                points = series.setdefault(f"{row['matrix']}, {float(share):.0%}", [])
                points.append((float(row["layer"]), rank / row["full_rank"]))
        plots.append(svg.lines(f"{name}: effective over full rank", series, "layer", "share", zero=True))
        for matrix, ranks in one["medians"].items():
            rows.append([name, matrix, *(f"{rank:g}" for rank in ranks.values())])
    shares = [f"{float(s):.0%}" for s in next(iter(document["checkpoints"][0]["medians"].values()))]
    headings = ["checkpoint", "matrix", *shares]
    table = Table(title="effective rank, median layer", headings=headings, rows=rows)
    return Section(tables=[table], plots=plots)


def gpu_section(document: dict[str, Any]) -> Section:
    """The stages: chunks, graphs and kernels as bars, what failed as a table."""
    rows, bars = [], []
    for name, stage in document.items():
        if isinstance(stage, dict) and isinstance(stage.get("refused"), str):
            rows.append([name, stage["refused"]])
    for name in ("chunk", "compile", "aoti"):
        for row in document.get(name, {}).get("rows", []):
            if "refused" in row:
                rows.append([f"{row['engine']} {row['precision']}", row["refused"]])
            else:
                bars.append((f"{row['engine']} {row['precision']}", row["frames_per_second"], None))
    for row in document.get("graphs", {}).get("rows", []):
        bars.append((f"graph, {FORMS[row['layout']]}", row["frames_per_second"], None))
    tables = [Table(title="stages without figures", headings=["stage", "why"], rows=rows)] if rows else []
    if products := (document.get("peaks") or {}).get("products"):
        rates = [[name, f"{rate['per_second'] / 1e12:.1f}"] for name, rate in products.items()]
        tables.append(Table(title="products of a layer", headings=["product", "TFLOP/s"], rows=rates))
    return Section(
        tables=tables, plots=[svg.bars("frames per second", bars, "", by_engine=True)] if bars else []
    )


def quality_section(document: dict[str, Any]) -> Section:
    """VBench's dimensions and the paper's mean of them."""
    rows = [[name.replace("_", " "), f"{score:.4f}"] for name, score in document["scores"].items()]
    rows.append(["six-metric mean, as in the paper", f"{document['summary']['six_metric_mean']:.4f}"])
    return Section(tables=[Table(title="quality", headings=["dimension", "score"], rows=rows)], plots=[])


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


def study_section(document: dict[str, Any]) -> Section:
    """A table for each question: every arm with mean and deviation over its seeds."""
    found = document["compared"]
    tables = [
        study_table(question, [one for one in found if question in one["questions"]])
        for question in dict.fromkeys(question for one in found for question in one["questions"])
    ]
    watched = [one for one in found if one["along"]]
    marks = sorted(watched[0]["along"]["0"], key=int) if watched else []
    rows = [
        [one["arm"], step, *_grades_over_time(one["along"][step], marks)]
        for one in watched
        for step in sorted(one["along"], key=int)
    ]
    headings = ["arm", "step", *(f"right after {mark} s" for mark in marks)]
    along = Table(title="along training", headings=headings, rows=rows)
    return Section(tables=[*tables, along][: len(tables) + bool(watched)], plots=[])


def study_table(question: str, arms: list[dict[str, Any]]) -> Table:
    """One comparison: a row for each arm and stage; of the five questions the mean share that is right.

    Stages and seconds that not all of the arms have compare nothing.
    """
    marks = sorted(set.intersection(*(set(one["grades"]["denoiser"]) for one in arms)), key=int)
    rows = [
        [
            one["arm"], stage, str(one["entry_width"]),
            _with_deviation(one["loss"], "{:.4f}") if stage == "denoiser" else "-",
            *_grades_over_time(one["grades"][stage], marks), str(one["seeds"]),
        ]
        for one in arms
        for stage in ("denoiser", "consistency", "distribution")
        if all(stage in other["grades"] for other in arms)
    ]  # fmt: skip
    passed = (f"right after {mark} s" for mark in marks)
    headings = ["arm", "stage", "cached numbers", "loss", *passed, "seeds"]
    return Table(title=question, headings=headings, rows=rows)


def _grades_over_time(grades: dict[str, dict[str, dict[str, float]]], marks: list[str]) -> list[str]:
    return [_with_deviation(grades[mark]["mean"], "{:.1%}") if mark in grades else "-" for mark in marks]


KEPT = ("keys and values", "rotary keys", "queries")
"""Of which a conversion says how much energy it keeps."""


def conversion_section(document: dict[str, Any]) -> Section:
    """Every way to convert, with mean and deviation over the models."""
    steps = document["heal"]
    rows = [
        [
            one["variant"],
            " / ".join(f"{one['energy'][part]['mean']:.1%}" for part in KEPT if one["energy"]) or "-",
            _with_deviation(one["output_error"], "{:.3f}"), _with_deviation(one["worst_layer"], "{:.3f}"),
            _with_deviation(one["loss"], "{:.4f}"),
            *([_with_deviation(one["healed"], "{:.4f}")] if steps else []),
            _with_deviation(one["over_defaults"], "{:+.4f}"), str(one["models"]),
        ]
        for one in document["compared"]
    ]  # fmt: skip
    healed = [f"loss after {steps} steps"] if steps else []
    headings = ["converted with", f"kept of {' / '.join(KEPT)}", "output error",
                "of the worst layer", "loss", *healed, "over the defaults", "models"]  # fmt: skip
    before = _with_deviation(document["per_head_loss"], "{:.4f}")
    title = f"starts of latent attention; loss of the per-head model {before}"
    return Section(tables=[Table(title=title, headings=headings, rows=rows)], plots=[])


def _with_deviation(value: dict[str, float], form: str) -> str:
    return f"{form.format(value['mean'])} ± {form.replace('+', '').format(value['deviation'])}"


def layouts_section(document: dict[str, Any]) -> Section:
    """Models side by side: what they take, what is right over time, how they drift."""
    rows = document["models"]
    marks = sorted(rows[0]["grades"], key=int) if rows else []
    table = [
        [
            one["model"], str(one["steps"]), f"{one['cached_numbers'] * 4:,}",
            or_dash(one.get("frames_per_second"), "{:.0f}"),
            *(f"{mean_right(one['grades'][mark]):.1%} / {one['grades'][mark]['all']:.1%}" for mark in marks),
            *(f"{one['drift'][name]:+.1%}" for name in MEASURES if one["drift"]),
        ]
        for one in rows
    ]  # fmt: skip
    headings = ["model", "steps", "bytes cached per token and layer", "frames/s",
                *(f"right / all right after {mark} s" for mark in marks),
                *(f"change of {name}" for name in MEASURES)]  # fmt: skip
    title = f"{document['prompts']} held-out prompts, float32"
    right = {one["model"]: [(p["second"], mean_right(p["right"])) for p in one["curve"]] for one in rows}
    plots = [svg.lines("mean share that is right", right, "seconds", "share", zero=True)]
    for name in MEASURES:
        seen = {one["model"]: [(p["second"], p[name]) for p in one["curve"]] for one in rows}
        plots.append(svg.lines(name, seen, "seconds", name, zero=True))
    return Section(tables=[Table(title=title, headings=headings, rows=table)], plots=plots)


SECTIONS: dict[str, Callable[[dict[str, Any]], Section]] = {
    "engines": engines_section,
    "roofline": roofline_section,
    "memory": memory_section,
    "rollout": rollout_section,
    "serve": serve_section,
    "grades": grades_section,
    "layouts": layouts_section,
    "spectrum": spectrum_section,
    "gpu": gpu_section,
    "quality": quality_section,
    "kernels": kernels_section,
    "study": study_section,
    "conversion": conversion_section,
}
