"""The JSON file beside a video, which records everything that made it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from export.engine.manifest import EAGER, Manifest
from plugins.atomic_files import beside
from plugins.documents.json_file import read_json
from plugins.documents.typed import Between, typed
from plugins.errors import UserError
from runtime.engines.compiled import PRECISIONS
from runtime.planning.job import Job
from runtime.planning.start import NOT_RECORDED, StartClip
from runtime.prompts.sources import Policy, PromptChange
from vmla.config import FRAMES_PER_SECOND, YOUNGER, ModelConfig
from vmla.scheduler import Sampler
from vmla.weights.checkpoint import shipped_folder
from vmla.weights.formats.files import hash_weights, write_json

FRAMES = 24 * 3600 * FRAMES_PER_SECOND
"""Frames of a day, the most that a description may name; also the most chunks, of which there are fewer."""
PACKAGES = ("numpy", "av", "transformers", "tokenizers", "ftfy")
"""Packages whose versions are recorded beside PyTorch's: they read the prompt and encode the frames."""
DEFAULTS: Mapping[str, Any] = {
    **NOT_RECORDED, "compiled": False, "fp8": False, "cache": None, "text_device": None, "processes": 1,
}  # fmt: skip
"""Values of the fields that earlier versions did not record."""


def sidecar_path(output: Path) -> Path:
    """Path of the sidecar of the video `output`."""
    return beside(output, ".json")


@dataclass(frozen=True, kw_only=True)
class RecordedChange:
    """A prompt of a video and the chunk where it begins."""

    chunk: Annotated[int, Between(0, 2**63)]
    prompt: str
    policy: Policy


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The fields that are read of a video's description, named as in `describe_job`.

    Further fields are ignored: they record how the run went, or come from a later version.
    """

    prompts: tuple[RecordedChange, ...]
    seed: int
    frames: Annotated[int, Between(0, FRAMES)] | None
    frames_per_second: Literal[16]
    chunks: Annotated[int, Between(1, FRAMES)] | None
    scale: Annotated[int, Between(1, 16)]
    sampler: Sampler
    checkpoint: str
    weights: dict[str, str]
    layout: str
    window: dict[str, int]
    engine: str
    engine_folder: str | None
    engine_hash: str | None
    decoder: str
    decoder_file: str | None
    decoder_hash: str | None
    device: str
    dtype: Literal["float32", "bfloat16", "float16"]
    threads: Annotated[int, Between(1, 2**31)]
    versions: dict[str, str]
    machine: dict[str, str] = field(default_factory=dict)
    live: bool = False
    compiled: bool = False
    fp8: bool = False
    cache: Literal["fp8"] | None = None
    text_device: str | None = None
    processes: Annotated[int, Between(1, 2**31)] = 1
    start_file: str | None = None
    start_hash: str | None = None
    start_chunks: Annotated[int, Between(0, FRAMES)] = 0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("it has no prompts")

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Recorded:
        """The description in `values`, which `where` holds.

        Raises:
            UserError: naming the field that is missing or of the wrong type.
        """
        said = f"{where} does not describe a video that can be made again"
        return typed(dict(values), cls, said, others="ignore")

    @property
    def start(self) -> StartClip | None:
        """The pictures that the video continues, if any; their file is not read."""
        if self.start_file is None or self.start_hash is None:
            return None
        return StartClip(path=Path(self.start_file), sha256=self.start_hash, chunks=self.start_chunks)

    def changes(self) -> list[PromptChange]:
        """The prompts of the video."""
        return [PromptChange(chunk=c.chunk, prompts=(c.prompt,), policy=c.policy) for c in self.prompts]


def is_sidecar(path: Path) -> bool:
    """Whether `path` is a file that describes a video made here."""
    try:
        return read_json(path).keys() >= {"prompts", "seed", "weights", "sampler"}
    except UserError:
        return False


def describe_job(job: Job, *, frames: int, scale: int) -> dict[str, Any]:
    """All that determines the video's frames, as JSON values; hashes all weights."""
    return {**describe_video(job, frames=frames, scale=scale), **describe_model(job)}


def describe_video(job: Job, *, frames: int | None, scale: int) -> dict[str, Any]:
    """The part of `describe_job` in which the videos of one session may differ; reads no weights.

    `frames` is None for an endless video.
    """
    return {
        **describe_prompts(job.prompts.changes),
        "seed": job.seed,
        "frames": frames,
        "frames_per_second": FRAMES_PER_SECOND,
        "chunks": None if frames is None else job.chunks,
        "scale": scale,
        "sampler": job.sampler.settings(),
        **(NOT_RECORDED if job.start is None else job.start.describe()),
    }


def describe_model(job: Job) -> dict[str, Any]:
    """The part of `describe_job` that is the same for all videos of one session; hashes all weights."""
    config = job.checkpoint.model_config()
    manifest = None if job.engine_folder is None else Manifest.read(job.engine_folder)
    dtype = str(job.dtype).removeprefix("torch.")
    return {
        "checkpoint": reference(job.checkpoint.folder.resolve()),
        "weights": {
            part: hash_weights(job.checkpoint.weights_path(part))
            for part in ("transformer", "vae", "text_encoder")
        },
        "layout": config.layout,
        "window": describe_window(config),
        "engine": EAGER if manifest is None else manifest.backend,
        "precision": ("fp8" if job.fp8 else PRECISIONS[dtype]) if manifest is None else manifest.precision,
        "engine_reason": job.engine_reason,
        "engine_folder": None if job.engine_folder is None else str(job.engine_folder.resolve()),
        "engine_hash": None if manifest is None else hash_json(manifest.files),
        "compiled": job.compiled,
        "fp8": job.fp8,
        "cache": "fp8" if job.fp8_cache else None,
        **job.decoding.describe(),
        "device": str(job.device),
        "text_device": None if job.text_device == job.device else str(job.text_device),
        "dtype": dtype,
        "threads": job.threads,
        "processes": job.processes,
        "versions": {
            "videomla": version("videomla"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "machine": describe_machine(job.device),
    }


def describe_machine(device: torch.device) -> dict[str, str]:
    """The properties of a machine on which rounding depends, besides the number of threads.

    The number of cores is not one of them, because the number of threads does not depend on it.
    """
    found = {"instruction_set": torch.backends.cpu.get_cpu_capability(), "architecture": platform.machine()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found


def describe_window(config: ModelConfig) -> dict[str, int]:
    """The window in latent frames.

    Settings that are younger than the format appear only if they are set, so that older files still agree.
    """
    names = ("sink", "history", "chunk", *(name for name in YOUNGER if getattr(config, name)))
    return {name: getattr(config, name) for name in names}


def describe_prompts(changes: Sequence[PromptChange]) -> dict[str, Any]:
    """The first prompt of a video, and all its prompts."""
    return {"prompt": changes[0].prompts[0], "prompts": list_changes(changes)}


def reference(folder: Path) -> str:
    """How to find a checkpoint again: the name of a shipped one, the path of any other."""
    return folder.name if folder.parent == shipped_folder().resolve() else str(folder)


def list_changes(changes: Sequence[PromptChange]) -> list[dict[str, Any]]:
    """The prompts of one video, each with the chunk where it begins."""
    return [
        {"chunk": change.chunk, "prompt": change.prompts[0], "policy": change.policy} for change in changes
    ]


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_begun(output: Path, video: Mapping[str, Any]) -> None:
    """Write or replace the sidecar of a video that has no frames yet, without reading any weights."""
    write_sidecar(output, {**video, "weights": {}}, {"complete": False, "frames_written": 0})


def write_sidecar(output: Path, job: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Write or replace the sidecar of `output`."""
    write_json(sidecar_path(output), {**job, **outcome})
