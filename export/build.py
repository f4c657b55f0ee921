"""From a checkpoint folder to an engine folder: built aside, renamed when whole, reused when unchanged.

The folder holds `manifest.json`, the two programs, and the calibration of an fp8 engine. Text encoder,
tokenizer, codec and sampler stay in the checkpoint, which the manifest names and knows by hash: they are
not compiled, Wan's text encoder alone is four times the size of the denoiser, and a rollout opens the
checkpoint for its codec anyway.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch.export import ExportedProgram

from export.backends import aoti, tensorrt
from export.engine.atomic_folder import aside_of
from export.engine.manifest import BACKENDS, NAME, Manifest, Quantization, Signature
from export.engine.signature import contract
from export.engine.target import Host
from export.layers import by_precision, products
from export.lowering.calibration import NAME as CALIBRATION
from export.lowering.calibration import Calibration, Drive, Rollouts, calibrate
from export.lowering.fp8_matmul import scaled
from export.lowering.precision import DTYPES, in_precision
from export.lowering.quantized_layers import quantized
from export.lowering.trace import trace
from export.onnx import graph as onnx
from export.onnx.attention_node import attention_nodes
from export.settings import Settings
from plugins.errors import UserError
from vmla.cache import CacheLayout
from vmla.cli.machine import peak_resident_bytes
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import Checkpoint
from vmla.weights.files import hash_file


@dataclass(kw_only=True)
class Stage:
    """A part of a build."""

    name: str
    seconds: float = 0.0
    peak_bytes: int = 0
    """The most that this process or a compiler that it started ever held."""
    warnings: list[str] = field(default_factory=list)
    """Of a parser or compiler."""
    notes: list[str] = field(default_factory=list)
    """What it found."""


Report = Callable[[Stage], None]

SOURCES = (
    "plugins", "plugins.triton", "plugins.aot", "vmla",
    "export", "export.engine", "export.lowering", "export.onnx", "export.backends",
)  # fmt: skip
"""Packages whose code determines a program."""


def build(
    checkpoint: Checkpoint,
    settings: Settings,
    folder: Path,
    report: Report,
    *,
    calibration: Calibration | None = None,
    drive: Drive | None = None,
) -> tuple[Manifest, bool]:
    """Build the engine of `checkpoint` in `folder`.

    Args:
        checkpoint, settings, folder: what to build of what, and where.
        report: is told of each stage when it has ended.
        calibration: of an fp8 or nvfp4 engine; made anew if not given.
        drive: rolls out the model to that end.

    Returns:
        Its manifest, and whether anything had to be built.

    Raises:
        UserError: if tools or a calibration are missing, or `folder` holds something else than an engine.
    """
    with _stage("read the checkpoint", report):
        wanted = describe(checkpoint, settings, calibration)
    if (existing := _reusable(folder, wanted, calibration)) is not None:
        return existing, False
    settings.check_tools()
    with aside_of(folder) as aside:
        with _stage("load", report):
            model = checkpoint.transformer().to(settings.device)
        largest = None
        if settings.quantized:
            with _stage("calibrate", report) as stage:
                calibration = calibration or _calibrate(model, checkpoint, wanted, drive)
                layers = wanted.layers[settings.precision]
                largest = calibration.of_layers(layers, wanted.model_hash)
                stage.notes = list(calibration.lines(layers))
            calibration.write(aside / CALIBRATION)
        programs = _programs(model, settings, wanted, largest, report)
        for name, program in programs.items():
            with _stage(f"compile {name}", report) as stage:
                stage.warnings = _compile(name, program, wanted, settings, aside)
        with _stage("hash", report):
            files = {path.name: hash_file(path) for path in sorted(aside.iterdir())}
        manifest = replace(wanted, files=files)
        manifest.write(aside)
    return manifest, True


def describe(checkpoint: Checkpoint, settings: Settings, calibration: Calibration | None = None) -> Manifest:
    """The manifest that a build will have, but for its files; reads no weights but to hash them."""
    config = checkpoint.model_config()
    narrow = str(DTYPES[settings.base]).removeprefix("torch.")
    device = "cuda" if settings.backend == "tensorrt" else settings.device
    host = Host.here(device, BACKENDS[settings.backend].tools)
    if settings.target is not None:
        host = replace(host, device="cuda", architecture=settings.target, features=())
    return Manifest(
        backend=settings.backend,
        precision=settings.precision,
        attention=settings.attention_form,
        batch=settings.batch,
        model_hash=checkpoint.model_hash(),
        checkpoint=_reference(checkpoint),
        code=_code_hash(),
        model=config.to_dict(),
        cache={**asdict(CacheLayout.of(config)), "dtype": narrow},
        programs=contract(config, batch=settings.batch, narrow=narrow),
        layers=by_precision(config, settings),
        quantization=_quantization(checkpoint, settings, calibration),
        compiler=aoti.OPTIONS[settings.device] if settings.backend == "aoti" else {},
        host=host,
    )


def _quantization(
    checkpoint: Checkpoint, settings: Settings, calibration: Calibration | None
) -> Quantization | None:
    if not settings.quantized:
        return None
    watched = calibration.rollouts if calibration else Rollouts.of(checkpoint)
    return Quantization(base=settings.base, products=products(settings), calibration=asdict(watched))


def _reference(checkpoint: Checkpoint) -> str:
    """How to find the checkpoint again: the name of a shipped one, the path of any other."""
    shipped = Path(str(importlib.resources.files("vmla"))) / "checkpoints"
    folder = checkpoint.folder.resolve()
    return folder.name if folder.parent == shipped.resolve() else str(folder)


def _code_hash() -> str:
    """SHA-256 of the sources that determine a program, so that no edit of them reuses an old engine."""
    digest = hashlib.sha256()
    for package in SOURCES:
        for path in sorted(Path(str(importlib.resources.files(package))).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _calibrate(model: VideoMLA, checkpoint: Checkpoint, wanted: Manifest, drive: Drive | None) -> Calibration:
    """The calibration that `wanted` asks for, made on the device of `model`."""
    if drive is None or wanted.quantization is None:
        mend = "make one with: vmla-export calibrate"
        raise UserError(f"precision {wanted.precision} needs a calibration; {mend}")
    rollouts = Rollouts(**wanted.quantization.calibration)
    return calibrate(model, checkpoint, rollouts, drive)


def _programs(
    model: VideoMLA,
    settings: Settings,
    wanted: Manifest,
    largest: Mapping[str, float] | None,
    report: Report,
) -> dict[str, ExportedProgram]:
    """The programs in the precision asked for, on the device asked for."""
    with _stage("trace", report):
        programs = trace(model, batch=settings.batch)
    with _stage(f"lower to {settings.precision}", report):
        return {
            name: lower(program, wanted.programs[name], settings, largest)
            for name, program in programs.items()
        }


def lower(
    program: ExportedProgram,
    signature: Signature,
    settings: Settings,
    largest: Mapping[str, float] | None = None,
) -> ExportedProgram:
    """A traced program in the precision of `settings`, its tensors held as `signature` says.

    Args:
        program: is used up.
        signature: of it.
        settings: of the build.
        largest: of the inputs of each layer that is quantised, by its name.
    """
    if largest:
        program = quantized(program, largest, settings.precision)
        if settings.device == "cuda":
            program = scaled(program)
    narrow = str(DTYPES[settings.base]).removeprefix("torch.")
    held = [spec.name for spec in (*signature.inputs, *signature.outputs) if spec.dtype == narrow]
    return in_precision(program, settings.base, held)


def _compile(
    name: str, program: ExportedProgram, wanted: Manifest, settings: Settings, folder: Path
) -> list[str]:
    """Write the program's file or files into `folder`; returns what the compiler warned of."""
    if settings.backend == "aoti":
        aoti.package(program, folder / f"{name}.pt2", wanted.compiler)
        return []
    graph = folder / f"{name}.onnx"
    nodes = settings.attention_form == "plugin"
    onnx.save(program, wanted.programs[name], graph, attention_nodes=nodes)
    if settings.backend == "onnx":
        return []
    with TemporaryDirectory(dir=folder) as scratch:
        request = _request(name, graph, wanted, Path(scratch))
        warned = tensorrt.build(request)
    for part in folder.glob(f"{graph.name}*"):
        part.unlink()
    return warned


def _request(name: str, graph: Path, wanted: Manifest, scratch: Path) -> tensorrt.Request:
    """What the TensorRT of the backend is asked for; its plugin's kernels are compiled into `scratch`."""
    folder, target, version = graph.parent, wanted.host.architecture, wanted.host.versions
    request = tensorrt.Request(
        library="tensorrt_rtx", graph=str(graph), engine=str(folder / f"{name}.engine"), target=target
    )
    if wanted.backend == "tensorrt-rtx":
        return request
    kernels, nodes = None, attention_nodes(graph)
    if nodes:
        head = wanted.model["attention_head_dim"]
        dtype: Any = "fp16" if wanted.precision == "fp16" else "bf16"
        tensorrt.compile_kernels(scratch, architecture=target, dtype=dtype, head=head)
        kernels = str(scratch)
    times = tensorrt.timing_cache_name(
        version=version["tensorrt"], gpu=torch.cuda.get_device_name(), level=request.level
    )
    return replace(
        request,
        library="tensorrt",
        attention_nodes=nodes,
        kernels=kernels,
        layers=str(folder / f"{name}.layers.json"),
        timing_cache=str(folder.parent / ".timing" / times),
    )


def _reusable(folder: Path, wanted: Manifest, calibration: Calibration | None) -> Manifest | None:
    """The manifest of a sound engine in `folder` that is what a build would give.

    Raises:
        UserError: if `folder` holds something else than an engine.
    """
    if not folder.exists():
        return None
    if not (folder / NAME).is_file():
        raise UserError(f"{folder} exists and is no engine; name another folder with -o")
    try:
        existing = Manifest.read(folder)
        existing.check_files(folder)
    except UserError:
        return None  # damaged, or of another version: built anew
    given = calibration is None or existing.files.get(CALIBRATION) == calibration.digest
    return existing if given and existing.same_build(wanted) else None


@contextmanager
def _stage(name: str, report: Report) -> Iterator[Stage]:
    stage, began = Stage(name=name), perf_counter()
    yield stage
    stage.seconds, stage.peak_bytes = perf_counter() - began, peak_resident_bytes(children=True)
    report(stage)
