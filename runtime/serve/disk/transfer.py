"""A state on its way between servers: what leaves this machine, and what is let in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from plugins.errors import UserError
from runtime.prompts.sources import PromptSchedule
from runtime.resume.sidecar import DEFAULTS, Recorded
from runtime.resume.state import State, load_state
from runtime.session.replay import OF_A_MODEL, OF_A_VIDEO, refuse_another

PLACES = ("checkpoint", "engine_folder", "engine_reason", "decoder_file")
"""Where things lie on the machine that a state was made on; nothing depends on it."""
LARGEST = 1 << 40
"""No count in a state is larger."""


def without_places(state: State, *, model: str) -> State:
    """The same state without paths of this machine in it."""
    places = {name: None for name in PLACES if name in state.video}
    return replace(state, video={**state.video, **places, "checkpoint": model})


def load_received(
    path: Path, *, template: State, described: Mapping[str, Any], characters: int, frames: int
) -> State:
    """The state in a file that came from the network.

    Safetensors and JSON hold no code. All that could go wrong later is checked now.

    Args:
        path: of the file.
        template: a state of the model that is served.
        described: what determines a video of it.
        characters, frames: of a prompt and of a video, at most.

    Raises:
        UserError: if it is not whole, or not of this model; in a sentence without the path.
    """
    try:
        state = load_state(path, mend="send it again")[0]
    except UserError as error:
        raise UserError(str(error).replace(str(path), "what was sent")) from error
    recorded = {**DEFAULTS, **state.video} if isinstance(state.video, dict) else {}
    if not recorded.keys() >= {*OF_A_MODEL, *OF_A_VIDEO}:
        raise UserError("this state does not say what it is a state of")
    refuse_another("this state", (*OF_A_MODEL, "sampler"), recorded, described)
    try:
        _check_video(state.video, characters=characters, frames=frames)
        _check_numbers(state)
        _check_tensors(state, template)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"this state is not what this model leaves: {error}") from error
    return replace(state, pending=())


def _check_video(video: Mapping[str, Any], *, characters: int, frames: int) -> None:
    recorded = Recorded.of(video, "this state")
    if recorded.start_file is not None:  # what it names would be opened here
        raise ValueError("it goes on from a file of another machine")
    changes = recorded.changes()
    PromptSchedule(changes)
    for change in changes:
        (prompt,) = change.prompts
        if type(change.chunk) is not int or not isinstance(prompt, str) or len(prompt) > characters:
            raise ValueError("a prompt of it is none")
    length = video["frames"]
    if length is not None and not (type(length) is int and 0 < length <= frames):
        raise ValueError(f"its length is not one of up to {frames} frames")
    if (length is None) != (video["chunks"] is None):
        raise ValueError("its frames and chunks disagree")
    _count("chunks", video["chunks"] or 0)
    if type(video["seed"]) is not int:
        raise ValueError("its seed is no number")


def _check_numbers(state: State) -> None:
    shot = state.snapshot
    for name in ("number", "frame", "forgotten"):
        _count(name, getattr(shot, name))
    if shot.forgotten > shot.number:
        raise ValueError("it has forgotten what is still to come")
    for name in ("frames", "fragments"):
        _count(name, state.mark[name])


def _count(name: str, value: Any) -> None:
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ValueError(f"its {name} is no count")


def _check_tensors(state: State, template: State) -> None:
    _alike("cache", state.snapshot.cache, template.snapshot.cache)
    kinds = {(one.dtype, one.shape) for one in template.snapshot.past.values()}
    for number, latents in state.snapshot.past.items():
        if (latents.dtype, latents.shape) not in kinds or not 0 <= number < state.snapshot.number:
            raise ValueError(f"chunk {number} of its window is none")
    mine, theirs = list(template.decoder_state or ()), list(state.decoder_state or ())
    if state.snapshot.number and len(mine) != len(theirs):
        raise ValueError("its decoder remembers something else")
    for one, other in zip(theirs, mine, strict=False):
        _alike("decoder's memory", one, other)


def _alike(name: str, one: Any, other: Any) -> None:
    if type(one) is not type(other):
        raise ValueError(f"its {name} is of another kind")
    if isinstance(one, Tensor) and (one.dtype, one.shape) != (other.dtype, other.shape):
        raise ValueError(
            f"its {name} is {one.dtype} {list(one.shape)}, not {other.dtype} {list(other.shape)}"
        )
