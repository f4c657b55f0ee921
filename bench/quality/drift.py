"""How a video changes as it grows longer: curves of its pictures, of chunk times and of memory.

Pictures are measured on the finished file, as its viewers get it, in windows of four seconds. Only the grades
depend on the kind of video: they are formulas for the world of sprites.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmla.config import FRAMES_PER_SECOND
from vmla.world.caption import Reading, read
from vmla.world.grader.grade import QUESTIONS, grade, look
from vmla.world.worlds import FIRST, World

WINDOW = 64
"""Frames of a window, four seconds of them."""
LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in luma (ITU-R BT.709)."""
MEASURES = ("saturation", "luma", "sharpness", "motion")


def luma(frames: Tensor) -> Tensor:
    """Luma [n, H, W] of frames [n, 3, H, W] in [0, 1]."""
    return torch.einsum("nchw,c->nhw", frames, torch.tensor(LUMA, dtype=frames.dtype))


def measures(frames: Tensor) -> dict[str, float]:
    """Means over a window [n, 3, H, W] in [0, 1].

    Saturation is that of HSV, (max - min) / max; sharpness the length of the luma's gradient per pixel;
    motion the change of luma from frame to frame.
    """
    most, least = frames.amax(dim=1), frames.amin(dim=1)
    light = luma(frames)
    down, across = light.diff(dim=1)[:, :, :-1], light.diff(dim=2)[:, :-1]
    return {
        "saturation": float(((most - least) / most.clamp(min=1e-6)).mean()),
        "luma": float(light.mean()),
        "sharpness": float((down.square() + across.square()).sqrt().mean()),
        "motion": float(light.diff(dim=0).abs().mean()) if len(frames) > 1 else 0.0,
    }


def windows(frames: Iterable[Tensor], size: int = WINDOW) -> Iterator[Tensor]:
    """Whole windows [size, 3, H, W] of a stream of frames [3, H, W], one after the other."""
    kept: list[Tensor] = []
    for frame in frames:
        kept.append(frame)
        if len(kept) == size:
            yield torch.stack(kept)
            kept.clear()


def curve(frames: Iterable[Tensor], reading: Reading | None, world: World = FIRST) -> list[dict[str, Any]]:
    """A point for each window: the second at which it ends, its measures and, for a prompt, its grades."""
    points: list[dict[str, Any]] = []
    for number, window in enumerate(windows(frames)):
        second = (number + 1) * WINDOW / FRAMES_PER_SECOND
        point: dict[str, Any] = {"second": second, **measures(window)}
        if reading is not None:
            given = grade(look(window, world), reading)
            point["grades"] = {name: bool(getattr(given, name)) for name in (*QUESTIONS, "all")}
        points.append(point)
    return points


def drift(points: list[dict[str, Any]]) -> dict[str, float]:
    """The relative change of each measure's mean from the first quarter of the video to the last."""
    quarter = max(1, len(points) // 4)
    change: dict[str, float] = {}
    for name in MEASURES if points else ():
        early, late = (sum(p[name] for p in part) / quarter for part in (points[:quarter], points[-quarter:]))
        change[name] = round(late / early - 1, 4) if early else 0.0
    return change


def frames_of(path: Path, scale: int) -> Iterator[Tensor]:
    """A video file's frames [3, H, W] in [0, 1], each pixel the mean of `scale` x `scale` of the file's."""
    import av

    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            pixels = torch.from_numpy(np.ascontiguousarray(frame.to_ndarray(format="rgb24")))
            small = pixels.unflatten(0, (-1, scale)).unflatten(2, (-1, scale)).float().mean(dim=(1, 3))
            yield small.permute(2, 0, 1) / 255


def drift_of(path: Path, scale: int, *, prompt: str | None, world: World = FIRST) -> list[dict[str, Any]]:
    """The curve of a video file; graded where `prompt` is one that `world` understands."""
    reading = None if prompt is None else read(prompt)
    return curve(frames_of(path, scale), reading, world)


def chunk_curve(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Chunk time and memory against the second of the video that each chunk reaches.

    Args:
        events: those that `vmla-run --events` writes for each chunk.
    """
    ends = [0.0, *(event["seconds"] for event in events)]
    return [
        {
            "second": event["frames"] / FRAMES_PER_SECOND,
            "chunk_seconds": round(end - begin, 5),
            "denoise_seconds": round(event["denoise_seconds"], 5),
            "decode_seconds": round(event["decode_seconds"], 5),
            "resident_bytes": event["resident_bytes"],
        }
        for event, begin, end in zip(events, ends, ends[1:], strict=False)
    ]
