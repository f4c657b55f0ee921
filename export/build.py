"""Builds an engine folder from a checkpoint folder: under a temporary name, and not anew if unchanged.

The folder holds `manifest.json`, the two programs, and the calibration of an fp8 engine. Text encoder,
tokenizer, codec and sampler stay in the checkpoint, which the manifest records by name and hash: they are not
compiled, Wan's text encoder alone is four times the size of the denoiser, and a rollout opens the checkpoint
for its codec anyway.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from torch.export import ExportedProgram

from export.checks import check_files
from export.engine.engine_folder import make_parent, replacing
from export.engine.manifest import NAME, Attention, Manifest, Quantization, Signature, StepWindow
from export.engine.signature import NARROW, cache_of, contract
from export.layers import attention_inputs, by_precision, check_attention
from export.lowering.calibration import NAME as CALIBRATION
from export.lowering.calibration import Calibration, Drive, calibrate, draw_rollouts
from export.lowering.fp8_matmul import scaled
from export.lowering.precision import in_precision
from export.lowering.quantized_layers import quantized
from export.lowering.regional import Float8, Regional, trace_regional
from export.lowering.trace import trace
from export.settings import Settings
from plugins.documents.lock import Lock
from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.cli.machine import peak_resident_bytes
from vmla.config import ModelConfig
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import Checkpoint
from vmla.weights.formats.files import hash_file


@dataclass(kw_only=True)
class BuildPhase:
    """One phase of a build (load, trace, compile, ...), with its duration and memory."""

    name: str
    seconds: float = 0.0
    peak_bytes: int = 0
    """The most memory that this process, or a compiler it has started, ever held."""
    warnings: list[str] = field(default_factory=list)
    """Warnings of a parser or compiler."""
    notes: list[str] = field(default_factory=list)
    """Lines about the result that are worth printing, such as the range of the calibrated inputs."""


Report = Callable[[BuildPhase], None]
Begun = Callable[[str], None]
Phases = Callable[[str], AbstractContextManager[BuildPhase]]
log = logging.getLogger(__name__)

SOURCES = (
    "plugins", "plugins.triton", "plugins.aot", "plugins.fp8", "vmla",
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
    begun: Begun = lambda name: None,
    lock: Lock | None = None,
) -> tuple[Manifest, bool]:
    """Build the engine of `checkpoint` in `folder`, where nobody else builds one meanwhile.

    Args:
        checkpoint: the model to build from.
        settings: backend, precision, batch and device.
        folder: where the engine goes; a sound one of the same build is reused.
        report: called with each phase of the build when it has ended.
        calibration: for an fp8 or nvfp4 engine; None calibrates.
        drive: rolls out the model to calibrate it.
        begun: called with the name of each phase when it begins.
        lock: that of `folder`, which may wait for its turn; None refuses if somebody else builds there. It is
            taken only if something has to be built, so an engine in a folder that is read-only is reused.

    Returns:
        The manifest, and whether anything had to be built.

    Raises:
        UserError: if tools or a calibration are missing, `folder` exists and is not an engine, or somebody
            else builds there.
    """
    phase = partial(_phase, report=report, begun=begun)
    with phase("read the checkpoint"):
        wanted = describe(checkpoint, settings, calibration)
    if (existing := _reusable(folder, wanted, calibration)) is not None:
        return existing, False
    settings.check_tools()
    make_parent(folder)
    with lock or Lock(folder):
        if (existing := _reusable(folder, wanted, calibration)) is not None:  # built while this one waited
            return existing, False
        return _built(checkpoint, settings, wanted, folder, calibration, drive, phase), True


def _built(
    checkpoint: Checkpoint,
    settings: Settings,
    wanted: Manifest,
    folder: Path,
    calibration: Calibration | None,
    drive: Drive | None,
    phase: Phases,
) -> Manifest:
    """Build the engine that `wanted` describes, and put it in `folder`; see `build`."""
    with replacing(folder) as temporary:
        with phase("load"):
            model = checkpoint.transformer().to(settings.device)
        largest = None
        if settings.quantized:
            with phase("calibrate") as current:
                calibration = calibration or _calibrate(model, checkpoint, wanted, drive)
                layers = wanted.layers[settings.precision]
                names = (*layers, *attention_inputs(checkpoint.model_config(), settings))
                largest = calibration.of_layers(names, wanted.model_hash)
                current.notes = list(calibration.lines(layers))
            calibration.write(temporary / CALIBRATION)
        programs = _programs(model, settings, wanted, largest, phase)
        for name, program in programs.items():
            with phase(f"compile {name}") as current:
                current.warnings = _compiled(name, program, settings, wanted, temporary)
        with phase("hash"):
            files = {path.name: hash_file(path) for path in sorted(temporary.iterdir())}
        manifest = replace(wanted, files=files)
        manifest.write(temporary)
    return manifest


def describe(checkpoint: Checkpoint, settings: Settings, calibration: Calibration | None = None) -> Manifest:
    """The manifest that a build will have, without its files. Weights are read only to hash them.

    Raises:
        UserError: if the model cannot have the precision or the attention of `settings`.
    """
    config = checkpoint.model_config()
    check_attention(config, settings)
    narrow = NARROW[settings.base]
    return Manifest(
        backend=settings.backend,
        precision=settings.precision,
        attention=settings.attention_form,
        window=step_window(config, settings.attention_form),
        regional=settings.by_layer,
        batch=settings.batch,
        model_hash=checkpoint.model_hash(),
        checkpoint=_reference(checkpoint),
        code=_code_hash(),
        model=config.to_dict(),
        cache=cache_of(config, narrow),
        programs=contract(config, batch=settings.batch, narrow=narrow),
        layers=by_precision(config, settings),
        quantization=_quantization(checkpoint, settings, calibration),
        compiler=settings.builder.compiler(settings),
        host=settings.builder.host(settings),
    )


def step_window(config: ModelConfig, attention: Attention) -> StepWindow:
    """The slots that the step takes: those that hold a frame, unless our plugin reads validity as it goes.

    A cache of one slot is taken whole too: PyTorch's exporter has no dimension that is 0 or 1.
    """
    return "held" if attention != "plugin" and CacheSpec.of(config).slots > 1 else "all"


def joins_products(settings: Settings) -> bool:
    """Whether latent attention's products are joined: fewer and larger ones are faster, on a CPU too.

    Layers that have scales of their own stay layers, and only what lies beside them is joined. What the
    plugin's kernel reads is left apart. A portable graph keeps the checkpoint's weights under their names:
    joined, it has more nodes, and ONNX Runtime gains nothing (`export/README.md`).
    """
    return settings.attention_form != "plugin" and not settings.builder.portable


def _quantization(
    checkpoint: Checkpoint, settings: Settings, calibration: Calibration | None
) -> Quantization | None:
    if not settings.quantized:
        return None
    watched = calibration.rollouts if calibration else draw_rollouts(checkpoint)
    products = settings.builder.products(settings)
    return Quantization(base=settings.base, products=products, calibration=watched)


def _reference(checkpoint: Checkpoint) -> str:
    """How to find the checkpoint again: the name of a shipped one, the path of any other."""
    shipped = Path(str(importlib.resources.files("vmla"))) / "checkpoints"
    folder = checkpoint.folder.resolve()
    return folder.name if folder.parent == shipped.resolve() else str(folder)


def _code_hash() -> str:
    """SHA-256 of the sources that determine a program, so that editing them never reuses an old engine."""
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
    return calibrate(model, checkpoint, wanted.quantization.calibration, drive)


def _programs(
    model: VideoMLA,
    settings: Settings,
    wanted: Manifest,
    largest: Mapping[str, float] | None,
    phase: Phases,
) -> dict[str, ExportedProgram] | dict[str, Regional]:
    """Trace the model and lower its programs to the precision of `settings`, on their device."""
    batch, window, joined = settings.batch, wanted.window, joins_products(settings)
    if wanted.regional:
        float8 = None if largest is None else Float8(largest=largest, multiplied=_multiplies_codes(settings))
        with phase(f"trace one layer in {settings.precision}"):
            return trace_regional(
                model, batch=batch, window=window, joined=joined, precision=settings.base, float8=float8,
                between_blocks=settings.between_blocks,
            )  # fmt: skip
    with phase("trace"):
        programs = trace(model, batch=batch, window=window, joined=joined, apart=largest or ())
    with phase(f"lower to {settings.precision}"):
        return {
            name: lower(program, wanted.programs[name], settings, largest)
            for name, program in programs.items()
        }


def _compiled(
    name: str, program: ExportedProgram | Regional, settings: Settings, wanted: Manifest, folder: Path
) -> list[str]:
    if isinstance(program, Regional):
        return settings.builder.compile_regional(name, program, wanted, folder)
    return settings.builder.compile(name, program, wanted, folder)


def lower(
    program: ExportedProgram,
    signature: Signature,
    settings: Settings,
    largest: Mapping[str, float] | None = None,
) -> ExportedProgram:
    """Lower a traced program to the precision of `settings`, with inputs and outputs as in `signature`.

    Args:
        program: consumed; do not use it afterwards.
        signature: names, shapes and dtypes of inputs and outputs.
        settings: of the build.
        largest: the largest magnitude of the inputs of each quantised layer, by the layer's name.
    """
    if largest:
        program = quantized(program, largest, settings.precision)
        if _multiplies_codes(settings):
            program = scaled(program)
    narrow = NARROW[settings.base]
    held = [spec.name for spec in (*signature.inputs, *signature.outputs) if spec.dtype == narrow]
    return in_precision(program, settings.base, held, between_blocks=settings.between_blocks)


def _multiplies_codes(settings: Settings) -> bool:
    """Whether PyTorch's own product multiplies codes in the engine, which takes a GPU."""
    return settings.device == "cuda"


def _reusable(folder: Path, wanted: Manifest, calibration: Calibration | None) -> Manifest | None:
    """The manifest of the engine in `folder` if it is sound and equals what a build would give.

    Raises:
        UserError: if `folder` exists and is not an engine.
    """
    if not folder.exists():
        return None
    if not (folder / NAME).is_file():
        raise UserError(f"{folder} exists and is not an engine; name another folder with -o")
    try:
        existing = Manifest.read(folder)
        check_files(existing, folder)
    except UserError:
        return None  # damaged, or of another version: built anew
    given = calibration is None or existing.files.get(CALIBRATION) == calibration.digest
    return existing if given and existing.same_build(wanted) else None


@contextmanager
def _phase(name: str, *, report: Report, begun: Begun) -> Iterator[BuildPhase]:
    current, began = BuildPhase(name=name), perf_counter()
    begun(name)
    log.info("%s ...", name)
    yield current
    current.seconds, current.peak_bytes = perf_counter() - began, peak_resident_bytes(children=True)
    report(current)
