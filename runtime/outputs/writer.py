"""Hands frames to a sink on a thread of its own, through a queue that holds only a few chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from runtime.device.cuda_graphs import to_host
from runtime.device.worker_thread import CAPACITY, WorkerThread
from runtime.outputs import Frames, FrameSink, Mark


class FrameWriter(WorkerThread):
    """A context manager around a sink, which it closes at the end."""

    def __init__(self, sink: FrameSink, *, capacity: int = CAPACITY) -> None:
        super().__init__("frame-writer", capacity=capacity, finish=sink.close)
        self.sink, self._dropping = sink, False
        self.written = 0
        """Frames that the sink has taken."""

    def __enter__(self) -> FrameWriter:
        """Start the thread; leaving the block closes the sink once the queue is empty."""
        super().__enter__()
        return self

    def write(self, frames: Frames) -> None:
        """Queue [n, H, W, 3] frames; a failure to store earlier ones is raised here."""
        self.put(partial(self._take, frames))

    def mark(self, tell: Callable[[Mark], None]) -> None:
        """Call `tell` with the sink's mark once it has taken all frames written so far."""
        self.put(lambda: tell(self.sink.mark()))

    def drop(self) -> None:
        """Drop the frames that wait, and all later ones."""
        self._dropping = True

    def _take(self, frames: Frames) -> None:
        if self._dropping:
            return
        self.sink.write(frames)
        self.written += len(frames)


def to_pixels(frames: Tensor) -> Frames:
    """One video's frames [n, 3, H, W] in [0, 1] to [n, H, W, 3] uint8 in main memory."""
    scaled = (frames * 255).round().to(torch.uint8)
    pixels: Frames = to_host(scaled.permute(0, 2, 3, 1).contiguous()).numpy()
    return pixels
