"""`vmla-run --videos`: checks the options, makes the videos and sets the exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import click

from plugins.errors import UserError
from runtime.cli.background.after import after_run
from runtime.cli.background.worth import DenoiseTime
from runtime.cli.reports import check_reports, open_reports, resume_hints
from runtime.device.memory import allowed_bytes, format_bytes
from runtime.outputs.registry import kind_of
from runtime.prompts.videos_file import read_videos
from runtime.resume.autosave import resume_command
from runtime.session.destination import check_output
from runtime.session.generate import Ending, check_room, make_videos, orders_of
from runtime.session.replay import Order, warnings_of
from runtime.telemetry.events import JsonLines, Telemetry, TelemetryGroup, TogetherLine, shown
from runtime.telemetry.metrics import PrometheusFile
from vmla.cli.progress import ProgressLine
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say, warn
from vmla.config import FRAMES_PER_SECOND

ALONE = ("prompt", "prompts", "resume", "repeat")
"""Options for a single video, which --videos refuses."""


def run_videos(options: dict[str, Any], order_of: Callable[[str], Order], stop: Stop) -> None:
    """Make the videos that a file lists, all at once.

    Args:
        options: the command's options, by name.
        order_of: returns the order for a prompt under all other options.
        stop: when set, all videos stop after the current chunk.
    """
    if given := [f"--{name}" for name in ALONE if options[name] is not None]:
        raise click.UsageError(f"--videos names what to make; leave out {', '.join(given)}")
    videos = read_videos(options["videos"])
    orders = orders_of(videos, order_of(videos[0].prompt))
    job = orders[videos[0].name].job
    plan, memory = job.plan(), allowed_bytes(options["memory"], job.device)
    whence = f"free on {job.device}" if options["memory"] is None else "allowed"
    room = (
        f"memory: {memory:,} bytes {whence} hold {plan.videos_in(memory)} such videos, "
        f"{len(videos)} take {format_bytes(plan.bytes_for(len(videos)))}"
    )
    if options["dry_run"]:
        warn(warnings_of(list(orders.values())))
        say(*job.what_runs(), *plan.lines(), room)
        return
    if options["output"] is None:
        raise click.UsageError("give a folder with -o, for example: -o videos")
    if options["ray"]:
        from runtime.cli.cluster.videos import run_pool

        _check_folder(options["output"])
        run_pool(options, videos, job, order_of, stop)  # workers have their own memory
        return
    check_room(plan, len(videos), memory)
    placed = _placed(orders, options["output"], overwrite=options["overwrite"])
    check_reports(options, placed)
    say(*job.what_runs(), room)
    _make(placed, memory, options, stop)


def resume_videos(
    options: dict[str, Any], order_of: Callable[[Path], Order], stopped: list[Path], stop: Stop
) -> None:
    """Resume the stopped videos of one folder, all at once.

    Args:
        options: the command's options, by name.
        order_of: returns the order for the rest of a stopped video.
        stopped: the paths of the stopped videos.
        stop: when set, all videos stop after the current chunk.
    """
    orders = {path: order_of(path) for path in stopped}
    job = orders[stopped[0]].job
    check_reports(options, stopped)
    say(*job.what_runs(), f"resuming {len(stopped)} videos: {', '.join(path.name for path in stopped)}")
    _make(orders, allowed_bytes(options["memory"], job.device), options, stop)


def _placed(orders: dict[str, Order], folder: Path, *, overwrite: bool) -> dict[Path, Order]:
    """The orders by output path, NAME.mp4 in `folder`, which need not exist yet.

    Raises:
        UserError: if `folder` cannot hold videos, or one of the files exists.
    """
    _check_folder(folder)
    placed = {folder / f"{name}.mp4": order for name, order in orders.items()}
    for output in placed if folder.exists() else ():
        check_output(output, overwrite=overwrite)
    return placed


def _check_folder(folder: Path) -> None:
    """Refuse a path that cannot hold several videos.

    Raises:
        UserError: if it is not a folder, or its own folder does not exist.
    """
    if kind_of(folder).pictures is None or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is not a folder, and several videos need one; name it with -o")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"there is no folder {folder.parent}; make it first")


def _make(orders: dict[Path, Order], memory: int, options: dict[str, Any], stop: Stop) -> None:
    """Make the videos and print each outcome; exit with the signal's status if stopped, 2 if one failed."""
    warn(warnings_of(list(orders.values())))
    stop.last_words = partial(resume_hints, list(orders))
    spent = DenoiseTime()
    with ExitStack() as stack:
        stack.enter_context(stop.polled())
        endings = make_videos(
            orders, telemetry=_telemetry(stack, options, spent, videos=len(orders)), stop=stop, memory=memory,
            save_every=options["save_every"], overwrite=options["overwrite"],
        )  # fmt: skip
    whole = [ending for ending in endings if ending.failure is None]
    for ending in whole:
        say(f"{ending.output}: {ending.outcome.frames} frames")
    _say_speed(endings)
    stopped = [ending for ending in whole if not ending.outcome.complete]
    for ending in stopped:
        say(ending.closing_line(), err=True)
    if len(stopped) > 1:
        say(f"or resume all with: {resume_command(stopped[0].output.parent)}", err=True)
    failed = [f"{ending.output}: {ending.failure}" for ending in endings if ending.failure is not None]
    job = next(iter(orders.values())).job
    after_run(options, job, spent, complete=not stopped and not failed)
    if stopped:
        for failure in failed:
            say(failure, err=True)
        sys.exit(stop.status)
    if failed:
        raise UserError(f"{len(failed)} of {len(endings)} videos failed: {'; '.join(failed)}")


def _say_speed(endings: list[Ending]) -> None:
    frames = sum(ending.outcome.frames for ending in endings)
    seconds = max(ending.outcome.seconds for ending in endings)
    rate = frames / max(seconds, 1e-9)
    each = rate / len(endings) / FRAMES_PER_SECOND
    say(
        f"{len(endings)} videos, {frames} frames in {seconds:.1f} s, {shown(rate)} per second, "
        f"{shown(each, 1)}x real time each"
    )


def _telemetry(
    stack: ExitStack, options: dict[str, Any], spent: DenoiseTime, *, videos: int
) -> Callable[[Path], Telemetry]:
    """Returns a function that makes an output's listeners; report files are opened at its first call."""

    @cache
    def listeners() -> list[TogetherLine | JsonLines | PrometheusFile]:
        reports = open_reports(stack, options)
        return [TogetherLine(stack.enter_context(ProgressLine(sys.stderr)), videos=videos), *reports]

    return lambda output: TelemetryGroup([spent, *(listener.of(output.stem) for listener in listeners())])
