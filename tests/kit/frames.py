"""Every kind of window, and what it holds: the first frames for ever, of the others the newest."""

from hypothesis import strategies as st

from vmla.cache import CacheLayout


def layouts(*, entry_width, layers):
    """Rings shorter than a chunk, no ring at all, sinks longer than a chunk and no multiple of it."""
    return st.builds(
        CacheLayout,
        sink=st.integers(0, 7),
        history=st.integers(0, 9),
        chunk=st.integers(1, 5),
        tokens_per_frame=st.integers(1, 3),
        entry_width=st.just(entry_width),
        layers=st.just(layers),
    )


class FrameList:
    """A plain list of the frames that a window holds."""

    def __init__(self, layout):
        self.layout, self.sink, self.recent = layout, [], []

    def add(self, number):
        for frame in range(number * self.layout.chunk, (number + 1) * self.layout.chunk):
            (self.sink if len(self.sink) < self.layout.sink else self.recent).append(frame)
        self.recent = self.recent[len(self.recent) - min(len(self.recent), self.layout.history) :]

    def frames(self):
        return self.sink + self.recent
