"""Checks whether an engine fits the machine, the checkpoint and its own manifest; refusals say what to do.

Free of torch unless a GPU must be asked, so that engines are listed and refused at once.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

from export.backends.aoti import AOTI
from export.backends.base import Backend
from export.backends.registry import BACKENDS
from export.engine.manifest import NAME, Manifest
from export.engine.target import NO_GPU, Host
from plugins.documents.regular_file import opened
from plugins.errors import UserError

if TYPE_CHECKING:
    from vmla.weights.checkpoint import Checkpoint

ON_CPU = {"backend": AOTI.name, "device": "cpu"}
"""Options of an engine that runs without a GPU."""
PIECE = 2**20
"""Bytes of a file that are read and hashed at a time."""


def backend_of(manifest: Manifest, folder: Path) -> Backend:
    """The backend that built the engine in `folder`.

    Raises:
        UserError: if this version has no backend of that name.
    """
    if manifest.backend not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise UserError(f"{folder / NAME}: backend {manifest.backend} is unknown; known are {known}")
    return BACKENDS[manifest.backend]


def build_command(manifest: Manifest, folder: Path, **changes: str | int) -> str:
    """The command that rebuilds the engine in `folder`, with other settings where `changes` gives them."""
    options: dict[str, str | int] = {
        "checkpoint": manifest.checkpoint,
        "backend": backend_of(manifest, folder).name,
        "precision": manifest.precision,
        "attention": manifest.attention,
        "tile": str(manifest.compiler.get("tile", "")),
        "batch": manifest.batch,
        "device": manifest.host.device,
        "target": manifest.host.architecture,
        **changes,
    }
    builder = BACKENDS[str(options["backend"])]
    for name in ("tile", "device", "target"):
        if name not in builder.takes or options[name] == "":
            del options[name]
    if len(builder.attentions) == 1 or options["attention"] not in builder.attentions:
        del options["attention"]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    usual = BACKENDS[manifest.backend].usually_regional(manifest.host.device, manifest.precision)
    if not changes.keys() & {"backend", "device"} and manifest.regional != usual:
        words.append("--regional" if manifest.regional else "--no-regional")
    return shlex.join(["vmla-export", "build", *words, "-o", str(folder)])


def check_engine(
    manifest: Manifest, folder: Path, checkpoint: Checkpoint, *, batch: int = 1, here: Host | None = None
) -> None:
    """Refuse the engine in `folder` unless it can make `batch` videos of `checkpoint` on the host `here`.

    Raises:
        UserError: naming the field that does not fit and the command that mends it.
    """
    check_host(manifest, folder, here)
    check_model(manifest, folder, checkpoint)
    check_claims(manifest, folder)
    if batch != manifest.batch:
        reason = f"built for {manifest.batch} videos at once, not {batch}"
        raise _refusal(folder, "batch", reason, build_command(manifest, folder, batch=batch))


def check_host(manifest: Manifest, folder: Path, here: Host | None = None) -> None:
    """Refuse a machine that the engine was not built for; `here` defaults to this one.

    Raises:
        UserError: as `check_engine`.
    """
    backend, built = backend_of(manifest, folder), manifest.host
    mend = build_command(manifest, folder)
    here = here or Host.here(built.device, backend.pinned)
    for package in backend.pinned:
        theirs, ours = built.versions.get(package), here.versions.get(package)
        if theirs != ours:
            found = f"{package} {ours}" if ours else f"no {package}"
            raise _refusal(folder, "versions", f"built with {package} {theirs}, here is {found}", mend)
    if backend.portable:
        return
    if here.architecture not in built.architecture.split(","):  # TensorRT-RTX builds for several
        reason = f"built for {built.architecture}, here is {here.architecture}"
        fits: dict[str, str] = {"target": here.architecture} if here.architecture != NO_GPU else ON_CPU
        raise _refusal(folder, "architecture", reason, build_command(manifest, folder, **fits))
    if missing := sorted(set(built.features) - set(here.features)):
        raise _refusal(folder, "features", f"it uses {missing[0]}, which this processor lacks", mend)


def check_model(manifest: Manifest, folder: Path, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that the engine was not built from.

    Raises:
        UserError: as `check_engine`, with the first setting of the model that differs, or `model_hash`.
    """
    name, sizes = str(checkpoint.folder), asdict(checkpoint.model_config())
    mend = build_command(manifest, folder, checkpoint=name)
    for setting, value in manifest.model.items():
        if sizes.get(setting) != value:
            raise _refusal(folder, setting, f"built for {value}, {name} has {sizes.get(setting)}", mend)
    if checkpoint.model_hash() != manifest.model_hash:
        raise _refusal(folder, "model_hash", f"built from other weights than those of {name}", mend)


def check_claims(manifest: Manifest, folder: Path) -> None:
    """Refuse a manifest whose cache, programs and precision are not those of the model that it names.

    Raises:
        UserError: naming the field.
    """
    from export.engine.signature import NARROW, cache_of, contract
    from vmla.config import ModelConfig

    mend = build_command(manifest, folder)
    config = ModelConfig.from_dict(manifest.model, str(folder / NAME))
    base = manifest.precision if manifest.quantization is None else manifest.quantization.base
    narrow = NARROW.get(base)
    if narrow is None:
        raise _refusal(folder, "precision", f"there is none called {base}", mend)
    if manifest.cache != cache_of(config, narrow):
        raise _refusal(folder, "cache", f"it is not that of the model in {base}", mend)
    if manifest.programs != contract(config, batch=manifest.batch, narrow=narrow):
        raise _refusal(folder, "programs", f"they take and give not what the model does in {base}", mend)


def check_files(manifest: Manifest, folder: Path) -> None:
    """Read every file of the engine and compare its hash.

    Raises:
        UserError: naming the file that is missing, a link or damaged, or that the manifest has no hash of.
    """
    _check_table(manifest, folder)
    for name in manifest.files:
        _check_file(manifest, folder, name, None)


@contextmanager
def sound_copy(manifest: Manifest, folder: Path) -> Iterator[Path]:
    """A private folder with the files of the engine, to be loaded from while this lasts.

    What was hashed is what lies there, whatever becomes of the engine's own folder meanwhile.

    Raises:
        UserError: as `check_files`, or where there is no room for it.
    """
    _check_table(manifest, folder)
    with TemporaryDirectory(prefix="videomla-engine-") as place:
        for name in manifest.files:
            try:
                with (Path(place) / name).open("xb") as copy:
                    _check_file(manifest, folder, name, copy)
            except OSError as error:
                mend = "make room there, or name a larger folder in TMPDIR"
                raise UserError(
                    f"cannot copy {folder / name} to {place}: {error.strerror}; {mend}"
                ) from error
        yield Path(place)


def _check_table(manifest: Manifest, folder: Path) -> None:
    """Refuse an engine with a program whose file has no hash."""
    backend = backend_of(manifest, folder)
    for name in (name for program in manifest.programs for name in backend.files(program, manifest)):
        if name not in manifest.files:
            raise _refusal(folder, name, "its manifest has no hash of it", build_command(manifest, folder))


def _check_file(manifest: Manifest, folder: Path, name: str, copy: BinaryIO | None) -> None:
    """Compare the hash of one file, written to `copy` on the way."""
    path, mend, digest = folder / name, build_command(manifest, folder), hashlib.sha256()
    if not path.exists():
        raise _refusal(folder, name, "the file is missing", mend)
    with opened(path, links=False) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            if copy is not None:
                copy.write(piece)
    if digest.hexdigest() != manifest.files[name]:
        raise _refusal(folder, name, "the file is damaged, its SHA-256 is not that of the manifest", mend)


def _refusal(folder: Path, field: str, reason: str, mend: str) -> UserError:
    return UserError(f"{folder}: {field}: {reason}; run: {mend}")
