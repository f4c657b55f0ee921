"""The transfer of states between servers: what a sent state leaves out, what a received one must satisfy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO

from torch import Tensor

from plugins.errors import UserError
from runtime.prompts.sources import PromptSchedule
from runtime.resume.sidecar import DEFAULTS, Recorded
from runtime.resume.state import State, state_in
from runtime.session.replay import OF_A_MODEL, OF_A_VIDEO, refuse_another

LOCAL_FIELDS = ("checkpoint", "engine_folder", "engine_reason", "decoder_file")
"""Fields of a description that say where files lie on the machine that wrote it; no frame depends on them."""
LARGEST = 1 << 40
"""Upper bound on every count in a state."""


def without_paths(state: State, *, model: str) -> State:
    """`state` without this machine's paths; its checkpoint is called `model`."""
    emptied = {name: None for name in LOCAL_FIELDS if name in state.video}
    return replace(state, video={**state.video, **emptied, "checkpoint": model})


def load_received(
    file: BinaryIO, *, template: State, described: Mapping[str, Any], characters: int, frames: int
) -> State:
    """The state that came from the network into an open file.

    Safetensors and JSON hold no code. All that could go wrong later is checked now.

    Args:
        file: at its beginning.
        template: a state of the model that is served.
        described: all that determines a video of it.
        characters, frames: upper bounds for a prompt and for a video.

    Raises:
        UserError: if it is not whole, or not of this model.
    """
    state = state_in(file, "what was sent", mend="send it again")
    recorded = {**DEFAULTS, **state.video} if isinstance(state.video, dict) else {}
    if not recorded.keys() >= {*OF_A_MODEL, *OF_A_VIDEO}:
        raise UserError("this state does not describe its video")
    refuse_another("this state", (*OF_A_MODEL, "sampler"), recorded, described)
    try:
        _check_video(state.video, characters=characters, frames=frames)
        _check_numbers(state)
        _check_tensors(state, template)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"this state is not one of this model: {error}") from error
    return replace(state, pending=())


def _check_video(video: Mapping[str, Any], *, characters: int, frames: int) -> None:
    recorded = Recorded.of(video, "this state")  # checks the type of every field
    if recorded.start_file is not None:  # a path in it would be opened on this machine
        raise ValueError("it continues a file of another machine")
    PromptSchedule(recorded.changes())
    if any(len(one.prompt) > characters for one in recorded.prompts):
        raise ValueError(f"one of its prompts has more than {characters} characters")
    if recorded.frames is not None and recorded.frames > frames:
        raise ValueError(f"it is longer than {frames} frames")
    if (recorded.frames is None) != (recorded.chunks is None):
        raise ValueError("only one of its frames and chunks has a number")


def _check_numbers(state: State) -> None:
    shot = state.snapshot
    counts = {name: getattr(shot, name) for name in ("number", "frame", "forgotten")}
    for name, value in {**counts, **{name: state.mark[name] for name in ("frames", "fragments")}}.items():
        if not 0 <= value < LARGEST:
            raise ValueError(f"its {name} is not a valid count")
    if shot.forgotten > shot.number:
        raise ValueError("it has dropped chunks that are still to be made")


def _check_tensors(state: State, template: State) -> None:
    _alike("cache", state.snapshot.cache, template.snapshot.cache)
    kinds = {(one.dtype, one.shape) for one in template.snapshot.past.values()}
    for number, latents in state.snapshot.past.items():
        if (latents.dtype, latents.shape) not in kinds or not 0 <= number < state.snapshot.number:
            raise ValueError(f"chunk {number} of its window has another shape or number")
    mine, theirs = list(template.decoder_state or ()), list(state.decoder_state or ())
    if state.snapshot.number and len(mine) != len(theirs):
        raise ValueError("its decoder has another state")
    for one, other in zip(theirs, mine, strict=False):
        _alike("decoder's state", one, other)


def _alike(name: str, one: Any, other: Any) -> None:
    if type(one) is not type(other):
        raise ValueError(f"its {name} is of another kind")
    if isinstance(one, Tensor) and (one.dtype, one.shape) != (other.dtype, other.shape):
        raise ValueError(
            f"its {name} is {one.dtype} {list(one.shape)}, not {other.dtype} {list(other.shape)}"
        )
