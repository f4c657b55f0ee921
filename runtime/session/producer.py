"""One video from its latents to its sink: denoising, decoding and encoding at the same time.

The rollout runs on the calling thread, the decoder and the sink on a thread each, with short queues between
them. The faster of two threads waits for the slower one only when the queue between them is full, and the
wait is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from runtime.device.cuda_graphs import SideStream, Stamp, between, stamp
from runtime.device.memory import resident_bytes
from runtime.device.worker_thread import WorkerThread
from runtime.outputs import FrameSink
from runtime.outputs.writer import FrameWriter, to_pixels
from runtime.planning.job import Job
from runtime.prompts.sources import LivePrompts
from runtime.resume.autosave import Autosave
from runtime.resume.sidecar import describe_prompts
from runtime.resume.state import Snapshot, State
from runtime.rollout.decoding import Decoder
from runtime.rollout.rollout import Rollout
from runtime.session.pacing import Pacing
from runtime.telemetry.events import ChunkReport, NoTelemetry, Telemetry
from vmla.config import FRAMES_PER_SECOND


class DecodeError(Exception):
    """Decoding failed; the message names the chunk and the reason."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A request to a session: the video to make, its sink, and its listeners."""

    job: Job
    sink: FrameSink
    """Takes the frames; with a `state`, it must stand at the state's mark."""
    frames: int | None
    """Frames of the whole video; None for an endless one."""
    telemetry: Telemetry = NoTelemetry()
    autosave: Autosave | None = None
    """Saves the state as the video is made, and when it ends early."""
    state: State | None = None
    """Where to resume; None begins a new video."""
    latents: Callable[[Tensor], object] | None = None
    """Called with the clean latents [1, z, F, h, w] of each chunk, before its frames are made."""
    pacing: Pacing | None = None
    """When its chunks are wanted; without one, as soon as the sink takes them."""


class VideoProducer:
    """Makes one video: a rollout, and the threads that decode, write and save its chunks."""

    def __init__(
        self, asked: Admission, rollout: Rollout, decoder: Decoder, *, side: SideStream, chunk_seconds: float
    ) -> None:
        """Begin with the first chunk, or resume from the state in `asked`.

        Args:
            asked: the video, its sink and its listeners.
            rollout, decoder: new ones, used by no other video.
            side: the CUDA stream on which the chunks of all videos are decoded.
            chunk_seconds: how long a chunk lasts when it is played.
        """
        self.job, self.autosave, self.pacing, self.earlier = asked.job, asked.autosave, asked.pacing, 0
        self._rollout, self._decoder, self._telemetry = rollout, decoder, asked.telemetry
        self._latents = asked.latents
        self._frames, self._chunks = asked.frames, None if asked.frames is None else asked.job.chunks
        self._side, self._chunk_seconds = side, chunk_seconds
        self.writer, self.decoding = FrameWriter(asked.sink), WorkerThread("decoder")
        self._threads, self._dropped = ExitStack(), False
        if asked.state is not None:
            self._continue_from(asked.state)
        self.done = self.earlier
        """Frames handed to the writer."""
        self.made = self._first = rollout.number
        """Chunks denoised so far, those before the state included."""
        self.first_frame_seconds = 0.0
        self._began = 0.0
        self._clean: tuple[Stamp, Stamp] | None = None
        self._launched = rollout.launches
        asked.job.prompts.listen(asked.telemetry.prompt)

    def _continue_from(self, state: State) -> None:
        self.earlier = state.mark["frames"]
        if self._chunks is not None and state.snapshot.number >= self._chunks:
            # All chunks are made: only the writer may still have to finish, and no latents are needed for it.
            self._rollout.number = state.snapshot.number
            return
        state.snapshot.restore(self._rollout)
        self._decoder.state = state.decoder_state_on(self.job.device)

    def start(self, on_failure: Callable[[], None]) -> None:
        """Start the threads; each calls `on_failure` when something fails on it."""
        for thread in (self.autosave, self.writer, self.decoding):
            if thread is not None:
                thread.on_failure = on_failure
                self._threads.enter_context(thread)

    def close(self) -> None:
        """Let every frame made so far reach the sink, then free the memory of the rollout.

        Raises:
            Exception: whatever has failed on one of the threads.
        """
        try:
            self._threads.close()
        finally:
            del self._rollout, self._decoder

    def drop(self) -> None:
        """Discard chunks that are not written yet, and write nothing more."""
        self._dropped = True
        self.writer.drop()

    def check(self) -> None:
        """Raise the failure of one of the threads so far, if any."""
        for thread in (self.decoding, self.writer, self.autosave):
            if thread is not None:
                thread.check()

    @property
    def finished(self) -> bool:
        """Whether all chunks are denoised."""
        return self._chunks is not None and self.made >= self._chunks

    @property
    def complete(self) -> bool:
        """Whether all chunks are made and the writer has all frames."""
        return self.finished and (self._frames is None or self.done >= self._frames)

    @property
    def blocked(self) -> bool:
        """Whether the next chunk is not wanted yet, or would wait for a sink that takes nothing."""
        unwanted = self.pacing is not None and not self.pacing.wanted(self.made)
        return unwanted or (self.decoding.full and self.writer.full)

    @property
    def ahead_seconds(self) -> float:
        """Seconds of video in the chunks that this producer has made."""
        return (self.made - self._first) * self._chunk_seconds

    def step(self) -> None:
        """Save the state if due, make a chunk and pass it on, then run its clean pass if another follows."""
        if self.autosave is not None and self.autosave.due():
            self.save(self.autosave.save)
        rollout, device = self._rollout, self.job.device
        self._began = self._began or perf_counter()
        began = stamp(device)
        latents = rollout.denoise()
        ready = stamp(device)
        if self._latents is not None:
            self._latents(latents)
        assert rollout.change is not None
        prompt = rollout.change.prompts[0]
        before, after = self._launched, rollout.launches
        # The first chunk and its clean pass are launched one by one, and not counted.
        since = None if before is None or after is None else after - before
        self._launched = after
        self.decoding.put(partial(self._show, self.made, latents, prompt, (began, ready), self._clean, since))
        self.made += 1
        if not self.finished:
            clean = stamp(device)
            rollout.update_cache()
            self._clean = clean, stamp(device)

    def save(self, tell: Callable[[State], None]) -> None:
        """Call `tell` with the state between two chunks, once all frames before it are in the sink.

        The request follows the frames through the queues of both threads, and never waits for a place there.
        """
        rollout = Snapshot.of(self._rollout)
        snapshot = replace(rollout, number=self.made)
        video = describe_prompts(self.job.prompts.known_before(self.made))
        if isinstance(self.job.prompts, LivePrompts):
            video["live"] = True

        def at_decoder() -> None:
            decoder_state = self._decoder.state
            self.writer.mark(
                lambda mark: tell(
                    State(snapshot=snapshot, decoder_state=decoder_state, mark=mark, video=video)
                )
            )

        self.decoding.put(at_decoder, even_if_full=True)

    def _show(
        self, number: int, latents: Tensor, prompt: str, denoise: tuple[Stamp, Stamp],
        clean: tuple[Stamp, Stamp] | None, launches: int | None,
    ) -> None:  # fmt: skip
        """Decode chunk `number`, hand its frames to the writer and report it."""
        if self._dropped:
            return
        began = perf_counter()
        left = None if self._frames is None else self._frames - self.done
        try:
            with self._side.after(denoise[1], latents):
                if not torch.isfinite(latents).all():
                    mend = f"the weights are damaged, or {self.job.dtype} is too narrow for them"
                    raise ValueError(f"it is not finite: {mend}")
                pixels = to_pixels(self._decoder.decode(latents)[0])[:left]
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
                chunks=self._chunks,
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
