"""One video from its latents to its sink: denoising, decoding and encoding at the same time.

The rollout runs on the thread that calls, the decoder and the sink on one each, with short queues
between them: who is faster waits for who is slower only when a queue is full, and that is counted.
"""

from __future__ import annotations

import threading
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from runtime.device.cuda_graphs import SideStream, Stamp, between, stamp
from runtime.device.memory import resident_bytes
from runtime.device.worker_thread import Lane
from runtime.outputs.writer import FrameWriter
from runtime.planning.request import Job, to_pixels
from runtime.resume.autosave import Keeper
from runtime.resume.state import Snapshot, State
from runtime.rollout.decoding import Decoder
from runtime.rollout.rollout import Rollout
from runtime.telemetry.events import ChunkReport, Telemetry
from vmla.config import FRAMES_PER_SECOND


class DecodeError(Exception):
    """The decoder gave up; says at which chunk, and why."""


class Film:
    """A video in the making."""

    def __init__(
        self, job: Job, rollout: Rollout, decoder: Decoder, writer: FrameWriter, telemetry: Telemetry,
        *, frames: int, earlier: int = 0, now: float | None = None, keeper: Keeper | None = None,
        side: SideStream | None = None,
    ) -> None:  # fmt: skip
        """Make `frames` frames, of which `earlier` are there already, for one who watches from `now` on.

        They are decoded at `side`, where those of other films may be too.
        """
        self.job, self.writer, self.keeper, self.earlier = job, writer, keeper, earlier
        self._rollout, self._decoder, self._telemetry, self._frames = rollout, decoder, telemetry, frames
        self._side = side or SideStream(job.device)
        self.decoding = Lane("decoder")
        self.done = earlier
        """Frames handed to the writer."""
        self.made = self._first = rollout.number
        """Chunks denoised."""
        self.first_frame_seconds = 0.0
        self._began, self._watched = 0.0, perf_counter() if now is None else now
        self._clean: tuple[Stamp, Stamp] | None = None
        self._launched = rollout.launches
        job.prompts.listen(telemetry.prompt)

    @property
    def finished(self) -> bool:
        """Whether all chunks are denoised."""
        return self.made >= self.job.chunks

    @property
    def deadline(self) -> float:
        """When someone who watches from the beginning on has seen all that is made."""
        # Without frames there is nobody to watch: whoever has made fewer chunks goes on.
        chunk_seconds = (self._frames or self.job.chunks) / self.job.chunks / FRAMES_PER_SECOND
        return self._watched + (self.made - self._first) * chunk_seconds

    @property
    def complete(self) -> bool:
        """Whether all chunks are made and the writer has been handed all frames."""
        return self.finished and self.done >= self._frames

    def run(self, stop: threading.Event) -> None:
        """Make the chunks that are missing; `stop` ends it after the one under way."""
        while not self.finished and not stop.is_set():
            self.step()
        self.leave()

    def leave(self) -> None:
        """Keep the state of what is not finished."""
        if self.keeper is not None and not self.finished:
            self._save(self.keeper)

    def step(self) -> None:
        """Make one chunk and hand it on, then its clean pass, if another follows; first the state, if due."""
        if self.keeper is not None and self.keeper.due():
            self._save(self.keeper)
        rollout, device = self._rollout, self.job.device
        self._began = self._began or perf_counter()
        began = stamp(device)
        latents = rollout.denoise()
        ready = stamp(device)
        assert rollout.change is not None
        prompt = rollout.change.prompts[0]
        launches, self._launched = self._launched, rollout.launches
        # Before the first chunk there is no graph that could have been replayed.
        since = None if self._launched is None else self._launched - (launches or 0)
        self.decoding.put(partial(self._show, self.made, latents, prompt, (began, ready), self._clean, since))
        self.made += 1
        if not self.finished:
            before = stamp(device)
            rollout.commit()
            self._clean = before, stamp(device)

    def _show(
        self, number: int, latents: Tensor, prompt: str, denoise: tuple[Stamp, Stamp],
        clean: tuple[Stamp, Stamp] | None, launches: int | None,
    ) -> None:  # fmt: skip
        """Decode a chunk and hand it to the writer."""
        began = perf_counter()
        try:
            with self._side.after(denoise[1], latents):
                pixels = to_pixels(self._decoder.decode(latents)[0])[: self._frames - self.done]
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DecodeError(f"decoding chunk {number} failed: {reason}") from error
        decoded = perf_counter()
        self.writer.write(pixels)
        self.done += len(pixels)
        seconds = perf_counter() - self._began
        self.first_frame_seconds = self.first_frame_seconds or seconds
        self._telemetry.chunk(
            ChunkReport(
                chunk=number,
                chunks=self.job.chunks,
                frames=self.done,
                seconds=seconds,
                denoise_seconds=between(*denoise),
                clean_seconds=between(*clean) if clean else 0.0,
                decode_seconds=decoded - began,
                encode_seconds=self.writer.busy_seconds,
                queue_depth=self.writer.depth,
                decode_queue_depth=self.decoding.depth,
                stalled_seconds=self.writer.stalled_seconds + self.decoding.stalled_seconds,
                stalls=self.writer.stalls + self.decoding.stalls,
                resident_bytes=resident_bytes(),
                device_bytes=torch.cuda.memory_allocated() if self.job.device.type == "cuda" else 0,
                launches=launches,
                frames_per_second=FRAMES_PER_SECOND,
                prompt=prompt,
                earlier=self.earlier,
            )
        )

    def _save(self, keeper: Keeper) -> None:
        """Send the rollout's state after the frames on their way; it is kept once these are in the sink."""
        snapshot = Snapshot.of(self._rollout)

        def at_decoder() -> None:
            memory = self._decoder.memory
            self.writer.mark(lambda mark: keeper.keep(State(snapshot=snapshot, memory=memory, mark=mark)))

        self.decoding.put(at_decoder)
