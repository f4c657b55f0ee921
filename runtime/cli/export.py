"""`vmla-export`: builds engines from a checkpoint, lists and checks them.

`verify`, `calibrate` and, in fp8 and nvfp4, `build` roll out a model, so the command belongs to `runtime` and
not to `export`, which knows no rollout.
"""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from export.backends.registry import BACKENDS
from export.checks import ON_CPU
from export.engine.manifest import NAME as MANIFEST
from export.engine.manifest import Attention, engine_store
from plugins.documents.lock import Lock
from plugins.errors import UserError
from plugins.triton.tiles import Size
from vmla.cli.command import OneLineErrors
from vmla.cli.options.choices import Choice
from vmla.cli.options.device import AUTO, device_option, say_device, without_auto
from vmla.cli.progress import PhaseBar
from vmla.cli.stopping import Stop
from vmla.cli.terminal import say

if TYPE_CHECKING:
    from export.settings import Settings
    from vmla.weights.checkpoint import Checkpoint

PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "nvfp4")
"""The values of `export.lowering.precision.Precision`, repeated because importing it loads PyTorch."""


@click.group(cls=OneLineErrors)
def main() -> None:
    """Compile a checkpoint's denoiser into an engine folder that vmla-run --engine loads."""


@main.command(groups={
    "What is built": ("checkpoint", "precision", "batch", "attention", "tile", "regional", "calibration",
                      "output"),
    "What it runs on": ("backend", "device", "target"),
})  # fmt: skip
@click.option("--checkpoint", default="sprites", show_default=True,
              help="Checkpoint folder or shipped model.")  # fmt: skip
@click.option("--backend", type=Choice(sorted(BACKENDS)),
              help="Compiler and library (default: the first that fits this machine).")  # fmt: skip
@click.option("--precision", type=Choice(PRECISIONS), default="fp32", show_default=True,
              help="Precision of matrix products; everything else is float32.")  # fmt: skip
@click.option("--batch", type=int, default=1, show_default=True, help="Number of videos made at once.")
@device_option("Torch device that an aoti engine runs on", kinds=("cpu", "cuda"))
@click.option("--target", help="GPU architectures for tensorrt-rtx, e.g. sm89,sm120.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Calibration for fp8 or nvfp4, by vmla-export calibrate (default: calibrate now).",
)
@click.option("--attention", type=Choice(get_args(Attention)),
              help="Attention by the backend, our TensorRT plugin, or in fp8 (default: native).")  # fmt: skip
@click.option("--tile", type=Choice(get_args(Size)),
              help="Size of the plugin's kernel; fast may not launch (default: compact).")  # fmt: skip
@click.option("--regional/--no-regional", default=None,
              help="Compile one layer for all layers, not the whole (default: aoti on cuda).")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="Engine folder to write (default: in your store, named after its settings).")  # fmt: skip
@click.pass_context
def build(
    context: click.Context,
    /,
    checkpoint: str,
    backend: str | None,
    precision: str,
    batch: int,
    device: str,
    target: str | None,
    calibration: Path | None,
    attention: Any,
    tile: Any,
    regional: bool | None,
    output: Path | None,
) -> None:
    """Build an engine, unless it exists already."""
    from export.backends.tensorrt_rtx import check_targets
    from export.lowering.precision import check_precision
    from export.settings import Settings, choose_backend
    from vmla.weights.locate import find_checkpoint

    target = None if target is None else check_targets(target)
    if backend is None:
        backend, target, reason = choose_backend(target)
        say(f"backend: {backend} ({reason})")
    if device == AUTO:
        device = without_auto(device) if "device" in BACKENDS[backend].takes else "cpu"
    settings = Settings(
        backend=backend,
        precision=check_precision(precision),
        batch=batch,
        device=device,
        target=target,
        attention=attention,
        tile=tile,
        regional=regional,
    )
    if calibration is not None and not settings.quantized:
        raise UserError(f"precision {precision} takes no calibration; leave --calibration out")
    if (remark := settings.builder.remark(settings)) is not None:
        say(remark)
    if not _may_be_there(output, settings):
        settings.check_tools()
    opened = find_checkpoint(checkpoint)
    folder = output or _store() / f"{opened.name}-{settings.name}"
    seconds = build_engine(opened, settings, calibration, folder, context.ensure_object(Stop))
    if seconds is not None and output is None and settings.name == for_cpu().name:
        _record_speed(opened, folder, seconds)


def for_cpu() -> Settings:
    """The settings of the engine that a video on this CPU takes without being told to."""
    from export.settings import Settings

    return Settings(precision="fp32", backend=ON_CPU["backend"], device=ON_CPU["device"])


def build_engine(
    opened: Checkpoint, settings: Settings, calibration: Path | None, folder: Path, stop: Stop
) -> float | None:
    """Build an engine of `opened` in `folder`, and print each phase; wait if somebody else builds one there.

    Returns:
        The seconds that its phases took, without waiting; None if nothing had to be built.

    Raises:
        UserError: if it cannot be built on this machine.
    """
    from export.build import BuildPhase, build
    from export.lowering.calibration import Calibration
    from runtime.rollout.calibration import drive

    seconds = 0.0

    def show(phase: BuildPhase) -> None:
        nonlocal seconds
        seconds += phase.seconds
        say(f"{phase.name}: {phase.seconds:.1f} s, peak {phase.peak_bytes / 2**20:,.0f} MiB")
        for note in phase.notes:
            say(f"  {note}")
        for warning in phase.warnings:
            say(f"warning: {warning}", err=True)

    def begin(phase: str) -> None:
        # Anew in each phase: while this process waited, another one may have put its engine there.
        stop.last_words = partial(_what_is_there, folder, _identity(folder))
        bar.begin(phase)

    def waits(line: str) -> None:
        stop.last_words = lambda: [f"the other process goes on with {folder}"]
        say(line)

    # A signal's exception unwinds through every `finally`. If a compiler swallows it, the process is ended,
    # and `last_acts` removes what those `finally` blocks would have removed.
    lock = Lock(folder, waits)
    stop.last_acts = partial(_remove_what_was_begun, folder, lock)
    given = None if calibration is None else Calibration.read(calibration)
    with PhaseBar(sys.stderr) as bar:
        told = partial(drive, told=bar.advance)
        try:
            manifest, built = build(
                opened, settings, folder, show, calibration=given, drive=told, begun=begin, lock=lock
            )
        finally:
            _remove_what_was_begun(folder, lock)
    size = sum((folder / name).stat().st_size for name in manifest.files)
    say(f"{folder}: {'built' if built else 'unchanged'}, {size:,} bytes")
    return seconds if built else None


def _remove_what_was_begun(folder: Path, lock: Lock) -> None:
    from export.engine.engine_folder import remove_temporary

    remove_temporary(folder)
    lock.release()


def _record_speed(opened: Checkpoint, folder: Path, build_seconds: float) -> None:
    """Time the engine beside the model, as a build in the background does, for later decisions.

    Raises:
        UserError: if its results are not the model's: later videos would take it by themselves.
    """
    from runtime.cli.background.after import LARGEST
    from runtime.cli.background.measure import measure
    from runtime.cli.background.records import weight_bytes

    if weight_bytes(opened) > LARGEST:
        return
    with PhaseBar(sys.stderr) as bar:
        bar.begin("time")
        try:
            measured = measure(opened, folder, build_seconds)
        except UserError as error:
            mend = f"look closer with vmla-export verify {shlex.quote(str(folder))}, or remove it"
            raise UserError(f"later videos would use {folder}, but {error}; {mend}") from error
    measured.write(folder)
    say(measured.line())
    if measured.times_as_fast <= 1:
        say("later videos use it all the same; remove it, or give them --engine eager")


def _identity(folder: Path) -> int | None:
    """The inode of the folder, which tells it from one that takes its place; None if it does not exist."""
    return folder.stat().st_ino if folder.exists() else None


def _what_is_there(folder: Path, before: int | None) -> list[str]:
    """The last words of a stopped build; a signal may come when the new engine is already in place."""
    if _identity(folder) != before:
        return [f"{folder} is built"]
    return [f"{folder} is unchanged; run the same command again to build it"]


def _may_be_there(output: Path | None, settings: Any) -> bool:
    """Whether an engine of these settings may exist already; then no compiler has to be installed."""
    if output is not None:
        return (output / MANIFEST).exists()
    return any(_store().glob(f"*-{settings.name}/{MANIFEST}"))


@main.command()
@click.option("--checkpoint", default="sprites", show_default=True,
              help="Checkpoint folder or shipped model.")  # fmt: skip
@click.option("--prompts", type=click.IntRange(1, 4_096), default=4, show_default=True,
              help="Number of prompts, one video each, rolled out together.")  # fmt: skip
@click.option("--chunks", type=click.IntRange(1, 100_000), default=6, show_default=True,
              help="Number of chunks of each video.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Seed of the prompts and the noise.")  # fmt: skip
@device_option("Torch device that the rollouts run on", kinds=("cpu", "cuda"))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="JSON file to write, for vmla-export build --calibration.")  # fmt: skip
def calibrate(checkpoint: str, prompts: int, chunks: int, seed: int, device: str, output: Path) -> None:
    """Measure how large the inputs of linear layers and attention grow during rollouts."""
    from export.lowering.calibration import calibrate, draw_rollouts
    from runtime.rollout.calibration import drive
    from vmla.weights.locate import find_checkpoint

    if not output.absolute().parent.is_dir():
        raise UserError(f"there is no folder {output.parent}; make it first")
    place, opened = say_device(device), find_checkpoint(checkpoint)
    rollouts = draw_rollouts(opened, prompts=prompts, chunks=chunks, seed=seed)
    model = opened.transformer().to(place)
    with PhaseBar(sys.stderr) as bar:
        bar.begin("calibrate")
        made = calibrate(model, opened, rollouts, partial(drive, told=bar.advance))
    made.write(output)
    say(*made.lines())
    say(f"{output}: sha256 {made.digest}")


@main.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest itself as JSON.")
def inspect(engine: Path, as_json: bool) -> None:
    """Print what ENGINE is, its inputs and outputs, and where it runs."""
    from export.engine.manifest import Manifest
    from export.inspect import describe, layers

    manifest = Manifest.read(engine)
    told = [*describe(manifest), *layers(engine, manifest)]
    say(*((engine / MANIFEST).read_text().rstrip().split("\n") if as_json else told))


@main.command(name="list")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def list_engines(folder: Path | None) -> None:
    """List the engines in FOLDER (default: your store), and whether each runs on this machine."""
    from export.inspect import table

    say(*table(folder or _store()))


def _store() -> Path:
    """The folder of the user's own engines.

    Raises:
        UserError: if there is no home folder.
    """
    if (store := engine_store()) is None:
        raise UserError("there is no home folder to keep engines in; name a folder, or set XDG_DATA_HOME")
    return store


@main.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--checkpoint", help="Checkpoint folder (default: the one recorded in the engine).")
@click.option("--chunks", type=click.IntRange(min=1), default=20, show_default=True,
              help="Number of chunks of the rollout.")  # fmt: skip
@click.option("--layers", is_flag=True,
              help="Compare matrix products one by one in ONNX Runtime (extra: polygraphy).")  # fmt: skip
def verify(engine: Path, checkpoint: str | None, chunks: int, layers: bool) -> None:
    """Compare ENGINE with the eager model in float32; exit with 1 if an error exceeds its bound."""
    from export.engine.manifest import Manifest
    from vmla.weights.locate import find_checkpoint

    manifest = Manifest.read(engine)
    opened = find_checkpoint(checkpoint or manifest.checkpoint)
    if layers:
        from runtime.cli.verify.layers import verify_layers

        found = verify_layers(manifest, engine, opened)
        lines, holds = found.lines(), found.first_above is None
    else:
        lines, holds = _verify_rollout(manifest, engine, opened, chunks)
    say(*lines)
    if not holds:
        sys.exit(1)


def _verify_rollout(manifest: Any, engine: Path, checkpoint: Any, chunks: int) -> tuple[list[str], bool]:
    from runtime.cli.verify.engine import verify
    from runtime.engines.compiled import open_engine

    with open_engine(engine, checkpoint, batch=manifest.batch) as compiled:
        result = verify(compiled, checkpoint, chunks=chunks)
    return result.lines(), result.holds
