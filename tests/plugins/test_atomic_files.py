"""What is written appears whole or not at all."""

import pytest

from plugins.atomic_files import (
    TEMPORARY_SUFFIX,
    atomic_folder,
    atomic_write,
    atomic_write_bytes,
    atomic_write_text,
    remove_temporary,
    temporary_path,
)

pytestmark = pytest.mark.cpu


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    return path


def test_the_old_file_is_there_until_the_new_one_is_whole(old):
    with atomic_write(old) as temporary:
        temporary.write_text("new")
        assert (old.read_text(), temporary.parent) == ("old", old.parent)
    assert old.read_text() == "new" and not temporary.exists()


def test_a_failure_leaves_the_old_file(old):
    with pytest.raises(ValueError, match="half-way"), atomic_write(old) as temporary:
        temporary.write_text("ne")
        raise ValueError("half-way")
    assert old.read_text() == "old" and list(old.parent.iterdir()) == [old]


def test_text_and_bytes(old):
    atomic_write_text(old, "text")
    assert old.read_bytes() == b"text"
    atomic_write_bytes(old, b"\0\1")
    assert old.read_bytes() == b"\0\1" and [path.name for path in old.parent.iterdir()] == ["a.json"]


def test_a_link_that_lies_aside_is_not_written_through(old):
    mine = old.with_name("mine")
    mine.write_text("mine")
    temporary_path(old).symlink_to(mine)
    atomic_write_text(old, "new")
    assert (old.read_text(), mine.read_text()) == ("new", "mine") and not temporary_path(old).is_symlink()


def test_only_what_bears_our_own_ending_is_taken_for_left_over(old):
    (old.parent / "a.json.tmp").write_text("mine")
    (old.parent / "a.json.tmp.d").mkdir()
    for left in (old, old.parent / "a.json.tmp.d" / "b"):
        temporary_path(left).write_text("half")
    temporary_path(old.parent / "model").mkdir()
    (temporary_path(old.parent / "model") / "weights").touch()
    atomic_write_text(old, "new")
    remove_temporary(old.parent)
    assert {path.name for path in old.parent.rglob("*")} == {"a.json", "a.json.tmp", "a.json.tmp.d"}


def test_a_folder_appears_at_once_and_what_was_left_aside_is_no_part_of_it(tmp_path):
    left = tmp_path / f"model{TEMPORARY_SUFFIX}"
    left.mkdir()
    (left / "of-one-that-was-killed").touch()
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").touch()
        assert not (tmp_path / "model").exists()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights"] and not left.exists()


def test_a_folder_that_is_there_is_never_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "model"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine"]


def test_a_folder_that_could_not_be_filled_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
