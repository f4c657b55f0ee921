"""`vmla-run --sequence-parallel`: two processes make one video, of which one writes it and is heard."""

import json
import socket
from contextlib import ExitStack, closing

import pytest
import torch.multiprocessing
from click.testing import CliRunner
from kit.processes.together import CHUNKS, process

from runtime.cli.run import main

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """The folder, and what each process said and exited with."""
    folder = tmp_path_factory.mktemp("together")
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(4)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    torch.multiprocessing.spawn(process, (str(folder), str(checkpoint), ports), nprocs=2)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_the_first_process_writes_and_speaks_and_the_other_is_silent(made):
    folder, (first, other) = made
    assert first[0][0] == 0, first[0][1]
    assert "processes: 2" in first[0][1]
    assert f"{12 * CHUNKS} frames" in first[0][1]
    assert other[0] == [0, ""]
    sidecar = json.loads((folder / "whole.mp4.json").read_text())
    assert (sidecar["processes"], sidecar["complete"]) == (2, True)


def test_a_video_that_was_stopped_goes_on_by_as_many_processes_with_the_same_bytes(made):
    folder, (first, other) = made
    assert first[1][0] == 143, first[1][1]
    assert "resume with" in first[1][1]
    assert other[1] == [2, ""]
    assert (first[2][0], other[2]) == (0, [0, ""]), (first[2], other[2])
    assert (folder / "stopped.mp4").read_bytes() == (folder / "whole.mp4").read_bytes()
    alone = CliRunner().invoke(main, ["--resume", str(folder / "kept" / "stopped.mp4")])
    assert alone.exit_code == 2
    assert "number of processes: 2, not 1" in alone.output


def test_a_mistake_is_said_once(made):
    _, (first, other) = made
    assert first[3][0] == 2
    assert "whole.mp4" in first[3][1]
    assert len(first[3][1].splitlines()) <= 3  # with how the command is used
    assert other[3] == [2, ""]


def test_whoever_starts_one_process_is_told_how_to_start_several():
    done = CliRunner().invoke(main, ["--sequence-parallel", "--prompt", "a red star", "-o", "x.mp4"])
    assert done.exit_code == 2
    assert "torchrun --nproc-per-node 2" in done.output
