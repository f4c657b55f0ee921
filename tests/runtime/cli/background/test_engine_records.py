"""What the store knows of builds in the background, and where an engine that nobody asked for may go."""

from dataclasses import replace

import pytest

from runtime.cli.background import records
from runtime.cli.background.records import MOST_BUILDS, Builds, place_of

pytestmark = pytest.mark.cpu


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "small-aoti-fp32"


def test_builds_that_never_ended_are_counted_until_no_more_are_begun(folder):
    for number in range(MOST_BUILDS):
        builds = Builds.of(folder, "a")
        assert builds.begun == number and builds.why_no_more() is None
        replace(builds, begun=number + 1).write(folder)
    assert Builds.of(folder, "a").why_no_more() == f"{MOST_BUILDS} builds did not come to their end"


def test_other_weights_or_versions_begin_anew(folder, monkeypatch):
    replace(Builds.of(folder, "a"), failure="it broke").write(folder)
    assert Builds.of(folder, "a").why_no_more() == "it failed: it broke"
    assert Builds.of(folder, "b").why_no_more() is None
    monkeypatch.setattr(records, "version", lambda name: "99")
    assert Builds.of(folder, "a").why_no_more() is None


@pytest.mark.parametrize("content", ["", "{}", '{"begun": -1}', "[1]"])
def test_a_damaged_record_counts_as_none(folder, content):
    Builds.path(folder).write_text(content)
    assert Builds.of(folder, "a") == replace(Builds.of(folder, "a"), begun=0, failure=None)


def test_what_is_there_keeps_its_place(tmp_path, folder, monkeypatch):
    assert place_of(tmp_path, folder.name, "0123456789") == folder
    folder.mkdir()
    places = [place_of(tmp_path, folder.name, model) for model in ("0123456789", "9876543210")]
    monkeypatch.setattr(records, "hardware", lambda: "a processor of another kind")
    places.append(place_of(tmp_path, folder.name, "9876543210"))
    assert len({folder, *places}) == 4
    assert all(place.parent == tmp_path and place.name.startswith(f"{folder.name}-") for place in places)
    assert place_of(tmp_path, folder.name, "9876543210") == places[-1]
