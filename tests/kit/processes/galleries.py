"""Sinks that keep what they get, or make the video wait."""

import threading

import numpy as np

from runtime.outputs import NullSink


class Gallery(NullSink):
    """Keeps every frame."""

    def __init__(self):
        super().__init__()
        self.frames = []

    def write(self, frames):
        super().write(frames)
        self.frames.append(frames)

    def pixels(self):
        """All frames so far: [n, H, W, 3]."""
        return np.concatenate(self.frames) if self.frames else np.empty((0, 64, 64, 3), np.uint8)


class Stalling(NullSink):
    """Takes nothing until the gate is opened."""

    def __init__(self):
        super().__init__()
        self.gate, self.waiting = threading.Event(), threading.Event()

    def write(self, frames):
        self.waiting.set()
        assert self.gate.wait(600)
        super().write(frames)
