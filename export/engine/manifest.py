"""`manifest.json` of an engine folder: what the engine is, and where it may run.

Free of torch, so that engines are listed and refused at once.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from export.engine.target import NO_GPU, Host
from plugins.atomic_files import atomic_write_text
from plugins.errors import UserError
from vmla.config import current_names

if TYPE_CHECKING:
    from vmla.weights.checkpoint import Checkpoint

NAME = "manifest.json"
SCHEMA = 3


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What an engine of a backend shares with the machine that runs it."""

    tools: tuple[str, ...]
    """Packages whose versions are recorded."""
    packages: tuple[str, ...]
    """Those that must have the very version that built it."""
    architecture: bool
    """Whether it was compiled for one processor or GPU."""


BACKENDS = {
    "aoti": Binding(tools=("videomla", "torch"), packages=("torch",), architecture=True),
    "onnx": Binding(tools=("videomla", "torch", "onnx", "onnxscript"), packages=(), architecture=False),
    "tensorrt": Binding(
        tools=("videomla", "torch", "onnx", "onnxscript", "tensorrt", "triton"),
        packages=("tensorrt",),
        architecture=True,
    ),
    "tensorrt-rtx": Binding(
        tools=("videomla", "torch", "onnx", "onnxscript", "tensorrt_rtx"),
        packages=("tensorrt_rtx",),
        architecture=True,
    ),
}

ENGINES = Path("engines")
"""Where engines go, and are looked for, unless told otherwise."""

Attention = Literal["plugin", "native"]
"""Self-attention as a node that our TensorRT plugin takes, or in operations that every backend knows."""

WITH_PLUGIN = ("onnx", "tensorrt")
"""Backends that take either."""


ON_CPU = {"backend": "aoti", "device": "cpu"}
"""What runs where there is no GPU."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor that goes in or comes out."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As torch calls it: `float32`, `bfloat16`, `int32`."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What a program takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What is said of an engine whose products are of codes with scales."""

    base: str
    """The precision of all other products."""
    products: str
    """How it multiplies the codes, or that it does not."""
    calibration: dict[str, Any]
    """The rollouts that the scales come from: `export.lowering.calibration.Rollouts`."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An engine's description of itself."""

    schema: int = SCHEMA
    backend: str
    precision: str
    attention: Attention
    batch: int
    model_hash: str
    """SHA-256 of the transformer's configuration and weights."""
    checkpoint: str
    """Where the checkpoint was: a shipped name or a path. The text encoder and codec stay there."""
    code: str
    """SHA-256 of the sources that made the programs.

    `runtime` is not among them. It calls programs and is in none; what it adds to a video, noise, sampler
    steps and commits, is the same for every engine and is not compiled. Its rollouts also measure the scales
    of fp8, but these are a file of the engine with a hash of its own, and no less true of the model after an
    edit of what measured them.
    """
    model: dict[str, Any]
    """The fields of `vmla.config.ModelConfig`."""
    cache: dict[str, Any]
    """The fields of `vmla.cache.CacheLayout`, and `dtype`."""
    programs: dict[str, Signature]
    layers: dict[str, tuple[str, ...]]
    """Linear layers, all of them, by the precision of their products."""
    quantization: Quantization | None = None
    """None unless the precision is fp8 or nvfp4."""
    compiler: dict[str, Any] = field(default_factory=dict)
    """What the compiler of the backend was told beyond its defaults."""
    host: Host
    """The machine that it was built for."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 by name."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the engine in `folder`.

        Raises:
            UserError: if there is none, or none that this version understands.
        """
        path = folder / NAME
        try:
            values = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{folder} is no engine: {path} is missing; build one with: vmla-export build") \
                from error  # fmt: skip
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid JSON ({error}); build the engine again") from error
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            found = values.get("schema") if isinstance(values, dict) else None
            raise UserError(f"{path}: schema is {found}, this version reads {SCHEMA}; build the engine again")
        return _from_json(values, path)

    def write(self, folder: Path) -> None:
        """Write it into `folder` at once."""
        atomic_write_text(folder / NAME, json.dumps(asdict(self), indent=2) + "\n")

    def same_build(self, other: Manifest) -> bool:
        """Whether both describe the same build, whatever their files."""
        ours, theirs = asdict(self), asdict(other)
        return all(ours[name] == theirs[name] for name in ours if name not in ("files", "checkpoint"))

    def build_command(self, folder: Path, **changes: str | int) -> str:
        """The command that builds this engine anew, with other settings if given."""
        options: dict[str, str | int] = {
            "checkpoint": self.checkpoint,
            "backend": self.backend,
            "precision": self.precision,
            "attention": self.attention,
            "batch": self.batch,
            "device": self.host.device,
            "target": self.host.architecture,
            **changes,
        }
        if options["backend"] != "aoti" or options["device"] == "cpu":
            del options["device"]
        if options["backend"] != "tensorrt-rtx":
            del options["target"]
        if options["backend"] not in WITH_PLUGIN:
            del options["attention"]
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return shlex.join(["vmla-export", "build", *words, "-o", str(folder)])

    def check(
        self, folder: Path, checkpoint: Checkpoint, *, batch: int = 1, here: Host | None = None
    ) -> None:
        """Refuse the engine in `folder` unless it can make `batch` videos of `checkpoint` on the host `here`.

        Raises:
            UserError: naming the field that does not fit and the command that mends it.
        """
        self.check_host(folder, here)
        self.check_model(folder, checkpoint)
        if batch != self.batch:
            mend = self.build_command(folder, batch=batch)
            raise _refusal(folder, "batch", f"built for {self.batch} videos at once, not {batch}", mend)

    def check_host(self, folder: Path, here: Host | None = None) -> None:
        """Refuse a machine that the engine was not built for; `here` is this one unless given.

        Raises:
            UserError: as `check`.
        """
        binding, built, mend = BACKENDS[self.backend], self.host, self.build_command(folder)
        here = here or Host.here(built.device, binding.packages)
        for package in binding.packages:
            theirs, ours = built.versions.get(package), here.versions.get(package)
            if theirs != ours:
                found = f"{package} {ours}" if ours else f"no {package}"
                raise _refusal(folder, "versions", f"built with {package} {theirs}, here is {found}", mend)
        if not binding.architecture:
            return
        if here.architecture not in built.architecture.split(","):  # TensorRT-RTX builds for several
            reason = f"built for {built.architecture}, here is {here.architecture}"
            fits: dict[str, str] = {"target": here.architecture} if here.architecture != NO_GPU else ON_CPU
            raise _refusal(folder, "architecture", reason, self.build_command(folder, **fits))
        if missing := sorted(set(built.features) - set(here.features)):
            raise _refusal(folder, "features", f"it uses {missing[0]}, which this processor lacks", mend)

    def check_model(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that the engine was not built from.

        Raises:
            UserError: as `check`, with the first setting of the model that differs, or `model_hash`.
        """
        name, sizes = str(checkpoint.folder), asdict(checkpoint.model_config())
        mend = self.build_command(folder, checkpoint=name)
        for setting, value in self.model.items():
            if sizes.get(setting) != value:
                raise _refusal(folder, setting, f"built for {value}, {name} has {sizes.get(setting)}", mend)
        if checkpoint.model_hash() != self.model_hash:
            raise _refusal(folder, "model_hash", f"built from other weights than those of {name}", mend)

    def check_files(self, folder: Path) -> None:
        """Read every file and compare its hash.

        Raises:
            UserError: naming the file that is missing or damaged.
        """
        from vmla.weights.files import hash_file

        for name, expected in self.files.items():
            path = folder / name
            if not path.is_file():
                raise _refusal(folder, name, "the file is missing", self.build_command(folder))
            if hash_file(path) != expected:
                reason = "the file is damaged, its SHA-256 is not that of the manifest"
                raise _refusal(folder, name, reason, self.build_command(folder))


def _refusal(folder: Path, field: str, reason: str, mend: str) -> UserError:
    return UserError(f"{folder}: {field}: {reason}; run: {mend}")


def _from_json(values: dict[str, Any], path: Path) -> Manifest:
    """A manifest from JSON values: lists become tuples, objects become what they describe."""
    known = {field.name for field in fields(Manifest)}
    if wrong := sorted(values.keys() ^ known):
        state = "missing" if wrong[0] in known else "unknown"
        raise UserError(f"{path}: field {wrong[0]} is {state}; build the engine again")
    if values["backend"] not in BACKENDS:
        raise UserError(f"{path}: backend {values['backend']} is unknown; known are {', '.join(BACKENDS)}")
    if any(Path(name).name != name for name in values["files"]):
        raise UserError(f"{path}: files: a name leads out of the folder; build the engine again")
    try:
        programs = {name: _signature(value) for name, value in values["programs"].items()}
        host = Host(**{**values["host"], "features": tuple(values["host"]["features"])})
        layers = {name: tuple(value) for name, value in values["layers"].items()}
        model = current_names(values["model"])  # an engine may be older than the names of its settings
        said = values["quantization"] and _quantization(values["quantization"])
    except (TypeError, KeyError, AttributeError) as error:
        reason = f"programs, layers or host are incomplete ({error})"
        raise UserError(f"{path}: {reason}; build the engine again") from error
    made = {"programs": programs, "host": host, "layers": layers, "model": model, "quantization": said}
    return Manifest(**{**values, **made})


def _quantization(value: dict[str, Any]) -> Quantization:
    watched = {**value["calibration"], "prompts": tuple(value["calibration"]["prompts"])}
    return Quantization(**{**value, "calibration": watched})


def _signature(value: dict[str, Any]) -> Signature:
    def specs(key: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in value[key])

    return Signature(inputs=specs("inputs"), outputs=specs("outputs"))
