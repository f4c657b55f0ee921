"""Repeats a video from its sidecar, or resumes one that was interrupted from its state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from runtime.planning.request import Job, prepare
from runtime.planning.start import NOT_RECORDED, Start
from runtime.prompts.sources import PromptChange, PromptSchedule
from runtime.resume.sidecar import describe_job, sidecar_path
from runtime.resume.state import State, load_state, state_path
from runtime.session.destination import choose_scale
from vmla.scheduler import Sampler
from vmla.world.caption import warning_for

DETERMINING = (
    "decoder", "decoder_hash", "prompts", "seed", "frames", "chunks", "scale", "weights", "layout", "window",
    "sampler", "engine", "engine_hash", "device", "dtype", "threads", "start_hash",
)  # fmt: skip
"""What must be as it was, in the words of `describe_job`; all that is wrong is named in this order."""
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
    """What `describe` returned, if it was called already."""
    changed: tuple[str, ...] = ()
    """Versions that differ from those the video was first made with, and might change a frame."""

    def describe(self) -> dict[str, Any]:
        """What determines the frames; reads all weights the first time."""
        return dict(self.described or describe_job(self.job, frames=self.frames, scale=self.scale))

    def warnings(self) -> list[str]:
        """Reasons why the video may disappoint, a sentence each."""
        prompts = [change.prompts[0] for change in self.job.prompts.changes]
        world = self.job.checkpoint.world()
        told = [] if world is None else [text for p in prompts if (text := warning_for(p, world))]
        if self.changed:
            told.append(f"frames may differ from before: {', '.join(self.changed)}")
        return told


def new(prompts: Any, checkpoint: str | None, *, scale: int | None, **options: Any) -> Order:
    """Order a new video; `prompts`, `checkpoint` and `options` are those of `prepare`."""
    job, frames = prepare(prompts, checkpoint, **options)
    return Order(job=job, frames=frames, scale=choose_scale(job.height, scale))


def repeat(sidecar: Path, given: Mapping[str, Any]) -> Order:
    """The video that `sidecar` describes, from its start.

    Raises:
        UserError: if it describes none, or what it names is not as it was.
    """
    order = _as_recorded(_read(sidecar), given, sidecar)
    if order.job.start is not None:
        order.job.start.verify()
    return order


def resume(output: Path, given: Mapping[str, Any]) -> Order:
    """The rest of the video `output`.

    Raises:
        UserError: if there is no state to go on from, it is torn, or what it names is not as it was.
    """
    sidecar = sidecar_path(output)
    mend = "make it anew"
    if sidecar.exists():
        mend += f" with: vmla-run --repeat {sidecar} -o {output} --overwrite"
        if not state_path(output).exists() and _read(sidecar).get("complete"):
            raise UserError(f"{output} is complete: there is nothing to go on with")
    state, recorded = load_state(state_path(output), mend=mend)
    order = _as_recorded(recorded, given, output)
    if order.job.start is not None and state.snapshot.number < order.job.start.chunks:
        order.job.start.verify()
    return replace(order, state=state)


def _read(sidecar: Path) -> dict[str, Any]:
    try:
        recorded = json.loads(sidecar.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the sidecar {sidecar}: {error}") from error
    return recorded if isinstance(recorded, dict) else {}


def _as_recorded(recorded: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> Order:
    """The order that `recorded` describes; options `given` on top must say the same.

    Raises:
        UserError: naming the first thing that is not as it was.
    """
    recorded = {**NOT_RECORDED, **recorded}
    if missing := [name for name in DETERMINING if name not in recorded]:
        raise UserError(f"{path} does not describe a video that can be made again: it lacks {missing[0]}")
    length = {"minutes", "seconds", "chunks"} & given.keys()
    options: dict[str, Any] = {
        "checkpoint": recorded["checkpoint"],
        "engine": recorded["engine_folder"] and Path(recorded["engine_folder"]),
        "decoder": recorded["decoder_file"] and Path(recorded["decoder_file"]),
        "seed": recorded["seed"],
        "device": recorded["device"],
        "dtype": recorded["dtype"],
        "prompts": PromptSchedule(changes_of(recorded["prompts"])),
        "scale": recorded["scale"],
        "threads": recorded["threads"],
        "start": Start.recorded(recorded),
        **({} if length else {"seconds": recorded["frames"] / recorded["frames_per_second"]}),
        **given,
    }
    order = new(options.pop("prompts"), options.pop("checkpoint"), **options)
    if given.get("steps") is None:
        order = replace(order, job=replace(order.job, sampler=Sampler(**recorded["sampler"])))
    now = order.describe()
    refuse_another(str(path), DETERMINING, recorded, now)
    then, here = recorded["versions"], now["versions"]
    changed = [name for name in here if then.get(name) != here[name]]
    told = tuple(f"{name} was {then.get(name)}, is {here[name]}" for name in changed)
    return replace(order, described=now, changed=told)


def changes_of(prompts: Sequence[Mapping[str, Any]]) -> list[PromptChange]:
    """The prompts of a video from what is recorded of them."""
    return [PromptChange(chunk=c["chunk"], prompts=(c["prompt"],), policy=c["policy"]) for c in prompts]


def refuse_another(
    what: str, names: Sequence[str], recorded: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse to go on with `what`, unless all `names` say now what is recorded.

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
    name = "number of threads" if name == "threads" else name
    short = (f"{str(value)[:40]}..." if len(str(value)) > 40 else str(value) for value in (then, now))
    return "{} was made with another {}: {}, not {}; use what it was made with".format(what, name, *short)
