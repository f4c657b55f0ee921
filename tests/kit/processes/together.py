"""One process of `vmla-run --sequence-parallel`, as `torchrun` starts it."""

import gc
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

from click.testing import CliRunner

from runtime.cli.run import main

CHUNKS = 20


def process(rank, folder, checkpoint, ports):
    """What one of two processes says and exits with: a video, one that is stopped, its rest, a mistake."""
    folder, told = Path(folder), []
    new = ("--prompt", "a red star", "--checkpoint", checkpoint, "--chunks", CHUNKS, "--threads", 2)
    stopped = folder / "stopped.mp4"
    for number, asked in enumerate([
        (*new, "-o", folder / "whole.mp4"),
        (*new, "--save-every", 0, "-o", stopped),
        ("--resume", stopped),
        (*new, "-o", folder / "whole.mp4"),
    ]):  # fmt: skip
        if number == 1 and rank == 0:
            threading.Thread(target=_stop_once_saved, args=(stopped,)).start()
        told.append(_run(rank, ports[number], asked))
        if number == 1 and rank == 0:
            shutil.copytree(folder, folder / "kept")
    (folder / f"{rank}.json").write_text(json.dumps(told))


def _run(rank, port, asked):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    done = CliRunner().invoke(main, ["--sequence-parallel", *map(str, asked)])
    told = done.exit_code, done.output
    del done
    gc.collect()  # a process that ends lets go of its connections, and this one goes on
    return told


def _stop_once_saved(video):
    """As `torchrun` does when it is asked to end, but to the first process alone."""
    end = time.monotonic() + 100
    while not video.with_name(f"{video.name}.state").exists() and time.monotonic() < end:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)
