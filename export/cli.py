"""`vmla-export`: engines from a checkpoint."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from typing import Any

import click

from export.engine.manifest import ENGINES
from plugins.errors import UserError
from vmla.cli.command import OneLineErrors

ELSEWHERE = {"verify": "runtime.cli.verify"}
"""A verb that runs engines, found by name: this package knows nothing of the runtime above it."""

DRIVE = "runtime.rollout.calibration"
"""Where `drive` is found, which rolls out a model that is calibrated."""


class Verbs(OneLineErrors):
    """The verbs below, and those found elsewhere."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All their names."""
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A verb by its name."""
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command: Any = importlib.import_module(ELSEWHERE[cmd_name]).main
        return command if isinstance(command, click.Command) else None


@click.group(cls=Verbs)
def main() -> None:
    """Compile a checkpoint's denoiser into an engine folder that vmla-run --engine loads."""


@main.command()
@click.option("--checkpoint", default="sprites", show_default=True,
              help="A checkpoint folder, or a shipped model.")  # fmt: skip
@click.option("--backend", help="aoti, onnx, tensorrt or tensorrt-rtx; chosen by what is here if not given.")
@click.option("--precision", default="fp32", show_default=True,
              help="Of matrix products: fp32, bf16, fp16, fp8 or nvfp4; all else is float32.")  # fmt: skip
@click.option("--batch", type=int, default=1, show_default=True, help="Videos made at once.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, for aoti.")
@click.option("--target", help="GPU architectures for tensorrt-rtx, as sm89,sm120.")
@click.option("--calibration", type=click.Path(path_type=Path),
              help="Of fp8 or nvfp4, by vmla-export calibrate; made anew if not given.")  # fmt: skip
@click.option("--attention",
              help="plugin: a node that our TensorRT plugin takes; native: TensorRT's own.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="The engine folder; one in ./engines named after its settings if not given.")  # fmt: skip
def build(
    checkpoint: str,
    backend: str | None,
    precision: str,
    batch: int,
    device: str,
    target: str | None,
    calibration: Path | None,
    attention: Any,
    output: Path | None,
) -> None:
    """Build an engine, or say that it is there already."""
    from export.backends.tensorrt import check_targets
    from export.lowering.precision import check_precision
    from export.settings import Settings, choose_backend

    target = None if target is None else check_targets(target)
    if backend is None:
        backend, target, reason = choose_backend(target)
        click.echo(f"backend: {backend} ({reason})")
    settings = Settings(
        backend=backend,
        precision=check_precision(precision),
        batch=batch,
        device=device,
        target=target,
        attention=attention,
    )
    if calibration is not None and not settings.quantized:
        raise UserError(f"precision {precision} takes no calibration; leave --calibration out")
    if backend == "tensorrt" and attention is None:
        click.echo(f"attention: {settings.attention_form} (the plugin computes in bf16 and fp16)")
    _build(checkpoint, settings, calibration, output)


def _build(checkpoint: str, settings: Any, calibration: Path | None, output: Path | None) -> None:
    from export.build import Stage, build
    from export.lowering.calibration import Calibration
    from vmla.weights.checkpoint import open_checkpoint

    opened = open_checkpoint(checkpoint)
    folder = output or ENGINES / f"{opened.name}-{settings.name}"

    def show(stage: Stage) -> None:
        click.echo(f"{stage.name}: {stage.seconds:.1f} s, peak {stage.peak_bytes / 2**20:,.0f} MiB")
        for note in stage.notes:
            click.echo(f"  {note}")
        for warning in stage.warnings:
            click.echo(f"warning: {warning}", err=True)

    # As Ctrl-C does: leave through every `finally`, so that nothing half-built stays.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    given = None if calibration is None else Calibration.read(calibration)
    manifest, built = build(opened, settings, folder, show, calibration=given, drive=_drive())
    size = sum((folder / name).stat().st_size for name in manifest.files)
    click.echo(f"{folder}: {'built' if built else 'unchanged'}, {size:,} bytes")


def _drive() -> Any:
    return importlib.import_module(DRIVE).drive


@main.command()
@click.option("--checkpoint", default="sprites", show_default=True,
              help="A checkpoint folder, or a shipped model.")  # fmt: skip
@click.option("--prompts", type=click.IntRange(1), default=4, show_default=True, help="Videos made at once.")
@click.option("--chunks", type=click.IntRange(1), default=6, show_default=True, help="Of each video.")
@click.option("--seed", default=0, show_default=True, help="Of prompts and noise.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True,
              help="The JSON file, for: vmla-export build --calibration.")  # fmt: skip
def calibrate(checkpoint: str, prompts: int, chunks: int, seed: int, device: str, output: Path) -> None:
    """Measure how large the inputs of every linear layer become on rollouts."""
    import torch

    from export.lowering.calibration import Rollouts, calibrate
    from vmla.weights.checkpoint import open_checkpoint

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; leave --device out")
    opened = open_checkpoint(checkpoint)
    rollouts = Rollouts.of(opened, prompts=prompts, chunks=chunks, seed=seed)
    model = opened.transformer().to(device)
    made = calibrate(model, opened, rollouts, _drive())
    made.write(output)
    click.echo("\n".join(made.lines()))
    click.echo(f"{output}: sha256 {made.digest}")


@main.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest itself.")
def inspect(engine: Path, as_json: bool) -> None:
    """Print what ENGINE is, what it takes and gives, and where it runs."""
    from export.engine.manifest import NAME, Manifest
    from export.inspect import describe, layers

    manifest = Manifest.read(engine)
    told = [*describe(manifest), *layers(engine, manifest)]
    click.echo((engine / NAME).read_text().rstrip() if as_json else "\n".join(told))


@main.command(name="list")
@click.argument("folder", type=click.Path(path_type=Path), default=ENGINES)
def list_engines(folder: Path) -> None:
    """List the engines in FOLDER (./engines if not given), and whether they run on this machine."""
    from export.inspect import table

    click.echo("\n".join(table(folder)))
