"""One video at a time for one place, in one process or several; what is not a lock of ours stays."""

import os
import signal
import time

import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line

from plugins.documents.lock import Lock, is_locked, lock_path, locked
from plugins.errors import UserError
from runtime.cli.run import main
from vmla.train.cli.commands import main as train

pytestmark = pytest.mark.cpu


def test_a_second_one_is_refused_while_the_first_runs(tmp_path):
    output = tmp_path / "a.mp4"
    said = rf"being made already \(process {os.getpid()}\)"
    with locked(output), pytest.raises(UserError, match=said), locked(output):
        pass
    with locked(output):
        assert lock_path(output).exists()
    assert list(tmp_path.iterdir()) == []


def test_whether_somebody_holds_a_lock_is_seen_without_a_trace(tmp_path):
    output = tmp_path / "a.mp4"
    assert not is_locked(output) and list(tmp_path.iterdir()) == []
    with locked(output):
        assert is_locked(output)
    assert not is_locked(output)
    lock_path(output).write_text("videomla 1")  # left by a process that was killed
    assert not is_locked(output) and lock_path(output).read_text() == "videomla 1"


def test_a_lock_dies_with_its_process_and_its_file_is_no_obstacle(tmp_path):
    output = tmp_path / "a.mp4"
    hears, says = os.pipe()
    if (other := os.fork()) == 0:
        with locked(output):
            os.write(says, b"x")
            signal.pause()
    assert os.read(hears, 1) == b"x"
    with pytest.raises(UserError, match=rf"process {other}"), locked(output):
        pass
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    assert lock_path(output).exists()
    with locked(output):
        pass
    assert not lock_path(output).exists()


def holding(output, until):
    """A process that holds the lock of `output` until the file `until` is there."""
    hears, says = os.pipe()
    if (other := os.fork()) == 0:
        with locked(output):
            os.write(says, b"x")
            while not until.exists():
                time.sleep(0.01)
        os._exit(0)
    assert os.read(hears, 1) == b"x"
    return other


@pytest.mark.parametrize("killed", [True, False])
def test_whoever_waits_says_so_once_and_takes_its_turn_however_the_other_ends(tmp_path, killed):
    output, until, told = tmp_path / "engine", tmp_path / "until", []
    other = holding(output, until)

    def waits(line):
        told.append(line)
        os.kill(other, signal.SIGKILL) if killed else until.touch()

    with Lock(output, waits):
        status = os.waitstatus_to_exitcode(os.waitpid(other, 0)[1])
        assert status == (-signal.SIGKILL if killed else 0)
        assert is_locked(output)
        assert lock_path(output).read_text() == f"videomla {os.getpid()}\n"
    assert told == [f"{output} is being made already (process {other}); waiting until that is done"]
    assert not lock_path(output).exists()


def test_one_that_is_free_is_taken_without_a_word(tmp_path):
    with Lock(tmp_path / "engine", pytest.fail):
        assert is_locked(tmp_path / "engine")


def test_of_many_that_wait_one_has_its_turn_at_a_time(tmp_path):
    """Each adds one to a number that it reads a moment before: turns that overlap would lose some."""
    output, number = tmp_path / "engine", tmp_path / "number"
    number.write_text("0")
    children = []
    with locked(output):
        for _ in range(8):
            children.append(os.fork())
            if not children[-1]:
                with Lock(output, lambda line: None):
                    read = int(number.read_text())
                    time.sleep(0.01)
                    number.write_text(str(read + 1))
                os._exit(0)
        time.sleep(0.1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
    assert number.read_text() == "8" and not lock_path(output).exists()


def test_a_process_that_was_forked_meanwhile_does_not_keep_it(tmp_path):
    with locked(tmp_path / "engine"):
        if (child := os.fork()) == 0:
            signal.pause()
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    with locked(tmp_path / "engine"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_lock_that_is_let_go_twice_leaves_the_next_one_alone(tmp_path):
    first, second = Lock(tmp_path / "engine"), Lock(tmp_path / "engine")
    with first:
        first.release()
        with second:
            first.release()
            assert is_locked(tmp_path / "engine")
    assert not lock_path(tmp_path / "engine").exists()


def test_what_is_no_lock_stays(tmp_path):
    output, pipe = tmp_path / "a.mp4", tmp_path / "b.mp4"
    lock_path(output).write_text("mine")
    os.mkfifo(lock_path(pipe))
    for place in output, pipe:
        with pytest.raises(UserError, match="not a lock of ours"), locked(place):
            pass
    assert lock_path(output).read_text() == "mine" and lock_path(pipe).is_fifo()


def test_of_two_trainings_in_one_folder_the_second_is_refused(tmp_path):
    with locked(tmp_path / "codec"):
        result = CliRunner().invoke(train, ["run", "debug", "-o", str(tmp_path)])
    assert_one_line(result, f"{tmp_path / 'codec'} is being made already")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["a.mp4", "pictures"])
def test_a_command_is_refused_where_another_one_works(checkpoint, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    asked = ["--prompt", "a red star", "--checkpoint", str(checkpoint), "--chunks", "1", "-o", output]
    with locked(tmp_path / output):
        assert_one_line(CliRunner().invoke(main, asked), f"{output} is being made already")
        assert list(tmp_path.iterdir()) == [lock_path(tmp_path / output)]
    assert CliRunner().invoke(main, asked).exit_code == 0
    assert not lock_path(tmp_path / output).exists()
