"""Every kind of window, and what it holds: the first frames for ever, of the others the newest."""

from hypothesis import strategies as st

from vmla.cache import CacheSpec


def specs(*, entry_width, layers):
    """Short rings and none, sinks longer than a chunk and no multiple of it, short first chunks."""
    return st.builds(
        lambda first, chunk, **sizes: CacheSpec(chunk=chunk, first_chunk=min(first, chunk), **sizes),
        first=st.integers(0, 4),
        sink=st.integers(0, 7),
        history=st.integers(0, 9),
        chunk=st.integers(1, 5),
        tokens_per_frame=st.integers(1, 3),
        entry_width=st.just(entry_width),
        layers=st.just(layers),
    )


def frames_of(sizes, number):
    """The latent frames of chunk `number`, for a cache's spec or a model's configuration."""
    first = sizes.first_chunk or sizes.chunk
    if number == 0:
        return list(range(first))
    return [first + (number - 1) * sizes.chunk + offset for offset in range(sizes.chunk)]


class FrameList:
    """A plain list of the frames that a window holds."""

    def __init__(self, spec):
        self.cache_spec, self.sink, self.recent = spec, [], []

    def add(self, number):
        for frame in frames_of(self.cache_spec, number):
            (self.sink if len(self.sink) < self.cache_spec.sink else self.recent).append(frame)
        self.recent = self.recent[len(self.recent) - min(len(self.recent), self.cache_spec.history) :]

    def frames(self):
        return self.sink + self.recent
