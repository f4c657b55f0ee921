"""Bodies of requests and messages of the live protocol, checked field by field.

The live protocol is the one that vLLM-Omni's clients speak on `/v1/realtime/video`; fields beyond it are
`session_id`, `sequence_number`, `seconds`, `position_seconds` and `policy`.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from plugins.errors import UserError
from runtime.prompts.sources import Policy
from vmla.text import check_prompt

LARGEST_SEED = 2**53 - 1
"""The largest whole number that JavaScript represents exactly."""
LONGEST_PROMPT = 2_000
"""Characters; models read a prompt's first 512 tokens at most."""


def _says_something(prompt: str) -> str:
    try:
        check_prompt(prompt)
    except UserError as error:
        raise ValueError(str(error)) from error
    return prompt


Text = Annotated[str, Field(max_length=LONGEST_PROMPT)]
Prompt = Annotated[Text, AfterValidator(_says_something)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
EventId = Annotated[str, Field(min_length=1, max_length=128)]


class Body(BaseModel):
    """The body of a request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class NewSession(Body):
    """Body of `POST /v1/sessions`: the prompt of a new stream, its seed, length and lease."""

    prompt: Prompt
    model: str | None = None
    seed: Seed = 0
    seconds: Seconds | None = None
    """None makes an endless session."""
    lease_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Interaction(Body):
    """Body of `POST /v1/sessions/{id}/interaction`: another prompt, and the policy for the cache."""

    prompt: Prompt
    policy: Policy = "recache"
    event_id: EventId = Field(default_factory=lambda: secrets.token_hex(8))


class Fork(Body):
    """Body of `POST /v1/sessions/{id}/fork`: the fork's prompt or seed; the original's where left out."""

    prompt: Prompt | None = None
    policy: Policy = "recache"
    seed: Seed | None = None


class NewVideo(BaseModel):
    """Body of `POST /v1/videos`; fields of the public API that mean nothing here are ignored."""

    prompt: Prompt
    model: str | None = None
    seconds: Seconds | None = None
    num_frames: Annotated[int, Field(ge=1)] | None = None
    seed: Seed = 0
    size: str | None = None
    fps: int | None = None
    num_inference_steps: int | None = None


class SessionStart(BaseModel):
    """The first message of a viewer: begins a stream, or joins an existing one (`session_id`)."""

    type: Literal["session.start"]
    prompt: Prompt | None = None
    model: str | None = None
    format: Literal["m4s"] = "m4s"
    seed: Seed | None = None
    num_frames: Annotated[int, Field(ge=1)] | None = None
    seconds: Seconds | None = None
    streaming_buffer_seconds: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] | None = None
    session_id: str | None = None
    sequence_number: Annotated[int, Field(ge=0)] | None = None
    """The chunk that is wanted first; the newest if not given."""


class Event(BaseModel):
    """The change that is asked for; an empty prompt is refused later, with the interaction's id."""

    prompt: Text | None = None
    multi_modal_data: Any = None


class LiveInteraction(BaseModel):
    """A change of prompt, as the message `session.interaction` carries it."""

    event_id: EventId = Field(default_factory=lambda: secrets.token_hex(8))
    event: Event
    transition_chunks: int | None = None
    policy: Policy = "recache"


class SessionInteraction(BaseModel):
    """The message `session.interaction`, which asks for another prompt."""

    type: Literal["session.interaction"]
    interaction: LiveInteraction


class SessionPlayback(BaseModel):
    """The message `session.playback`, which says how far the viewer's player has come."""

    type: Literal["session.playback"]
    position_seconds: Annotated[float, Field(ge=0, le=7 * 24 * 3600, allow_inf_nan=False)]
