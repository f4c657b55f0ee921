"""The pool of workers on a real Ray cluster of this machine, and a worker that is killed."""

import os
import signal
import threading
from functools import partial

import pytest
from click.testing import CliRunner
from kit.processes.serving import wait_for

from plugins.errors import UserError
from runtime.cli.run import main
from runtime.cluster.pool import video_pool
from runtime.prompts.videos_file import VideoEntry
from runtime.resume.state import load_state, state_path
from runtime.session.replay import new

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.ray
VIDEOS = [
    VideoEntry(name="star", prompt="a red star", seed=3),
    VideoEntry(name="ring", prompt="a blue ring", seed=4),
]


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
    order_of = partial(new, checkpoint=str(checkpoint), scale=None, chunks=40, threads=1)
    pool = video_pool(
        cluster, order_of, there, workers=1, cpus=1, gpus=0.0, save_every=0.0, overwrite=False
    )  # fmt: skip
    killer = threading.Thread(target=kill_once_saved, args=(pool, there / "star.mp4"))
    killer.start()
    made = list(pool.run(VIDEOS, threading.Event()))
    killer.join()
    assert sorted((one.name, one.complete, one.failure) for one in made) == [
        ("ring", True, None), ("star", True, None)
    ]  # fmt: skip
    assert pool.deaths == {0: 1}  # of the star
    star = next(one for one in made if one.name == "star")
    assert star.made < star.frames  # the rest alone
    for name in ("star", "ring"):
        assert (there / f"{name}.mp4").read_bytes() == (here / f"{name}.mp4").read_bytes()
    (there / "ring.mp4").unlink()
    (there / "ring.mp4.json").unlink()
    said = run(*asked, "--ray", "-o", there)
    assert "already made" in said
    assert (there / "ring.mp4").read_bytes() == (here / "ring.mp4").read_bytes()


def kill_once_saved(pool, output):
    """As the system does when memory runs out."""
    wait_for(lambda: pool._running)
    ((worker, _),) = pool._running.values()
    process = ray.get(worker.process.remote())
    wait_for(lambda: chunks_saved(output) > 3)
    os.kill(process, signal.SIGKILL)


def chunks_saved(output):
    try:
        return load_state(state_path(output), mend="")[0].snapshot.number
    except UserError:  # not there yet, or replaced between the reading of its header and of its tensors
        return 0
