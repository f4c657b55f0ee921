"""A whole video on this machine, from typing the command to the finished file.

    python -m bench.speed.rollout

Runs `vmla-run` as a process of its own and watches its file and its events. Prints a table and one
JSON line: wall time, first frame, frames per second, times real time, chunk times, how much of the time
the engine, the decoder, the encoder and the states on disk take, and whether memory stays flat. Then the
video is made again, stopped half way and resumed, to see what that adds. An interrupted run leaves what it
has measured.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from bench.harness.document import Record
from bench.quality.drift import chunk_curve, drift, drift_of
from plugins.errors import UserError
from vmla.cli.command import OneLineCommand
from vmla.cli.terminal import say
from vmla.config import FRAMES_PER_SECOND
from vmla.weights.checkpoint import open_checkpoint
from vmla.world.worlds import FIRST

PROMPT = "a red star bouncing on a navy background"
COMMAND = [sys.executable, "-c", "from runtime.cli.run import main; main()"]


def first_frame_is_in(path: Path) -> bool:
    """Whether a player could show a picture of the file `path` by now."""
    import av

    try:
        with av.open(str(path)) as file:
            return next(file.decode(video=0), None) is not None
    except (av.error.FFmpegError, OSError, IndexError):  # not there yet, or nothing but a header
        return False


def run_and_watch(arguments: list[str], output: Path) -> tuple[float, float]:
    """Seconds until the first frame of `output` can be seen and until the command is done.

    Raises:
        UserError: if the command fails.
    """
    began = time.perf_counter()
    first = 0.0
    command = [*COMMAND, *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            if not first and first_frame_is_in(output):
                first = time.perf_counter() - began
            time.sleep(0.02)
        said = process.stderr.read().decode() if process.stderr else ""
    if process.returncode:
        raise UserError(said.strip().splitlines()[-1])
    return first or time.perf_counter() - began, time.perf_counter() - began


def memory_growth(events: list[dict[str, Any]]) -> dict[str, float]:
    """Resident bytes after the first minute of video and at its end, and their ratio."""
    early = next((e for e in events if e["frames"] >= 60 * FRAMES_PER_SECOND), events[len(events) // 3])
    then, now = early["resident_bytes"], events[-1]["resident_bytes"]
    return {"at_minute_1": then, "at_end": now, "growth": round(now / then - 1, 4)}


def shares(events: list[dict[str, Any]], told: dict[str, Any]) -> dict[str, float]:
    """Parts of the time between the first and the last chunk; decoder, encoder and states run beside it."""
    whole = events[-1]["seconds"] - events[0]["seconds"]
    engine = sum(e["denoise_seconds"] + e["clean_seconds"] for e in events[1:])
    stalled = events[-1]["stalled_seconds"] - events[0]["stalled_seconds"]
    parts = {
        "engine": engine,
        "stalled": stalled,
        "other": whole - engine - stalled,
        "decode": sum(e["decode_seconds"] for e in events[1:]),
        "encode": events[-1]["encode_seconds"] - events[0]["encode_seconds"],
        "state": told["state_seconds"],
    }
    return {f"{name}_share": round(seconds / whole, 4) for name, seconds in parts.items()}


def stop_and_resume(arguments: list[str], output: Path, frames: int) -> dict[str, float] | None:
    """Seconds that the second half of a stopped video took outside of its rollout, and the frames in all.

    None for a short video that was whole before it could be stopped.
    """
    sidecar, log = output.with_name(output.name + ".json"), output.with_name("half.jsonl")
    command = [*COMMAND, *arguments, "-o", str(output), "--events", str(log)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and frames_told(log) < frames / 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
    if process.returncode == 0:
        return None
    began = time.perf_counter()
    subprocess.run([*COMMAND, "--resume", str(output)], check=True, capture_output=True)
    wall, told = time.perf_counter() - began, json.loads(sidecar.read_text())
    return {"start_seconds": round(wall - told["seconds"], 2), "frames": told["frames_written"]}


def frames_told(log: Path) -> int:
    """The frames that the last whole line of a log of chunks speaks of."""
    lines = log.read_text().splitlines() if log.exists() else []
    return json.loads(lines[-1])["frames"] if lines else 0


@click.command(cls=OneLineCommand)
@click.option("--checkpoint", default="sprites", show_default=True, help="Checkpoint folder.")
@click.option("--minutes", default=3.0, show_default=True, help="Length of the video in minutes.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/rollout.json).")  # fmt: skip
def main(checkpoint: str, minutes: float, output: Path | None) -> None:
    """Time a whole video, from typing the command to the finished file."""
    # An engine that is built in the background would take the cores of what is timed afterwards.
    asked = ["--prompt", PROMPT, "--minutes", str(minutes), "--checkpoint", checkpoint, "--no-build-engine"]
    record = Record("rollout", output)
    with tempfile.TemporaryDirectory() as folder:
        video, log = Path(folder) / "video.mp4", Path(folder) / "events.jsonl"
        first, wall = run_and_watch([*asked, "-o", str(video), "--events", str(log)], video)
        events = [json.loads(line) for line in log.read_text().splitlines()]
        told = json.loads(video.with_name("video.mp4.json").read_text())
        figures = timed(first, wall, told, events) | {"file_bytes": video.stat().st_size}
        record.save(checkpoint=checkpoint, sampler=told["sampler"], **figures, chunks=chunk_curve(events))
        world = open_checkpoint(checkpoint).world()
        points = drift_of(video, told["scale"], prompt=PROMPT if world else None, world=world or FIRST)
        figures["drift"] = drift(points)
        record.save(drift=figures["drift"], picture=points)
        figures["resumed"] = stop_and_resume(asked, Path(folder) / "halves.mp4", told["frames_written"])
    record.save(resumed=figures["resumed"])
    for name, value in figures.items():
        say(f"{name:>24}  {value}")
    record.finish(**figures)


def timed(first: float, wall: float, told: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of one video, from the clock, its sidecar and its events."""
    frames, timing = told["frames_written"], told["timing"]
    return {
        "frames": frames,
        "wall_seconds": round(wall, 2),
        "first_frame_seconds": round(first, 2),
        "load_seconds": told["load_seconds"],
        "rollout_seconds": told["seconds"],
        "frames_per_second": round(frames / wall, 1),
        "times_real_time": round(frames / wall / FRAMES_PER_SECOND, 2),
        **shares(events, told),
        "steady_frames_per_second": round(timing["frames_per_second"], 1),
        "chunk_p50": timing["chunk_p50"],
        "chunk_p99_over_p50": round(timing["chunk_p99"] / timing["chunk_p50"], 3),
        "start_seconds": round(wall - told["seconds"], 2),
        "stalled_seconds": round(events[-1]["stalled_seconds"], 3),
        "resident_bytes": memory_growth(events),
        "peak_bytes": told["peak_bytes"],
    }


if __name__ == "__main__":
    main()
