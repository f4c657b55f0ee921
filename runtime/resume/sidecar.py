"""The JSON file beside a video: everything that made it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from export.engine.manifest import Manifest
from runtime.engines.compiled import PRECISIONS
from runtime.planning.request import Job
from runtime.prompts.sources import Change
from vmla.config import FRAMES_PER_SECOND
from vmla.weights.checkpoint import shipped_folder
from vmla.weights.files import hash_weights, write_json


def sidecar_path(output: Path) -> Path:
    """Where the sidecar of `output` lies."""
    return output.with_name(output.name + ".json")


def describe_job(job: Job, *, frames: int, scale: int) -> dict[str, Any]:
    """What determines the video's frames, as JSON values."""
    config = job.checkpoint.model_config()
    manifest = None if job.engine_folder is None else Manifest.read(job.engine_folder)
    dtype = str(job.dtype).removeprefix("torch.")
    return {
        **describe_wish(job),
        "frames": frames,
        "frames_per_second": FRAMES_PER_SECOND,
        "chunks": job.chunks,
        "scale": scale,
        "checkpoint": reference(job.checkpoint.folder.resolve()),
        "weights": {
            part: hash_weights(job.checkpoint.weights_path(part))
            for part in ("transformer", "vae", "text_encoder")
        },
        "layout": config.layout,
        "window": {"sink": config.sink, "history": config.history, "chunk": config.chunk},
        "sampler": job.sampler.settings(),
        "engine": "eager" if manifest is None else manifest.backend,
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


def describe_wish(job: Job) -> dict[str, Any]:
    """The part of `describe_job` that videos of one length and engine may differ in; reads no weights."""
    changes = job.prompts.changes
    return {"prompt": changes[0].prompts[0], "prompts": describe_prompts(changes), "seed": job.seed}


def reference(folder: Path) -> str:
    """How to find a checkpoint again: the name of a shipped one, the path of any other."""
    return folder.name if folder.parent == shipped_folder().resolve() else str(folder)


def describe_prompts(changes: Sequence[Change]) -> list[dict[str, Any]]:
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
