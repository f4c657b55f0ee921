"""Orders for videos: a new one, one repeated from its sidecar, or one resumed from its state."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.engine.manifest import engine_store
from plugins.documents.json_file import read_json
from plugins.errors import UserError
from runtime.planning.job import Job
from runtime.planning.request import prepare
from runtime.prompts.sources import PromptSchedule
from runtime.resume.sidecar import DEFAULTS, Recorded, describe_job, sidecar_path
from runtime.resume.state import State, load_state, state_path
from runtime.session.destination import choose_scale, is_persistent, is_resumable
from vmla.world.caption import warning_for

DETERMINING = (
    "decoder", "decoder_hash", "prompts", "seed", "frames", "chunks", "scale", "weights", "layout", "window",
    "sampler", "engine", "engine_hash", "compiled", "fp8", "cache", "device", "text_device",
    "dtype", "threads", "processes", "start_hash",
)  # fmt: skip
"""Fields of `describe_job` that must equal the recorded ones; an error names the first in this order."""
OF_A_VIDEO = ("prompts", "seed", "frames", "chunks", "scale", "sampler", "start_hash")
"""The names among them in which the videos of one session may differ."""
OF_A_MODEL = tuple(name for name in DETERMINING if name not in OF_A_VIDEO)
"""The names among them that are the same for all videos of one session."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A video to make, from its start or from a state."""

    job: Job
    frames: int
    scale: int
    state: State | None = None
    described: Mapping[str, Any] | None = None
    """The result of `describe`, if it was called already."""
    changed: tuple[str, ...] = ()
    """Differences from the first time that might change a frame, such as another version of PyTorch."""

    def describe(self) -> dict[str, Any]:
        """All that determines the frames; reads all weights the first time."""
        return dict(self.described or describe_job(self.job, frames=self.frames, scale=self.scale))


def warnings_of(orders: Sequence[Order]) -> list[str]:
    """Warnings about videos of one checkpoint, a sentence each; reads no weights.

    A plan (`--dry-run`) and the run itself give the same warnings.
    """
    checkpoint = orders[0].job.checkpoint
    world, tokenizer = checkpoint.world(), checkpoint.prompt_tokenizer()
    told: list[str] = []
    for order in orders:
        prompts = dict.fromkeys(change.prompts[0] for change in order.job.prompts.changes)
        told += [str(cut) for prompt in prompts if (cut := tokenizer.cut(prompt)) is not None]
        told += [] if world is None else [text for prompt in prompts if (text := warning_for(prompt, world))]
        if order.changed:
            told.append(f"frames may differ from before: {', '.join(order.changed)}")
    return list(dict.fromkeys(told))


def new(prompts: Any, checkpoint: str | None, *, scale: int | None, **options: Any) -> Order:
    """The order for a new video; `prompts`, `checkpoint` and `options` are those of `prepare`."""
    job, frames = prepare(prompts, checkpoint, **options)
    return Order(job=job, frames=frames, scale=choose_scale(job.height, scale))


def repeat(sidecar: Path, given: Mapping[str, Any]) -> Order:
    """The order for the video that `sidecar` describes, from its start; `given` options must agree with it.

    Raises:
        UserError: if it describes none, or a file that it names has changed.
    """
    order = _as_recorded(read_json(sidecar), given, sidecar)
    if order.job.start is not None:
        order.job.start.verify()
    return order


def resume(output: Path, given: Mapping[str, Any]) -> Order:
    """The order for the rest of the video `output`; `given` options must agree with its description.

    Raises:
        UserError: if there is no state to resume, it is torn, or a file that it names has changed.
    """
    if not is_persistent(output):
        raise UserError(f"{output} holds no video to resume; name the file or folder of one")
    if not is_resumable(output):
        raise UserError(f"{output} is one piece, which cannot be resumed; make it again with --overwrite")
    sidecar = sidecar_path(output)
    mend = "make it again"
    if sidecar.exists():
        mend += f" with: vmla-run --repeat {sidecar} -o {output} --overwrite"
        told = {"weights": None} if state_path(output).exists() else read_json(sidecar)
        if told.get("complete"):
            raise UserError(f"{output} is complete: there is nothing to resume")
        if told.get("weights") == {}:  # the run was killed before they were known
            mend = "make it again with --overwrite"
    state, recorded = load_state(state_path(output), mend=mend)
    order = _as_recorded(recorded, given, output)
    if order.job.start is not None and state.snapshot.number < order.job.start.chunks:
        order.job.start.verify()
    return replace(order, state=state)


def _as_recorded(recorded: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> Order:
    """The order that `recorded` describes; options `given` on top must say the same.

    Raises:
        UserError: naming the first file that has changed.
    """
    recorded = {**DEFAULTS, **recorded}
    told = Recorded.of(recorded, str(path))
    if told.frames is None:
        raise UserError(f"{path} describes an endless video, which only its own session can continue")
    length = {"minutes", "seconds", "chunks"} & given.keys()
    options: dict[str, Any] = {
        "checkpoint": told.checkpoint,
        "engine": None if "engine" in given else _trusted(told.engine_folder, path),
        "decoder": told.decoder_file and Path(told.decoder_file),
        "seed": told.seed,
        "device": told.device,
        "text_device": told.text_device or "auto",
        "compiled": told.compiled,
        "precision": "fp8" if told.fp8 else None,
        "cache": told.cache,
        "dtype": told.dtype,
        "prompts": PromptSchedule(told.changes()),
        "scale": told.scale,
        "threads": told.threads,
        "start": told.start,
        **({} if length else {"seconds": told.frames / told.frames_per_second}),
        **given,
    }
    order = new(options.pop("prompts"), options.pop("checkpoint"), **options)
    if given.get("steps") is None:
        order = replace(order, job=replace(order.job, sampler=told.sampler))
    now = order.describe()
    refuse_another(str(path), DETERMINING, recorded, now)
    pairs = (told.versions, now["versions"]), (told.machine, now["machine"])
    lines = tuple(line for then, here in pairs for line in _changes(then, here))
    return replace(order, described=now, changed=lines)


def _changes(then: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Recorded values that differ now; older files recorded fewer."""
    changed = [name for name in here if name in then and then[name] != here[name]]
    return [f"{name.replace('_', ' ')} was {then[name]}, is {here[name]}" for name in changed]


def _trusted(folder: str | None, path: Path) -> Path | None:
    """The engine that a recorded video was made with; None for the model itself.

    An engine is a program, so a sidecar or state that comes from elsewhere must not decide that it is run.

    Raises:
        UserError: unless it lies among the user's own engines.
    """
    if folder is None:
        return None
    store = engine_store()
    try:
        engine = Path(folder).resolve()
    except (RuntimeError, ValueError) as error:  # a loop of links, or a name that is not a path
        raise UserError(f"{path} names the engine {folder}, where there is none; {error}") from error
    if store is None or not engine.is_relative_to(store.resolve()):
        mend = f"if you trust whoever built it, name it: --engine {shlex.quote(folder)}"
        raise UserError(f"{path} names the engine {folder}, which is a program and not one of yours; {mend}")
    return engine


def refuse_another(
    what: str, names: Sequence[str], recorded: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse to resume `what`, unless all `names` have their recorded values now.

    Raises:
        UserError: naming the first that does not.
    """
    for name in names:
        if now[name] != recorded[name]:
            raise UserError(_refusal(what, name, recorded[name], now[name]))


def _refusal(what: str, name: str, then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        part = next(part for part in {**then, **now} if then.get(part) != now.get(part))
        name, then, now = f"{name}.{part}", then.get(part), now.get(part)
    name = f"number of {name}" if name in ("threads", "processes") else name
    short = (f"{str(value)[:40]}..." if len(str(value)) > 40 else str(value) for value in (then, now))
    return "{} was made with another {}: {}, not {}; use what it was made with".format(what, name, *short)
