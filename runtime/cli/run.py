"""`vmla-run`: a prompt becomes a video."""

from __future__ import annotations

import sys
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from export.engine.manifest import EAGER, engine_store
from plugins.errors import UserError
from vmla.cli.command import OneLineCommand
from vmla.cli.common_options import FiniteRange
from vmla.cli.options.choices import Choice
from vmla.cli.options.config_file import config_option
from vmla.cli.options.device import device_option, dtype_option, text_device_option
from vmla.cli.options.float8 import cache_option, precision_option
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say, warn

if TYPE_CHECKING:
    from runtime.prompts.schedule_file import ScheduleEntry
    from runtime.session.generate import Ending
    from runtime.session.replay import Order
    from runtime.telemetry.events import Telemetry

GROUPS = {
    "What is made": ("prompt", "prompts", "videos", "grid", "start", "minutes", "seconds", "chunks", "seed",
                     "steps", "dry_run"),
    "Where it goes": ("output", "overwrite", "scale", "resume", "repeat", "save_every", "events", "metrics"),
    "What makes it": ("checkpoint", "engine", "decoder", "layout", "device", "text_device",
                      "dtype", "precision", "cache", "compiled", "build_engine", "threads", "memory"),
    "On several machines": ("ray", "cpus_per_replica", "sequence_parallel"),
}  # fmt: skip
LENGTHS = ("minutes", "seconds", "chunks")
AFRESH = ("minutes", "seconds", "chunks", "seed", "checkpoint", "engine", "layout", "steps", "device",
          "text_device", "compiled", "precision", "cache",
          "dtype", "scale", "decoder", "threads", "start")  # fmt: skip
"""Options that determine the video; with --resume and --repeat they must agree with the recorded ones."""


@click.command(cls=OneLineCommand, groups=GROUPS)
@config_option
@click.option("--prompt", help="Text prompt: what the video shows.")
@click.option("--prompts", type=click.Path(dir_okay=False, path_type=Path),
              help="File of prompts over time, `SECONDS: PROMPT` on each line.")  # fmt: skip
@click.option("--videos", type=click.Path(dir_okay=False, path_type=Path),
              help="File of videos to make at once, `NAME: PROMPT` on each line.")  # fmt: skip
@click.option("--grid", metavar="ROWSxCOLUMNS",
              help="Make one tiled video: the prompt under ROWSxCOLUMNS seeds, from --seed on.")  # fmt: skip
@click.option(
    "--memory", help="Memory budget for weights and all --videos, e.g. 8GiB (default: all free memory)."
)
@click.option("--start", type=click.Path(path_type=Path),
              help="Video, image or folder of pictures that the new video continues.")  # fmt: skip
@click.option("--minutes", type=float, help="Length of the video in minutes.")
@click.option("--seconds", type=float, help="Length of the video in seconds (default: 10).")
@click.option("--chunks", type=click.IntRange(min=1), help="Length of the video in chunks.")
@click.option("-o", "--output", type=click.Path(allow_dash=True, path_type=Path),
              help="Output: an .mp4 file, a .webm file or a .gif file (neither can be resumed), a folder for "
                   "pictures, a pipe, - for standard output, or null.")  # fmt: skip
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Stopped video to resume, or a folder of stopped videos.",
)
@click.option("--repeat", type=click.Path(dir_okay=False, path_type=Path),
              help="Sidecar (.json) of a video to make again.")  # fmt: skip
@click.option("--seed", default=0, show_default=True,
              help="Seed of the noise; the same seed gives the same video.")  # fmt: skip
@click.option(
    "--checkpoint", help="Checkpoint folder or shipped model (default: the engine's own, else sprites)."
)
@click.option("--engine", type=click.Path(path_type=Path),
              help="Engine folder, or eager (default: one of your own that fits, else eager).")  # fmt: skip
@click.option("--decoder", type=click.Path(path_type=Path),
              help="File of TAEHV weights to decode with, or none for no frames (with -o null).")  # fmt: skip
@click.option("--layout", type=Choice(["mla", "mha"]),
              help="Attention layout that the checkpoint must have.")  # fmt: skip
@click.option("--steps", type=int, help="Number of denoising steps (default: the checkpoint's own).")
@device_option(auto="the engine's, else a GPU if there is one, else the CPU")
@text_device_option()
@dtype_option(fastest=True)
@precision_option()
@cache_option()
@click.option("--compile/--no-compile", "compiled", default=None,
              help="Compile the blocks on a GPU (default: if the video is long enough for it).")  # fmt: skip
@click.option("--build-engine/--no-build-engine", default=None,
              help="After a CPU's videos, build an engine for later ones in the background (default: if "
                   "these alone would have repaid it).")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1),
              help="Number of CPU threads, a quarter of which decode (default: 2, so that a seed's video "
              "does not depend on the machine's cores).")  # fmt: skip
@click.option("--scale", type=click.IntRange(1, 16),
              help="Factor to enlarge frames by (default: to at least 256 pixels).")  # fmt: skip
@click.option("--events", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
              help="File for one JSON line per chunk and per change of prompt, or - for standard "
                   "output.")  # fmt: skip
@click.option("--metrics", type=click.Path(dir_okay=False, path_type=Path),
              help="File for the latest metrics, as Prometheus text.")  # fmt: skip
@click.option("--save-every", type=FiniteRange(min=0), default=5.0, show_default=True,
              help="Seconds between two saves of the video's state.")  # fmt: skip
@click.option("--ray", is_flag=True, help="Make the --videos on the machines of a Ray cluster.")
@click.option("--cpus-per-replica", type=click.IntRange(min=1),
              help="CPUs that --ray reserves for each worker (default: --threads).")  # fmt: skip
@click.option("--sequence-parallel", is_flag=True,
              help="Make one video with all processes that torchrun started, one for each GPU.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and make nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an older video, once the new one has frames.")
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Make a video of any length from a prompt, written while it is made; or make several at once."""
    _prefer_command_line(context, options)
    _check_decoder(options)
    _check_ray(options)
    _check_build_engine(options)
    if not options["dry_run"]:
        from runtime.cli.reports import standard_output_for_events

        context.with_resource(standard_output_for_events(options))
    if options["sequence_parallel"]:
        _together(context, options)
        return
    if options["grid"] is not None:
        _grid(context, options)
        return
    if options["videos"] is not None:
        from runtime.cli.cluster.videos import with_absolute_paths
        from runtime.cli.videos import run_videos

        run_videos(options, partial(_new, options=with_absolute_paths(options)), context.ensure_object(Stop))
        return
    if (batch := _stopped_videos(options)) and not options["dry_run"]:
        from runtime.cli.videos import resume_videos

        resume_videos(
            options,
            lambda path: _order(context, options | {"resume": path}),
            batch,
            context.ensure_object(Stop),
        )
        return
    if options["memory"] is not None:
        raise click.UsageError("--memory limits how many --videos are made at once; leave it out")
    _make_one(_order(context, options), options, context.ensure_object(Stop))


def _make_one(order: Order, options: dict[str, Any], stop: Stop) -> None:
    """Make the ordered video, or print what would be made."""
    if options["dry_run"]:
        from runtime.session.replay import warnings_of

        warn(warnings_of([order]))
        say(*order.job.what_runs(), *order.job.plan().lines())
        return
    output = options["resume"] or options["output"]
    if output is None:
        raise click.UsageError("give -o, for example: -o video.mp4")
    _make(order, output, options, stop)


def _together(context: click.Context, options: dict[str, Any]) -> None:
    """Make one video with all processes that `torchrun` started."""
    from runtime.cli.together import run_together
    from vmla.train.loop.parallel import launched

    if (place := launched()) is None:
        start = "torchrun --nproc-per-node 2 --no-python vmla-run --sequence-parallel"
        raise click.UsageError(f"--sequence-parallel is for several processes; start them with: {start} ...")
    stop, options["processes"] = context.ensure_object(Stop), place.world

    def order_of() -> Order:
        if given := [f"--{name}" for name in ("videos", "grid", "memory", "dry_run") if options[name]]:
            named = ", ".join(given).replace("_", "-")
            raise click.UsageError(f"--sequence-parallel makes one video; leave out {named}")
        return _order(context, options)

    run_together(place, order_of, lambda order: _make_one(order, options, stop), stop)


def _grid(context: click.Context, options: dict[str, Any]) -> None:
    """Make a grid of seeds."""
    from runtime.cli.grid import NOT_WITH, run_grid, size_of

    size_of(options["grid"])
    if given := [f"--{name}" for name in NOT_WITH if options[name]]:
        raise click.UsageError(f"--grid makes one new video of tiles; leave out {', '.join(given)}")
    run_grid(options, _order(context, options), context.ensure_object(Stop))


def _prefer_command_line(context: click.Context, options: dict[str, Any]) -> None:
    """Let a length on the command line take the place of one in the file of `--config`."""
    sources = {name: context.get_parameter_source(name) for name in LENGTHS}
    if ParameterSource.COMMANDLINE in sources.values():
        options.update({name: None for name in LENGTHS if sources[name] is ParameterSource.DEFAULT_MAP})


def _stopped_videos(options: dict[str, Any]) -> list[Path]:
    """The stopped videos in the folder that `--resume` names; none if that is itself a video.

    Raises:
        UserError: if it is a folder that holds no stopped video.
    """
    from runtime.resume.sidecar import sidecar_path
    from runtime.resume.state import state_path

    folder: Path | None = options["resume"]
    if folder is None or not folder.is_dir() or state_path(folder).exists() or sidecar_path(folder).exists():
        return []
    stopped = [path for path in sorted(folder.glob("*.mp4")) if state_path(path).exists()]
    if not stopped:
        raise UserError(f"no video in {folder} was stopped: there is nothing to resume")
    return stopped


def _check_decoder(options: dict[str, Any]) -> None:
    """Refuse to write a video file without frames."""
    from runtime.outputs.registry import NOWHERE
    from runtime.rollout.decoding import NOTHING

    written = [path for path in (options["resume"], options["output"]) if path not in (None, NOWHERE)]
    if options["decoder"] == NOTHING and written:
        raise click.UsageError(f"--decoder {NOTHING} makes no frames for {written[0]}; use -o {NOWHERE}")


def _check_ray(options: dict[str, Any]) -> None:
    """Refuse --ray, and options for its workers, unless several videos are made on a cluster."""
    if options["ray"] and options["videos"] is None:
        raise click.UsageError("--ray is for several videos; name them with --videos")
    if options["cpus_per_replica"] is not None and not options["ray"]:
        raise click.UsageError("--cpus-per-replica is for the workers of --ray; leave it out")


def _check_build_engine(options: dict[str, Any]) -> None:
    """Refuse --build-engine unless new videos are made, in this process, by the model itself."""
    others = ("engine", "resume", "repeat", "ray", "sequence_parallel")
    if options["build_engine"] and (given := [name for name in others if options[name]]):
        named = given[0].replace("_", "-")
        raise click.UsageError(f"--build-engine goes with new videos on this machine; leave out --{named}")


def _order(context: click.Context, options: dict[str, Any]) -> Order:
    """The order: a new video, an earlier one made again, or the rest of a stopped one."""
    from runtime.planning.compute import FASTEST
    from runtime.prompts.schedule_file import ScheduleEntry, read_schedule
    from runtime.session.replay import repeat, resume

    ways = [name for name in ("resume", "repeat") if options[name] is not None]
    if len(ways) == 2 or ("resume" in ways and options["output"] is not None):
        raise click.UsageError("--resume names the video that it continues; leave out -o and --repeat")
    said: dict[str, Any] = {}
    entries = [] if options["prompts"] is None else read_schedule(options["prompts"])
    if entries and options["prompt"] is not None:
        entries = [ScheduleEntry(at=0.0, prompt=options["prompt"]), *entries]
    if entries or options["prompt"] is not None:
        said["prompts"] = entries or options["prompt"]
    explicit = ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP
    chosen = {name: options[name] for name in AFRESH if context.get_parameter_source(name) in explicit}
    given = said | {name: value for name, value in chosen.items() if value is not None}
    if "processes" in options:
        given["processes"] = options["processes"]
    if given.get("engine") == Path(EAGER):
        given["engine"] = None
    for name in ("device", "text_device"):
        if given.get(name) == "auto":
            del given[name]
    if given.get("dtype") == FASTEST:  # what was measured for an earlier video is recorded with it
        del given["dtype"]
    if options["resume"] is not None:
        return resume(options["resume"], given)
    if options["repeat"] is not None:
        return repeat(options["repeat"], given)
    if not said:
        raise click.UsageError('give --prompts FILE or --prompt, for example: --prompt "a red star bouncing"')
    return _new(said["prompts"], options)


def _new(prompts: str | list[ScheduleEntry], options: dict[str, Any]) -> Order:
    """The order for a new video of `prompts`; without --engine, the user's store is searched for one."""
    from runtime.session.replay import new

    named = [*AFRESH, *(("processes",) if "processes" in options else ())]
    rest = {name: options[name] for name in named if name not in ("checkpoint", "scale")}
    engines = engine_store() if rest["engine"] is None else None
    if rest["engine"] == Path(EAGER):
        rest["engine"] = None
    return new(prompts, options["checkpoint"], scale=options["scale"], engines=engines, **rest)


def _make(order: Order, output: Path, options: dict[str, Any], stop: Stop) -> None:
    """Make the ordered video, print the outcome, and suggest an engine for later ones or have it built."""
    from runtime.cli.background.after import after_run
    from runtime.cli.background.worth import DenoiseTime
    from runtime.cli.reports import check_reports, resume_hints
    from runtime.outputs.stream import is_stream
    from runtime.session.destination import is_persistent, is_resumable
    from runtime.session.generate import make_videos
    from runtime.session.replay import warnings_of
    from runtime.telemetry.events import TelemetryGroup

    with ExitStack() as stack:
        output = _checked(stack, order, output, overwrite=options["overwrite"])
        check_reports(options, [output])
        if is_stream(output):
            say(f"{output} is a stream: no state is kept, and it cannot be resumed", err=True)
        elif is_persistent(output) and not is_resumable(output):
            say(f"{output} is a single piece: no state is kept, and it cannot be resumed", err=True)
        warn(warnings_of([order]))
        stop.last_words = partial(resume_hints, [output])
        stack.enter_context(stop.polled())
        spent = DenoiseTime()

        with ExitStack() as shown:

            def begun(_: Path) -> TelemetryGroup:
                say(*order.job.what_runs())
                return TelemetryGroup([*_listeners(shown, options), spent])

            (ending,) = make_videos(
                {output: order}, telemetry=begun, stop=stop,
                save_every=options["save_every"], overwrite=options["overwrite"],
            )  # fmt: skip
        _tell(order, ending)
        after_run(options, order.job, spent, complete=ending.outcome.complete)
    if not ending.outcome.complete:
        sys.exit(stop.status)


def _checked(stack: ExitStack, order: Order, output: Path, *, overwrite: bool) -> Path:
    """The output path, checked; while it is standard output, all messages go to standard error.

    Raises:
        UserError: if the video cannot be written there."""
    from runtime.outputs.stream import STANDARD_OUTPUT, is_standard_output, is_stream
    from runtime.session.destination import check_output

    if not is_stream(output):
        if order.state is None:
            check_output(output, overwrite=overwrite)
        return output
    if is_standard_output(output):
        if getattr(sys.stdout, "silent", False):
            raise UserError("standard output is closed; name a file, or pipe it: -o - | ffplay -")
        output = STANDARD_OUTPUT
        stack.enter_context(redirect_stdout(sys.stderr))
    if overwrite:
        raise UserError(f"{output} is a stream, where nothing is replaced; leave --overwrite out")
    return output


def _tell(order: Order, ending: Ending) -> None:
    """Print the outcome.

    Raises:
        UserError: if it failed.
    """
    from runtime.telemetry.events import shown

    if ending.failure is not None:
        raise UserError(ending.failure)
    outcome, output = ending.outcome, ending.output
    rate, now = outcome.made / outcome.seconds, "" if order.state is None else f", {outcome.made} of them"
    say(f"{output}: {outcome.frames} frames{now} in {outcome.seconds:.1f} s, {shown(rate)} per second")
    if not outcome.complete:
        say(ending.closing_line(), err=True)


def _listeners(stack: ExitStack, options: dict[str, Any]) -> list[Telemetry]:
    """The listeners of the run: the progress line and the report files."""
    from runtime.cli.reports import open_reports
    from runtime.telemetry.events import LineTelemetry
    from vmla.cli.progress import ProgressLine

    reports = open_reports(stack, options)
    return [LineTelemetry(stack.enter_context(ProgressLine(sys.stderr))), *reports]
