"""Video files to frames of a wanted size and rate, through PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plugins.documents.regular_file import read_text
from plugins.documents.video_file import opened_video
from plugins.errors import UserError
from vmla.config import FRAMES_PER_SECOND


class Unusable(Exception):  # noqa: N818 - a report, handled by the encoder
    """A video that cannot be used, and why."""


def read_video(path: Path, *, frames: int, height: int, width: int) -> Tensor:
    """The first `frames` frames at 16 a second, [frames, 3, height, width] float32 in [0, 1].

    Pictures are scaled to cover the wanted size and cut to it about their centre. Each wanted time takes
    the last picture shown by then.

    Raises:
        Unusable: if the file cannot be decoded or is too short.
    """
    import av

    shown: list[Tensor] = []
    try:
        for picture, until in _pictures(path):
            due = math.ceil(until * FRAMES_PER_SECOND - 1e-6) - len(shown)
            if due > 0:
                image = fitted(torch.from_numpy(picture.to_ndarray(format="rgb24")), height, width)
                shown += [image] * due
            if len(shown) >= frames:
                return torch.stack(shown[:frames])
    except (av.error.FFmpegError, UserError, IndexError, ValueError) as error:
        raise Unusable(f"cannot be decoded ({error})") from error
    raise Unusable(f"has {len(shown)} frames at {FRAMES_PER_SECOND} a second, {frames} are needed")


def _pictures(path: Path) -> Iterator[tuple[Any, float]]:
    """Pictures of a video in order, each with the second at which the next one is shown."""
    with opened_video(path) as file:
        rate = float(file.streams.video[0].average_rate or FRAMES_PER_SECOND)
        last, start = None, 0.0
        for picture in file.decode(video=0):
            start = float(picture.time or 0.0)
            if last is not None:
                yield last, start
            last = picture
        if last is not None:
            yield last, start + 1 / rate


def fitted(image: Tensor, height: int, width: int) -> Tensor:
    """An image [h, w, 3] uint8 to [3, height, width] in [0, 1], scaled to cover and cut about its centre."""
    rows, columns, _ = image.shape
    scale = max(height / rows, width / columns)
    size = max(height, round(rows * scale)), max(width, round(columns * scale))
    scaled = F.interpolate(
        image.permute(2, 0, 1)[None].float() / 255, size, mode="bilinear", antialias=True, align_corners=False
    )[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, top : top + height, left : left + width].clamp(0, 1)


def captioned(folder: Path) -> list[tuple[Path, str]]:
    """Videos of `folder` and its folders with their captions, a text file of the same name beside each.

    Raises:
        UserError: if there are none, or a caption has no video.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give one with videos and a .txt caption beside each")
    videos = {path.with_suffix(""): path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES}
    captions = {path.with_suffix(""): path for path in sorted(folder.rglob("*.txt"))}
    if lonely := sorted(captions.keys() - videos.keys()):
        raise UserError(f"{captions[lonely[0]]} is a caption without a video; remove it or add its video")
    if not videos:
        raise UserError(f"{folder} holds no videos ({', '.join(SUFFIXES)})")
    return [(path, _caption(captions.get(stem))) for stem, path in videos.items()]


def _caption(path: Path | None) -> str:
    return "" if path is None else " ".join(text_of(path).split())


def text_of(path: Path) -> str:
    """The text in a file.

    Raises:
        UserError: if it is not a file of UTF-8 text.
    """
    return read_text(path, mend="write it again")


SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi")
