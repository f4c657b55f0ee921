"""Sections of the studies that train and convert models."""

from __future__ import annotations

from typing import Any

from bench.report.elements.lines import Lines
from bench.report.elements.table import Section, Table


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
        title = f"{name}: effective over full rank"
        plots.append(Lines(title=title, x="layer", y="share", series=series, zero=True))
        for matrix, ranks in one["medians"].items():
            rows.append([name, matrix, *(f"{rank:g}" for rank in ranks.values())])
    shares = [f"{float(s):.0%}" for s in next(iter(document["checkpoints"][0]["medians"].values()))]
    headings = ["checkpoint", "matrix", *shares]
    table = Table(title="effective rank, median layer", headings=headings, rows=rows)
    return Section(tables=[table], plots=plots)


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


DECOMPOSED = ("keys and values", "rotary keys", "queries")
"""Parts of attention of which a conversion reports the kept energy."""


def conversion_section(document: dict[str, Any]) -> Section:
    """Every way to convert, with mean and deviation over the models."""
    steps = document["heal"]
    rows = [
        [
            one["variant"],
            " / ".join(f"{one['energy'][part]['mean']:.1%}" for part in DECOMPOSED if one["energy"]) or "-",
            _with_deviation(one["output_error"], "{:.3f}"), _with_deviation(one["worst_layer"], "{:.3f}"),
            _with_deviation(one["loss"], "{:.4f}"),
            *([_with_deviation(one["healed"], "{:.4f}")] if steps else []),
            _with_deviation(one["over_defaults"], "{:+.4f}"), str(one["models"]),
        ]
        for one in document["compared"]
    ]  # fmt: skip
    healed = [f"loss after {steps} steps"] if steps else []
    headings = ["converted with", f"kept of {' / '.join(DECOMPOSED)}", "output error",
                "of the worst layer", "loss", *healed, "over the defaults", "models"]  # fmt: skip
    before = _with_deviation(document["per_head_loss"], "{:.4f}")
    title = f"starts of latent attention; loss of the per-head model {before}"
    return Section(tables=[Table(title=title, headings=headings, rows=rows)], plots=[])


def _with_deviation(value: dict[str, float], form: str) -> str:
    return f"{form.format(value['mean'])} ± {form.replace('+', '').format(value['deviation'])}"
