"""The JSON file beside a video, which records everything that made it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from export.engine.manifest import EAGER, Manifest
from runtime.engines.compiled import PRECISIONS
from runtime.planning.request import Job
from runtime.planning.start import NOT_RECORDED
from runtime.prompts.sources import PromptChange
from vmla.config import FRAMES_PER_SECOND, YOUNGER, ModelConfig
from vmla.weights.checkpoint import shipped_folder
from vmla.weights.formats.files import hash_weights, write_json


def sidecar_path(output: Path) -> Path:
    """Path of the sidecar of the video `output`."""
    return output.with_name(output.name + ".json")


def is_sidecar(path: Path) -> bool:
    """Whether `path` is a file that describes a video made here."""
    try:
        value = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return False
    return isinstance(value, dict) and value.keys() >= {"prompts", "seed", "weights", "sampler"}


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
        "precision": PRECISIONS[dtype] if manifest is None else manifest.precision,
        "engine_reason": job.engine_reason,
        "engine_folder": None if job.engine_folder is None else str(job.engine_folder.resolve()),
        "engine_hash": None if manifest is None else hash_json(manifest.files),
        **job.decoding.describe(),
        "device": str(job.device),
        "dtype": dtype,
        "threads": job.threads,
        "versions": {
            "videomla": version("videomla"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def describe_window(config: ModelConfig) -> dict[str, int]:
    """The window in latent frames; of the younger settings only those that are set."""
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


def write_sidecar(output: Path, job: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Write or replace the sidecar of `output`."""
    write_json(sidecar_path(output), {**job, **outcome})
