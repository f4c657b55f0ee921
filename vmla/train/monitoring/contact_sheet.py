"""Frames of some clips side by side in one PNG: a row for each clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from plugins.atomic_files import atomic_write_bytes

COLUMNS = 8
"""Pictures of a row, evenly spread over the clip."""


def strip(frames: Tensor) -> Tensor:
    """Frames [B, n, 3, H, W] in [0, 1] to one picture [B * H, columns * W, 3] uint8."""
    count = frames.shape[1]
    chosen = torch.linspace(0, count - 1, min(COLUMNS, count)).round().long()
    rows = frames[:, chosen].permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return (rows.clamp(0, 1) * 255).round().to(torch.uint8)


def write_strip(frames: Tensor, path: Path) -> None:
    """Write frames [B, n, 3, H, W] in [0, 1] to the PNG at `path`, which appears whole."""
    import av

    picture = strip(frames)
    codec = av.CodecContext.create("png", "w")
    codec.height, codec.width, codec.pix_fmt = *picture.shape[:2], "rgb24"
    codec.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
    packets = [*codec.encode(frame), *codec.encode(None)]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, b"".join(bytes(packet) for packet in packets))
