"""Sections of the benchmarks of picture quality."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.quality.drift import MEASURES
from bench.quality.grades import mean_right
from bench.report.elements.engines_table import or_dash
from bench.report.elements.lines import Lines
from bench.report.elements.table import Section, Table
from vmla.world.grader.grade import QUESTIONS


def grades_section(document: dict[str, Any]) -> Section:
    """Shares of prompts that pass, over time."""
    marks = dict(sorted(document["grades"].items(), key=lambda mark: int(mark[0])))
    questions = _in_order(next(iter(marks.values())))
    rows = [[f"{mark} s", *(f"{row[q]:.1%}" for q in questions)] for mark, row in marks.items()]
    series = {q: [(float(mark), row[q]) for mark, row in marks.items()] for q in questions}
    plot = Lines(title="share that passes", x="seconds", y="share", series=series, zero=True)
    table = Table(title=f"{document['prompts']} held-out prompts", headings=["after", *questions], rows=rows)
    return Section(tables=[table], plots=[plot])


def diagnose_section(document: dict[str, Any]) -> Section:
    """Shares of prompts that pass, for the codec, first chunks and continuations."""
    parts = {"first chunks alone": document["first_chunks"], "whole videos": document["stages"]}
    tables = []
    for title, part in parts.items():
        rows = {f"{name}, {group}": row for name, groups in part.items() for group, row in groups.items()}
        if rows:
            tables.append(shares_table(title, rows))
    return Section(tables=tables, plots=[])


def grader_section(document: dict[str, Any]) -> Section:
    """How often the grader is right about videos whose answers are known."""
    rows = {"rendered": document["accuracy"], "degraded": document["accuracy_degraded"]}
    return Section(tables=[shares_table(f"{document['scenes']} known scenes", rows)], plots=[])


def shares_table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    """Shares of right answers to each question, a row for each name."""
    questions = _in_order({question for row in rows.values() for question in row})
    shown = [[name, *(or_dash(row.get(q), "{:.1%}") for q in questions)] for name, row in rows.items()]
    return Table(title=title, headings=["of", *questions], rows=shown)


def _in_order(asked: Iterable[str]) -> list[str]:
    """Questions in the grader's order, then what else is asked."""
    order = {question: number for number, question in enumerate(QUESTIONS)}
    return sorted(asked, key=lambda question: (order.get(question, len(order)), question))


def quality_section(document: dict[str, Any]) -> Section:
    """VBench's dimensions and the paper's mean of them."""
    rows = [[name.replace("_", " "), f"{score:.4f}"] for name, score in document["scores"].items()]
    rows.append(["six-metric mean, as in the paper", f"{document['summary']['six_metric_mean']:.4f}"])
    return Section(tables=[Table(title="quality", headings=["dimension", "score"], rows=rows)], plots=[])


def layouts_section(document: dict[str, Any]) -> Section:
    """Models side by side: memory and speed, shares of right answers over time, drift."""
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
                *(f"change of {name}" for name in MEASURES if rows and rows[0]["drift"])]  # fmt: skip
    title = f"{document['prompts']} held-out prompts, float32" if marks else "speed alone, float32"
    tables = [Table(title=title, headings=headings, rows=table)]
    if not any(one["curve"] for one in rows):
        return Section(tables=tables, plots=[])
    right = {one["model"]: [(p["second"], mean_right(p["right"])) for p in one["curve"]] for one in rows}
    plots = [Lines(title="mean share that is right", x="seconds", y="share", series=right, zero=True)]
    for name in MEASURES:
        seen = {one["model"]: [(p["second"], p[name]) for p in one["curve"]] for one in rows}
        plots.append(Lines(title=name, x="seconds", y=name, series=seen, zero=True))
    return Section(tables=tables, plots=plots)
