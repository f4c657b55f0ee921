"""The pool of workers on a real Ray cluster of this machine, and a worker that is killed."""

import os
import signal
import threading
import time
from functools import partial

import pytest
from click.testing import CliRunner

from runtime.cli.run import main
from runtime.cluster.library import connect
from runtime.cluster.pool import VideoPool
from runtime.prompts.videos_file import Video
from runtime.resume.state import state_path
from runtime.session.replay import new

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray
VIDEOS = [Video(name="star", prompt="a red star", seed=3), Video(name="ring", prompt="a blue ring", seed=4)]


@pytest.fixture(scope="module")
def cluster():
    quick = {"worker_niceness": 0}  # else workers wait for whatever else this machine does
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", _system_config=quick
    )
    yield connect()
    ray.shutdown()


def order(prompt, *, checkpoint):
    return new(prompt, str(checkpoint), scale=None, chunks=40, threads=1)


def run(*arguments):
    done = CliRunner().invoke(main, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_pool_makes_what_one_machine_makes_though_a_worker_is_killed(cluster, checkpoint, tmp_path):
    listing, here, there = tmp_path / "videos.yaml", tmp_path / "here", tmp_path / "there"
    listing.write_text("star: {prompt: a red star, seed: 3}\nring: {prompt: a blue ring, seed: 4}\n")
    asked = ("--videos", listing, "--checkpoint", checkpoint, "--threads", 1, "--chunks", 40)
    run(*asked, "-o", here)
    there.mkdir()
    pool = VideoPool(
        cluster, partial(order, checkpoint=checkpoint), there, workers=1, threads=1, gpus=0.0,
        save_every=0.0, overwrite=False,
    )  # fmt: skip
    killer = threading.Thread(target=kill_once_saved, args=(pool, there / "star.mp4"))
    killer.start()
    made = list(pool.run(VIDEOS, threading.Event()))
    killer.join()
    assert sorted((one.name, one.complete, one.failure) for one in made) == [
        ("ring", True, None), ("star", True, None)
    ]  # fmt: skip
    assert pool._deaths == {"star": 1}
    star = next(one for one in made if one.name == "star")
    assert star.made < star.frames  # the rest alone
    for name in ("star", "ring"):
        assert (there / f"{name}.mp4").read_bytes() == (here / f"{name}.mp4").read_bytes()
    (there / "ring.mp4").unlink()
    (there / "ring.mp4.json").unlink()
    said = run(*asked, "--ray", "-o", there)
    assert "which were there" in said
    assert (there / "ring.mp4").read_bytes() == (here / "ring.mp4").read_bytes()


def kill_once_saved(pool, output):
    """As the system does when memory runs out."""
    end = time.monotonic() + 100
    while not state_path(output).exists() and time.monotonic() < end:
        time.sleep(0.01)
    ((worker, _),) = pool._running.values()
    os.kill(ray.get(worker.process.remote()), signal.SIGKILL)
