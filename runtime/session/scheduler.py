"""Several videos at once on one device: one engine and one copy of the weights, slots for each.

Chunk by chunk, the stream whose viewer would run dry first goes on (earliest deadline first). As many
streams are let in as the memory plan says will fit; they take turns at what needs memory for a moment: passes
and decoding. One that fails ends alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from types import TracebackType

from plugins.errors import UserError
from runtime.device.cuda_graphs import SideStream, graph_pool
from runtime.outputs import FrameSink
from runtime.outputs.writer import FrameWriter
from runtime.planning.request import Job
from runtime.resume.autosave import Keeper
from runtime.rollout.rollout import Rollout
from runtime.session.pipeline import DecodeError, Film
from runtime.telemetry.events import NoTelemetry, Telemetry


class Stream:
    """One of the videos: its film, and what is to be closed at its end."""

    def __init__(self, number: int, film: Film) -> None:
        self.number, self.film = number, film
        self.failure: Exception | None = None
        """What ended it early: of its sink, its decoder, its prompt or its state on disk."""
        self.ended = 0.0
        """When the sink had all that was made, on the clock of `time.perf_counter`."""
        self._lanes = ExitStack()
        for lane in (film.keeper, film.writer, film.decoding):
            if lane is not None:
                self._lanes.enter_context(lane)

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.failure is not None or self.film.finished

    def step(self) -> None:
        """Make its next chunk."""
        with self._alone():
            self.film.step()

    def close(self, *, keep: bool = True) -> None:
        """Let all that was made reach the sink; of an unfinished video, `keep` the state on disk."""
        with self._alone():
            if keep and self.failure is None:
                self.film.leave()
        with self._alone():
            self._lanes.close()
        self.ended = perf_counter()

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
        self._engine, self._decoder = job.engine(), job.decoding.decoders(job.device, job.cores.decoder)
        self._side, self._pool = SideStream(job.device), graph_pool(job.device)
        self._open: list[Stream] = []
        self._admitted = 0

    def __enter__(self) -> Streams:
        """The streams."""
        return self

    def admit(
        self, job: Job, sink: FrameSink, *, frames: int, telemetry: Telemetry | None = None,
        keeper: Keeper | None = None,
    ) -> Stream:  # fmt: skip
        """Begin the video `job` of the same checkpoint and sampler; its frames go to `sink`.

        What it remembers goes to disk through `keeper`, on the way and at an early end.

        Raises:
            UserError: if it does not fit beside those that are being made, or is of another kind.
        """
        same = ("checkpoint", "sampler", "device", "dtype", "engine_folder", "decoder_file", "threads")
        for name in same:
            if getattr(job, name) != getattr(self._job, name):
                raise UserError(f"this stream has another {name} than the first; run it on its own")
        if len(self._open) >= self.capacity:
            more = self.plan.stream_bytes
            raise UserError(
                f"{self._memory:,} bytes hold {self.capacity} streams and no more; "
                f"end one, or allow {more:,} bytes for another"
            )
        rollout = Rollout(
            self._engine, job.prompts, job.sampler,
            seeds=[job.seed], threads=job.cores.denoiser, pool=self._pool,
        )  # fmt: skip
        writer, decoder = FrameWriter(sink), self._decoder()
        told = telemetry or NoTelemetry()
        film = Film(
            job, rollout, decoder, writer, told,
            frames=frames, now=self._clock(), keeper=keeper, side=self._side,
        )  # fmt: skip
        stream = Stream(self._admitted, film)
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
            stream.close(keep=error is None)
        self._open = []
        self._engine.close()
