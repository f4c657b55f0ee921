"""Two processes train as one does, and go on where they were stopped, or killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.processes import train_shard

from plugins.errors import UserError
from vmla.train.cli.commands import main
from vmla.train.loop.loop import train
from vmla.train.loop.parallel import ALONE, Parallel, processes
from vmla.train.loop.sharded_state import load_shards

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[4]


def launch(folder, *, count=2, accumulate=1, stop_after=0, hang=0):
    """Begin training in `count` processes, as `torchrun` starts them; `hang` is a step that never ends."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count),
        str(ROOT / "tests/kit/processes/train_shard.py"), str(folder), str(accumulate), str(stop_after),
        str(hang),
    ]  # fmt: skip
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env={**os.environ, **paths}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def run(folder, **how):
    """Train until the processes end by themselves.

    On a crowded machine one of them rarely dies of "terminate called without an active exception", C++'s
    word for a thread that nobody joined; whose is not known yet (LOG.md). It is resumed, as after any kill.
    """
    launched = launch(folder, **how)
    errors = launched.communicate()[1]
    if "terminate called without an active exception" in errors:
        launched = launch(folder, **how)
        errors = launched.communicate()[1]
    assert launched.returncode == 0, errors
    return folder


def kill_at(folder, step):
    """SIGKILL the launcher and both of its processes while they are past the saved `step`."""
    launched = launch(folder, hang=step + 1)
    until = time.monotonic() + 240
    while not all((folder / f"hanging-{rank}").exists() for rank in range(2)):
        assert launched.poll() is None, launched.stderr.read()[-2000:]
        assert time.monotonic() < until, "the processes never got there"
        time.sleep(0.05)
    os.kill(launched.pid, signal.SIGKILL)
    for rank in range(2):
        os.kill(int((folder / f"hanging-{rank}").read_text()), signal.SIGKILL)
    launched.communicate()
    assert launched.returncode == -signal.SIGKILL
    assert json.loads((folder / "denoiser.json").read_text())["step"] == step


def losses(folder, name="denoiser"):
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines], dtype=torch.float64)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Ten steps in two processes, killed in the seventh, which no state holds yet; then run again.

    A kill may also come while a state is written or a line: what that leaves is added by hand.
    """
    folder = tmp_path_factory.mktemp("two")
    kill_at(folder, 6)
    half = folder / "denoiser-0000009"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    with (folder / "denoiser.jsonl").open("a") as log:
        log.write('{"step": 7, "loss": 99.0, "rate": 1.0, "seconds": 1.0}\n{"step": 8, "lo')
    return run(folder)


def test_two_processes_killed_and_resumed_lose_what_one_does_that_never_stopped(two, tmp_path):
    average = train(
        train_shard.forcing_stage(sharded=False), tmp_path, report=lambda line: None,
        parallel=Parallel(accumulate=2),
    )  # fmt: skip
    alone = losses(tmp_path)
    assert len(alone) == len(losses(two)) == train_shard.STEPS
    assert alone.std() > 1e-3
    assert_close(losses(two), alone, rtol=0, atol=1e-5)
    together = torch.load(two / "denoiser-average.pt", weights_only=True)
    assert together.keys() == average.keys()
    for name, tensor in average.items():
        # AdamW divides by the size of a gradient: where that is rounding alone, so is the step.
        assert_close(together[name], tensor, rtol=1e-2, atol=3e-3)
    states = sorted(path.name for path in two.iterdir() if path.is_dir())
    assert states == ["consistency-0000004", "denoiser-0000010"]


def test_a_target_without_a_backward_pass_follows_the_student_in_two_processes(two, tmp_path):
    stage, parallel = train_shard.consistency_stage(sharded=False), Parallel(accumulate=2)
    average = train(stage, tmp_path, report=lambda line: None, parallel=parallel)
    alone = losses(tmp_path, "consistency")
    assert_close(losses(two, "consistency"), alone, rtol=0, atol=1e-5)
    together = torch.load(two / "consistency-average.pt", weights_only=True)
    for name, tensor in average.items():
        assert_close(together[name], tensor, rtol=1e-2, atol=3e-3)


def test_a_group_of_micro_batches_is_the_same_however_it_is_split():
    def drawn(parallel, step):
        numbers = []
        parallel.backward(lambda n: numbers.append(n) or torch.zeros((), requires_grad=True), step)
        return numbers

    assert drawn(ALONE, 5) == [5]
    assert drawn(Parallel(accumulate=4), 2) == [8, 9, 10, 11]


def test_each_process_takes_its_own_share(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.mul_(2))
    taken = []
    for rank in range(2):
        parallel = Parallel(rank=rank, world=2, accumulate=2)
        loss = parallel.backward(lambda n: taken.append(n) or torch.tensor(float(n), requires_grad=True), 3)
        assert loss == (12 + rank + 14 + rank) / 2
    assert sorted(taken) == [12, 13, 14, 15]


def test_without_torchrun_a_process_is_alone():
    with processes(3, "cpu") as parallel:
        assert (parallel.rank, parallel.world, parallel.group, parallel.sharded) == (0, 1, 3, False)


def test_a_sharded_state_of_other_settings_is_refused(tmp_path):
    assert load_shards(tmp_path, "forcing", {}, {}, {}) is None
    (tmp_path / "forcing.json").write_text('{"settings": {"seed": 1}, "folder": "x", "step": 1}')
    with pytest.raises(UserError, match="made with seed = 1, this recipe has 2"):
        load_shards(tmp_path, "forcing", {}, {}, {"seed": 2})


@pytest.mark.parametrize("left", [None, 0, -1])
def test_a_damaged_sharded_state_is_refused_in_one_line(tmp_path, left):
    import torch.distributed.checkpoint as dcp

    numbers = torch.arange(1000.0)
    dcp.save({"parts": {"model": {"x": numbers}}, "optimizers": {}}, checkpoint_id=tmp_path / "forcing-1")
    (tmp_path / "forcing.json").write_text('{"settings": {}, "folder": "forcing-1", "step": 1}')
    parts = {"model": {"x": torch.zeros(1000)}}
    assert load_shards(tmp_path, "forcing", parts, {}, {})["step"] == 1
    assert torch.equal(parts["model"]["x"], numbers)
    for path in (tmp_path / "forcing-1").iterdir():
        if left is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match="forcing-1 is damaged; remove .*forcing.json to start") as caught:
        load_shards(tmp_path, "forcing", parts, {}, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["forcing", "distribution"])
def test_a_dry_run_counts_memory_by_part(name):
    sizes = {}
    for gpus in (1, 8):
        arguments = ["stage", name, "--recipe", "debug", "--dry-run", "--gpus", str(gpus)]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        sizes[gpus] = [line.rsplit(": ", 1)[0] for line in result.output.splitlines()]
    assert sizes[1] == sizes[8]
    assert {"weights, sharded", "AdamW's moments, sharded", "inputs of blocks", "all"} <= set(sizes[1])
