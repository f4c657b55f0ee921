"""Pictures that a video continues: they are encoded and committed as its first chunks.

A clip gives its last frames, as many whole chunks as the window holds; an image is a first chunk that
stands still. The video begins with these frames, as the decoder shows them.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugins.documents.video_file import opened_video
from plugins.errors import UserError
from runtime.outputs import Frames
from vmla.cache import CacheSpec
from vmla.config import FRAMES_PER_SECOND
from vmla.vae import Codec, frames_in
from vmla.weights.checkpoint import Checkpoint
from vmla.weights.formats.files import hash_file

MEND = "give a video, an image or a folder of .png pictures"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
NOT_RECORDED: Mapping[str, Any] = {"start_file": None, "start_hash": None, "start_chunks": 0}
"""Fields of the description of a video that starts from nothing; earlier versions did not write them."""


@dataclass(frozen=True, kw_only=True)
class StartClip:
    """A clip, an image or a folder of pictures, known to fit the model."""

    path: Path
    sha256: str
    chunks: int
    """Number of the video's first chunks that it becomes."""

    def describe(self) -> dict[str, Any]:
        """The start as JSON values, for a video's description."""
        return {
            "start_file": str(self.path.resolve()), "start_hash": self.sha256, "start_chunks": self.chunks,
        }  # fmt: skip

    def verify(self) -> None:
        """Compare the file with its hash.

        Raises:
            UserError: if it is missing or has changed.
        """
        if _hash(self.path) != self.sha256:
            raise UserError(f"{self.path} is not what the video was started from; put that there again")

    def encode(self, checkpoint: Checkpoint, device: torch.device) -> tuple[Tensor, ...]:
        """Latents [1, z, F, h, w] of each of its chunks, by the checkpoint's own codec; loads its weights.

        Raises:
            UserError: if the file has changed, or cannot be decoded.
        """
        self.verify()
        codec = checkpoint.codec().to(device)
        lengths = CacheSpec.of(checkpoint.model_config()).chunks
        wanted = frames_in(lengths.start(self.chunks), codec)
        pixels = torch.from_numpy(_last_frames(self.path, wanted)).to(device)
        config = checkpoint.model_config()
        times = pixels.shape[1] // (config.sample_height * codec.spatial_ratio)
        with torch.inference_mode():
            latents = codec.encode(_shrunk(pixels, times)[None])
        return lengths.split(latents, range(self.chunks))


def open_start(path: Path, checkpoint: Checkpoint) -> StartClip:
    """The start in `path`, for `checkpoint`; only the first picture is decoded, and no weights are read.

    Raises:
        UserError: for a file that cannot be read, or whose size, rate or length does not fit the model.
    """
    config, codec = checkpoint.model_config(), checkpoint.codec(weights=False)
    size = config.sample_height * codec.spatial_ratio, config.sample_width * codec.spatial_ratio
    found, rate, count = _look_at(path)
    _check_size(path, found, size)
    if rate is not None and abs(rate - FRAMES_PER_SECOND) > 1e-3:
        raise UserError(
            f"{path} has {rate:g} frames a second, videos here {FRAMES_PER_SECOND}; convert it first: "
            f"ffmpeg -i {path} -r {FRAMES_PER_SECOND} ..."
        )
    chunks = 1 if rate is None else _whole_chunks(CacheSpec.of(config), codec, count)
    if not chunks:
        needed = frames_in(CacheSpec.of(config).chunks.length(0), codec)
        raise UserError(f"{path} has {count} frames, a first chunk {needed}; use a longer clip, or an image")
    return StartClip(path=path, sha256=_hash(path), chunks=chunks)


def _check_size(path: Path, found: tuple[int, int], size: tuple[int, int]) -> None:
    """Refuse pictures that are not the model's, nor the same enlarged, as videos of small models are."""
    times = found[0] // size[0]
    if not times or found != (size[0] * times, size[1] * times):
        raise UserError(
            f"{path} is {found[1]} x {found[0]}, the model's pictures are {size[1]} x {size[0]}; scale it "
            f"first: ffmpeg -i {path} -vf scale={size[1]}:{size[0]} ..."
        )


def _whole_chunks(spec: CacheSpec, codec: Codec, frames: int) -> int:
    """Chunks that `frames` pixel frames fill: as many as the window holds, or one if it holds none."""
    chunks = 0
    held = max(spec.slots, spec.chunks.first)
    while (following := spec.chunks.start(chunks + 1)) <= held and frames_in(following, codec) <= frames:
        chunks += 1
    return chunks


def _look_at(path: Path) -> tuple[tuple[int, int], float | None, int]:
    """Height and width, frames per second (None of an image), and how many frames there are."""
    import av

    if path.is_dir():
        pictures = _pictures_of(path)
        return _look_at(pictures[0])[0], float(FRAMES_PER_SECOND), len(pictures)
    try:
        with opened_video(path, mend=MEND) as file:
            stream = file.streams.video[0]
            size = stream.height, stream.width
            if path.suffix.lower() in IMAGES:
                return size, None, 1
            rate = float(stream.average_rate or 0)
            return size, rate, sum(packet.size > 0 for packet in file.demux(stream))
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise _unreadable(path, error) from error


def _last_frames(path: Path, count: int) -> Frames:
    """The last `count` frames [count, H, W, 3]; an image as often."""
    if path.is_dir():
        frames = [next(_decoded(picture)) for picture in _pictures_of(path)[-count:]]
    else:
        frames = list(deque(_decoded(path), maxlen=count))
    if path.suffix.lower() in IMAGES and not path.is_dir():
        frames *= count
    if len(frames) != count:
        raise UserError(f"{path} has {len(frames)} frames that can be decoded, {count} are needed")
    return np.stack(frames)


def _decoded(path: Path) -> Iterator[Frames]:
    """The frames of a video, in order."""
    import av

    try:
        with opened_video(path, mend=MEND) as file:
            for frame in file.decode(video=0):
                yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise _unreadable(path, error) from error


def _pictures_of(folder: Path) -> list[Path]:
    pictures = sorted(folder.glob("*.png"))
    if not pictures:
        raise UserError(f"{folder} holds no .png pictures to start from")
    return pictures


def _shrunk(pixels: Tensor, times: int) -> Tensor:
    """Frames [n, H, W, 3] uint8 to [n, 3, H / times, W / times] in [0, 1], by means of cells."""
    video = pixels.permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.avg_pool2d(video, times) if times > 1 else video


def _hash(path: Path) -> str:
    """Hash of a file's bytes, or of all pictures of a folder."""
    if path.is_dir():
        each = [hash_file(picture) for picture in _pictures_of(path)]
        return hashlib.sha256(" ".join(each).encode()).hexdigest()
    if not path.is_file():
        raise UserError(f"there is no {path} to start from; give a video, an image or a folder of pictures")
    return hash_file(path)


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    return UserError(f"cannot read {path} ({reason}); {MEND}")
