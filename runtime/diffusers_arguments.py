"""Arguments of diffusers' `WanPipeline` that `VideoPipeline` takes, and the forms of the frames it
returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from plugins.errors import UserError, missing_extra
from runtime.outputs import Frames
from vmla.config import FRAMES_PER_SECOND
from vmla.scheduler import Sampler
from vmla.vae import Codec

OutputType = Literal["np", "pil", "pt", "latent"]
OnStepEnd = Callable[[Any, int, float, dict[str, Any]], object]
"""Called with the pipeline, the number of a chunk, its last timestep (0) and its `latents`, after each chunk:
the steps of a chunk are one computation. Its result is ignored; `pipeline._interrupt = True` ends the
video."""


class WanArguments(TypedDict, total=False):
    """Arguments by the names that `WanPipeline.__call__` has for them."""

    num_frames: int
    """Length, in place of `seconds`; any number, at 16 frames per second."""
    num_inference_steps: int
    """Denoising steps of each chunk, in place of `steps`."""
    generator: torch.Generator | list[torch.Generator]
    """Its initial seed is the seed; it is not drawn from, so that it gives the same video again."""
    height: int
    width: int
    """Height and width in pixels, which must be the model's own."""
    negative_prompt: str | list[str] | None
    guidance_scale: float
    """Weight of classifier-free guidance, in place of the checkpoint's own; a negative prompt without effect
    is refused."""
    output_type: OutputType
    """Form of `GeneratedVideo.frames`; `np` by default."""
    callback_on_step_end: OnStepEnd
    callback_on_step_end_tensor_inputs: list[str]
    """Only `latents` exist."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form in which the frames of a video are returned."""

    output_type: OutputType = "np"
    callback: OnStepEnd | None = None
    latent_frames: int = 0
    """Latent frames that the video's frames need, for `latent`."""

    @property
    def wants_latents(self) -> bool:
        """Whether the latents are asked for, and have to be stored."""
        return self.output_type == "latent" or self.callback is not None

    def of(self, chunks: Sequence[Frames], latents: Sequence[Tensor]) -> Any:
        """The frames of one video, as a batch of one.

        Returns:
            `np`: float32 [1, n, H, W, 3] in [0, 1]; `pt`: the same as a tensor [1, n, 3, H, W]; `pil`: a list
            of a list of images; `latent`: normalised latents [1, z, F, h, w].
        """
        if self.output_type == "latent":
            return torch.cat(list(latents), dim=2)[:, :, : self.latent_frames]
        if not chunks:
            raise UserError("no frames are made (decoder none, or it was closed); there are only latents")
        frames = np.concatenate(chunks)
        if self.output_type == "pil":
            return [_images(frames)]
        scaled = frames.astype(np.float32)[None] / 255
        return scaled if self.output_type == "np" else torch.from_numpy(scaled).permute(0, 1, 4, 2, 3)


def form_of(said: WanArguments, codec: Codec, frames: int) -> Form:
    """The form that `said` asks for, of a video of so many frames.

    Raises:
        UserError: for a form that there is not, or tensors other than latents.
    """
    output_type = said.get("output_type", "np")
    if output_type not in get_args(OutputType):
        raise UserError(f"no output_type {output_type!r}; use one of {', '.join(get_args(OutputType))}")
    if other := [name for name in said.get("callback_on_step_end_tensor_inputs", ()) if name != "latents"]:
        raise UserError(f"callback_on_step_end_tensor_inputs asks for {other[0]}; there are only latents")
    needed = 1 + max(0, -(-(frames - codec.first_frames) // codec.temporal_ratio))
    return Form(
        output_type=output_type, callback=said.get("callback_on_step_end"), latent_frames=needed
    )  # fmt: skip


def refuse_unlike(said: WanArguments, height: int, width: int) -> None:
    """Refuse sizes that the model cannot make, and arguments that do not exist.

    Raises:
        UserError: for another size of picture.
        TypeError: for an argument that does not exist.
    """
    if unknown := sorted(said.keys() - WanArguments.__annotations__.keys()):
        raise TypeError(f"there is no argument {unknown[0]!r}")
    size = said.get("height", height), said.get("width", width)
    if size != (height, width):
        raise UserError(
            f"pictures of {size[0]} x {size[1]} are asked for; the model's are {height} x {width}"
        )


def sampler_of(said: WanArguments, own: Sampler) -> Sampler:
    """`own` with the guidance that is asked for.

    Raises:
        UserError: for a negative prompt that would change nothing, since nothing is guided.
    """
    sampler = own if "guidance_scale" not in said else own.with_guidance(said["guidance_scale"])
    negative = one_prompt(said.get("negative_prompt"))
    if sampler.guided:
        return sampler if negative is None else replace(sampler, negative_prompt=negative)
    if negative and negative.strip():
        raise UserError(
            "negative_prompt would change nothing: this model is sampled without guidance; leave it out, or "
            "give a guidance_scale other than 1"
        )
    return sampler


def seconds_of(said: WanArguments, seconds: float | None) -> float | None:
    """The length, by `num_frames` if it is given.

    Raises:
        UserError: for no frames.
    """
    if "num_frames" not in said:
        return seconds
    if said["num_frames"] < 1:
        raise UserError(f"num_frames is {said['num_frames']}; ask for 1 or more")
    return said["num_frames"] / FRAMES_PER_SECOND


def seed_of(said: WanArguments, seed: int) -> int:
    """The seed, by `generator` if there is one.

    Raises:
        UserError: for more than one.
    """
    generators = said.get("generator") or []
    each = generators if isinstance(generators, list) else [generators]
    if len(each) > 1:
        raise UserError(f"{len(each)} generators for one video; give one, or use many()")
    return each[0].initial_seed() if each else seed


def one_prompt(prompt: Any) -> Any:
    """`prompt` itself, or the only one of a list.

    Raises:
        UserError: for a list of several.
    """
    if not isinstance(prompt, list) or not all(isinstance(each, str) for each in prompt):
        return prompt
    if len(prompt) != 1:
        raise UserError(f"{len(prompt)} prompts in one call; give one, or make them together with many()")
    return prompt[0]


def _images(frames: Frames) -> list[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("pillow", "png") from error
    return [Image.fromarray(frame) for frame in frames]
