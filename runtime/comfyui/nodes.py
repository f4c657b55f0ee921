"""The nodes, by ComfyUI's interface of classes: INPUT_TYPES, RETURN_TYPES, FUNCTION, CATEGORY.

Pictures are ComfyUI's IMAGE: float32 [n, H, W, 3] in [0, 1]. A video of minutes does not fit into one such
tensor; `VideoMLASampleToFile` writes it while it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from plugins.errors import UserError
from runtime.comfyui.host import Progress, next_output
from runtime.outputs import Frames
from runtime.outputs.mp4 import Mp4Sink
from runtime.pipeline import VideoPipeline
from vmla.config import FRAMES_PER_SECOND

PIPELINE = "VIDEOMLA_PIPELINE"
"""The type of a loaded model, on the wires between these nodes."""
SAMPLING: dict[str, Any] = {
    "pipeline": (PIPELINE,),
    "prompt": ("STRING", {"multiline": True, "default": "a red star bouncing on a navy background"}),
    "seconds": ("FLOAT", {"default": 5.0, "min": 0.1, "max": 3600.0, "step": 0.1}),
    "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
    "steps": ("INT", {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the checkpoint's own number"}),
}
"""The inputs of both samplers, in ComfyUI's form."""
START: dict[str, Any] = {
    "start": ("STRING", {"default": "", "tooltip": "a video, an image or a folder of pictures to continue"})
}


class VideoMLALoad:
    """Loads a checkpoint: a folder, a shipped model's name, or a hub id."""

    CATEGORY = "VideoMLA"
    FUNCTION = "load"
    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)
    DESCRIPTION = "Loads a VideoMLA checkpoint with its codec and text encoder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """The checkpoint, where it runs, and a decoder in place of its own."""
        return {
            "required": {
                "checkpoint": ("STRING", {"default": "sprites"}),
                "device": (["auto", "cpu", "cuda"],),
                "dtype": (["auto", "float32", "bfloat16", "float16"],),
            },
            "optional": {"decoder": ("STRING", {"default": "", "tooltip": "a file of TAEHV's weights"})},
        }

    def load(self, checkpoint: str, device: str, dtype: str, decoder: str = "") -> tuple[VideoPipeline]:
        """Load the checkpoint and return its pipeline."""
        return (
            VideoPipeline.from_pretrained(checkpoint, device=device, dtype=dtype, decoder=decoder or None),
        )


class VideoMLASample:
    """Makes a video chunk by chunk, and returns all of its frames."""

    CATEGORY = "VideoMLA"
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    DESCRIPTION = "Makes a video chunk by chunk, with the newest frame as preview."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """The model, what it shows, how long it is, and the pictures that it continues."""
        return {"required": SAMPLING, "optional": START}

    def sample(
        self, pipeline: VideoPipeline, prompt: str, seconds: float, seed: int, steps: int, start: str = ""
    ) -> tuple[Tensor]:
        """Make the video and return its frames."""
        made = _chunks(pipeline, prompt, seconds, seed, steps, start)
        return (torch.cat([torch.from_numpy(frames).float() / 255 for frames in made]),)


class VideoMLASave:
    """Writes frames to an MP4 file at 16 frames a second."""

    CATEGORY = "VideoMLA"
    FUNCTION = "save"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    OUTPUT_NODE = True
    DESCRIPTION = "Writes frames to an H.264 file in ComfyUI's output folder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """The frames, and how the file's name begins."""
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "video/VideoMLA"}),
            }
        }

    def save(self, images: Tensor, filename_prefix: str) -> dict[str, Any]:
        """Write the frames to a new file."""
        pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return _write(iter([pixels]), filename_prefix)


class VideoMLASampleToFile:
    """Makes a video of any length and writes each chunk as soon as it is made."""

    CATEGORY = "VideoMLA"
    FUNCTION = "sample"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ()
    OUTPUT_NODE = True
    DESCRIPTION = "Makes a video chunk by chunk into a file that plays while it grows; memory stays the same."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """The inputs of `VideoMLASample`, and how the file's name begins."""
        name = {"filename_prefix": ("STRING", {"default": "video/VideoMLA"})}
        return {"required": SAMPLING | name, "optional": START}

    def sample(
        self, pipeline: VideoPipeline, prompt: str, seconds: float, seed: int, steps: int,
        filename_prefix: str, start: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """Make the video and write each of its chunks."""
        return _write(_chunks(pipeline, prompt, seconds, seed, steps, start), filename_prefix)


def _chunks(
    pipeline: VideoPipeline, prompt: str, seconds: float, seed: int, steps: int, start: str
) -> Iterator[Frames]:
    """The frames of each chunk, with a preview of each."""
    with pipeline(prompt, seconds=seconds, seed=seed, steps=steps or None, start=start or None) as video:
        progress = Progress(video.chunks)
        for frames in video:
            progress.show(frames)
            yield frames


def _write(chunks: Iterator[Frames], prefix: str) -> dict[str, Any]:
    """Write chunks to the next file of that prefix; what ComfyUI's page shows of it."""
    first = next(chunks, None)
    if first is None or not len(first):
        raise UserError("there are no frames to save; connect images")
    path, told = next_output(prefix, first.shape[2], first.shape[1])
    sink = Mp4Sink(path, frames_per_second=FRAMES_PER_SECOND)
    try:
        sink.write(first)
        for frames in chunks:
            sink.write(frames)
    finally:
        sink.close()
    return {"ui": {"images": [told], "animated": (True,)}}


NODE_CLASS_MAPPINGS = {
    node.__name__: node for node in (VideoMLALoad, VideoMLASample, VideoMLASave, VideoMLASampleToFile)
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "VideoMLALoad": "Load VideoMLA",
    "VideoMLASample": "Sample VideoMLA",
    "VideoMLASave": "Save VideoMLA Video",
    "VideoMLASampleToFile": "Sample VideoMLA to File",
}
