"""Several videos at once on one device: one engine and one copy of the weights, slots for each.

Chunk by chunk, the stream whose viewer would run dry first goes on (earliest deadline first). As many
streams are let in as the memory plan says will fit. One that fails ends alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from types import TracebackType

from runtime.film import DecodeError, Film
from runtime.job import Job
from runtime.rollout import Rollout
from runtime.sinks import FrameSink
from runtime.telemetry import NoTelemetry, Telemetry
from runtime.writer import FrameWriter
from vmla.errors import UserError


class Stream:
    """One of the videos: its film, and what is to be closed at its end."""

    def __init__(self, number: int, film: Film, writer: FrameWriter) -> None:
        self.number, self.film, self.writer = number, film, writer
        self.failure: Exception | None = None
        """What ended it early: of its sink, its decoder or its prompt."""
        self._lanes = ExitStack()
        self._lanes.enter_context(writer)
        self._lanes.enter_context(film.decoding)

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.failure is not None or self.film.finished

    def step(self) -> None:
        """Make its next chunk."""
        with self._alone():
            self.film.step()

    def close(self) -> None:
        """Let all that was made reach the sink."""
        with self._alone():
            self._lanes.close()

    def _alone(self) -> _Alone:
        return _Alone(self)


class _Alone:
    """Keeps to one stream what goes wrong with its edges."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Remember the first error of an edge."""
        if not isinstance(error, OSError | DecodeError | UserError):
            return False
        self._stream.failure = self._stream.failure or error
        return True


class Streams:
    """A context manager that holds the engine and all videos that are being made with it."""

    def __init__(self, job: Job, *, memory: int, clock: Callable[[], float] = perf_counter) -> None:
        """Load the engine of `job`; `memory` bytes are for weights and streams together."""
        self._clock = clock
        self._job, self._memory, self.plan = job, memory, job.plan()
        self.capacity = self.plan.streams_in(memory)
        self._engine, self._decoder = job.engine(), job.decoding.decoders(job.device)
        self._open: list[Stream] = []
        self._admitted = 0

    def __enter__(self) -> Streams:
        """The streams."""
        return self

    def admit(
        self, job: Job, sink: FrameSink, *, frames: int, telemetry: Telemetry | None = None
    ) -> Stream:
        """Begin the video `job` of the same checkpoint and sampler; its frames go to `sink`.

        Raises:
            UserError: if it does not fit beside those that are being made, or is of another kind.
        """
        same = ("checkpoint", "sampler", "device", "dtype", "engine_folder", "decoder_file")
        for name in same:
            if getattr(job, name) != getattr(self._job, name):
                raise UserError(f"this stream has another {name} than the first; run it on its own")
        if len(self._open) >= self.capacity:
            more = self.plan.stream_bytes
            raise UserError(
                f"{self._memory:,} bytes hold {self.capacity} streams and no more; "
                f"end one, or allow {more:,} bytes for another"
            )
        rollout = Rollout(self._engine, job.prompts, job.sampler, seeds=[job.seed])
        writer, decoder = FrameWriter(sink), self._decoder()
        told = telemetry or NoTelemetry()
        film = Film(job, rollout, decoder, writer, told, frames=frames, now=self._clock())
        stream = Stream(self._admitted, film, writer)
        self._admitted += 1
        self._open.append(stream)
        return stream

    def step(self) -> Stream | None:
        """Make a chunk of the stream that is due first, and tell which; None if there is none to make."""
        if not self._open:
            return None
        stream = min(self._open, key=lambda one: (one.film.deadline, one.number))
        stream.step()
        if stream.over:
            self._open.remove(stream)
            stream.close()
        return stream

    def run(self) -> None:
        """Make all videos that were let in."""
        while self.step() is not None:
            pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what is still being made, and close the engine."""
        for stream in self._open:
            stream.close()
        self._open = []
        self._engine.close()
