"""Shared by the codecs of 2-D convolutions: time folded into the batch, one frame remembered per block.

Every convolution sees single frames. The only way from one frame to the next is a layer that sees
its own input of the frame before, so a stream needs to remember one small tensor for each of these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PreviousFrameLayer(nn.Module):
    """A layer over a frame's features [n, width, h, w] and, of the same shape, the predecessor's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class TimePool(nn.Module):
    """Joins `times` frames to one by a learned mix of their channels."""

    def __init__(self, width: int, times: int = 2, *, bias: bool = True) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(times * width, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [times * n, width, h, w], those of one result in a row."""
        return self.conv(x.reshape(x.shape[0] // self.times, -1, *x.shape[2:]))


class TimeGrow(nn.Module):
    """Grows one frame into `times` frames, each from channels of its own."""

    def __init__(self, width: int, times: int = 2, *, bias: bool = True) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(width, times * width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, width, h, w] to [times * n, width, h, w]."""
        return self.conv(x).reshape(self.times * x.shape[0], *x.shape[1:])


class NearestUpsample(nn.Module):
    """Nearest-neighbour upsampling: each cell becomes 2 x 2 of the same value."""

    factor = 2

    def forward(self, x: Tensor) -> Tensor:
        """x [n, width, h, w] to [n, width, 2 h, 2 w]."""
        return F.interpolate(x, scale_factor=float(self.factor), mode="nearest")


class FrameStream(nn.Sequential):
    """Layers over frames folded into the batch; those that see the frame before carry their last input."""

    def run(self, x: Tensor, batch: int, state: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """x [batch * frames, ...], batch-major; returns the result and the state for the next call."""
        left: list[Tensor] = []
        for layer in self:
            if isinstance(layer, PreviousFrameLayer):
                frames = x.reshape(batch, -1, *x.shape[1:])
                first = torch.zeros_like(frames[:, :1]) if state is None else state[len(left)]
                before = torch.cat([first, frames[:, :-1]], dim=1)
                left.append(frames[:, -1:].clone())  # a view would keep all frames in memory
                x = layer(x, before.reshape(x.shape))
            else:
                x = layer(x)
        return x, left

    def remembered(self, cells: int) -> int:
        """Numbers in the state of one video whose first layer sees `cells` cells."""
        count = 0
        for layer in self:
            if isinstance(layer, nn.PixelShuffle):
                cells *= layer.upscale_factor**2
            elif isinstance(layer, NearestUpsample):
                cells *= layer.factor**2
            elif isinstance(layer, PreviousFrameLayer):
                count += layer.width * cells
        return count


def fold(video: Tensor) -> Tensor:
    """[B, frames, c, H, W] to channels-last [B * frames, c, H, W]."""
    return video.flatten(0, 1).contiguous(memory_format=torch.channels_last)
