"""Tables of grades: every share in its place, marks in the order of time, and no plot of nothing."""

from itertools import count

import pytest

from bench.report.sections.quality import diagnose_section, grader_section, grades_section, layouts_section
from bench.report.sections.speed import RUNS, runtime_section
from vmla.world.grader.grade import QUESTIONS

pytestmark = pytest.mark.cpu


NUMBERS = count(1)


def shares(*questions):
    """Another share for each question, in an order that is not the grader's."""
    return {question: next(NUMBERS) / 1000 for question in sorted(questions)}


def cells(table):
    """The cells of a table by row and column, but for the names of the rows."""
    return {row[0]: dict(zip(table.headings[1:], row[1:], strict=True)) for row in table.rows}


def shown(row):
    return {question: f"{share:.1%}" for question, share in row.items()}


def test_marks_are_in_the_order_of_time_and_questions_in_the_graders():
    grades = {mark: shares(*QUESTIONS, "all") for mark in ("180", "5", "60")}
    section = grades_section({"grades": grades, "prompts": 3})
    (table,) = section.tables
    assert [row[0] for row in table.rows] == ["5 s", "60 s", "180 s"]
    assert table.headings == ["after", *QUESTIONS, "all"]
    assert cells(table) == {f"{mark} s": shown(row) for mark, row in grades.items()}
    assert all([x for x, _ in points] == [5, 60, 180] for points in section.plots[0].series.values())


def test_a_diagnosis_has_a_row_for_each_part_and_group():
    still = [question for question in QUESTIONS if question != "motion"]
    first = {"seen": {"all": shares(*still), "one object": shares(*still)}, "others": {"all": shares(*still)}}
    stages = {"own": {"all": shares(*QUESTIONS)}}
    alone, whole = diagnose_section({"first_chunks": first, "stages": stages}).tables
    assert alone.headings == ["of", *still]
    assert cells(alone)["seen, one object"] == shown(first["seen"]["one object"])
    assert [row[0] for row in alone.rows] == ["seen, all", "seen, one object", "others, all"]
    assert cells(whole) == {"own, all": shown(stages["own"]["all"])}
    assert diagnose_section({"first_chunks": {}, "stages": stages}).tables[0].title == "whole videos"


def test_a_question_that_one_row_alone_answers_is_empty_in_the_other():
    accuracy, degraded = shares("colour", "shape"), shares("colour")
    (table,) = grader_section(
        {"scenes": 7, "accuracy": accuracy, "accuracy_degraded": degraded}
    ).tables
    assert cells(table)["rendered"] == shown(accuracy)
    assert cells(table)["degraded"] == {**shown(degraded), "shape": "-"}


def test_models_that_made_no_videos_have_a_table_and_no_plots():
    model = {"model": "a", "steps": 4, "cached_numbers": 48, "grades": {}, "drift": {}, "curve": []}
    section = layouts_section({"models": [{**model, "frames_per_second": 220.0}], "prompts": 0})
    assert section.plots == []
    assert section.tables[0].rows == [["a", "4", "192", "220"]]


def test_the_runtime_is_shown_arm_by_arm_and_without_an_engine_if_none_ran():
    rates = {"plain": 1.0, "unsaved": 4.0, "now": 3.0}
    figures = {"saving_costs": 0.25, "resume_adds_seconds": 0.5, "chunk_p99_over_p50": 1.5}
    speed, costs = runtime_section({"frames_per_second": rates, **figures}).tables
    assert dict(speed.rows) == {RUNS[name]: f"{rate:.1f}" for name, rate in rates.items()}
    assert [row[1] for row in costs.rows] == ["25.0% of the time", "0.500 s", "1.50"]
