"""The Python interface: a model that stays loaded and makes videos, one or several at the same time.

with VideoPipeline.from_pretrained("sprites") as pipeline:
    for frames in pipeline("a red star bouncing on a navy background", seconds=5):
        ...  # [12, 64, 64, 3] uint8, chunk by chunk
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from plugins.errors import UserError
from runtime.diffusers_arguments import (
    WanArguments,
    form_of,
    one_prompt,
    refuse_unlike,
    sampler_of,
    seconds_of,
    seed_of,
)
from runtime.frame_queue import FrameQueue
from runtime.outputs import Frames
from runtime.planning.job import Job
from runtime.planning.length import LONGEST_SECONDS
from runtime.planning.request import prepare
from runtime.prompts.schedule_file import ScheduleEntry
from runtime.prompts.sources import FixedPrompts, PromptSource
from runtime.resume.state import State
from runtime.session.destination import choose_scale, claimed
from runtime.session.generate import VideoFile, load_session, sink_for
from runtime.session.outcome import Outcome
from runtime.session.replay import Order
from runtime.session.session import Session
from runtime.telemetry.events import NoTelemetry, Telemetry
from runtime.video import GeneratedVideo
from vmla.weights.checkpoint import Checkpoint

Prompts = str | Mapping[float, str] | Sequence[ScheduleEntry] | PromptSource
"""One prompt, prompts by the second at which each begins, or a source of prompts (`LivePrompts`)."""


class VideoPipeline:
    """A loaded model, its decoder and a thread that makes videos with them; a context manager.

    Its methods may be called from any thread. Videos that are made at the same time share the weights. Each
    has the frames it would have alone, and the one whose viewer would run out of frames first goes on first.
    """

    def __init__(self, job: Job) -> None:
        """Load the models that `job` needs; see `from_pretrained`."""
        began = perf_counter()
        self._job, self._session = job, load_session(job)
        self._load_seconds = perf_counter() - began
        self._interrupt = False
        """Set by a callback, as diffusers' users do, to end the video that it was called for."""
        self._queues: weakref.WeakSet[FrameQueue] = weakref.WeakSet()
        self._thread = threading.Thread(
            target=_serve, args=(self._session,), name="video-pipeline", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._session.close)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str | Path | None = None,
        *,
        engine: str | Path | None = None,
        device: str = "auto",
        text_device: str = "auto",
        dtype: str = "auto",
        decoder: str | Path | None = None,
        threads: int | None = None,
    ) -> VideoPipeline:
        """Load a model.

        Args:
            folder_or_name: a checkpoint folder, or the name of a shipped one; the engine's own, or else
                `sprites`, if None.
            engine: a folder made by `vmla-export`; without it, the PyTorch model runs.
            device: a torch device; `auto` is the engine's, else CUDA if there is a GPU, else the CPU.
            text_device: of the text encoder; `auto` is the model's, `cpu` saves a GPU's memory.
            dtype: `float32`, `bfloat16`, `float16`, or `auto`: float32 on a CPU, bfloat16 elsewhere;
                `fastest` is one of these two on a CPU, measured.
            decoder: a file of TAEHV's weights that decodes in place of the checkpoint's own codec.
            threads: CPU threads of denoiser and decoder together; one for each if None.

        Raises:
            UserError: for a missing checkpoint or device, or an engine that does not fit.
        """
        if device == "auto":
            device = "cuda" if engine is None and torch.cuda.is_available() else "cpu"
        # Each video has its own prompt and length; this job only names the model, and is never made.
        job, _ = prepare(
            FixedPrompts("a video"), folder_or_name, chunks=1, device=device, text_device=text_device,
            dtype=dtype, threads=threads, engine=None if engine is None else Path(engine),
            decoder=None if decoder is None else Path(decoder),
        )  # fmt: skip
        return cls(job)

    @overload
    def __call__(
        self, prompt: Prompts | list[str], *, seconds: float | None = ..., seed: int = ...,
        steps: int | None = ..., start: str | Path | None = ..., return_dict: Literal[True] = ...,
        **wan: Unpack[WanArguments],
    ) -> GeneratedVideo: ...  # fmt: skip

    @overload
    def __call__(
        self, prompt: Prompts | list[str], *, seconds: float | None = ..., seed: int = ...,
        steps: int | None = ..., start: str | Path | None = ..., return_dict: Literal[False],
        **wan: Unpack[WanArguments],
    ) -> tuple[Any]: ...  # fmt: skip

    def __call__(
        self, prompt: Prompts | list[str], *, seconds: float | None = 10.0, seed: int = 0,
        steps: int | None = None, start: str | Path | None = None, return_dict: bool = True,
        **wan: Unpack[WanArguments],
    ) -> GeneratedVideo | tuple[Any]:  # fmt: skip
        """Begin a video and return it: an iterator over the frames of each chunk, or all with `.frames`.

        Args:
            prompt: describes the video. A mapping gives each prompt by the second at which it begins;
                `LivePrompts` may change the prompt between two chunks.
            seconds: its length when played, at 16 frames per second; None makes it endless.
            seed: the same seed gives the same video.
            steps: denoising steps for each chunk; the checkpoint's own number if not given.
            start: a video, an image or a folder of pictures to continue; the new video begins with these.
            return_dict: False waits for the video and returns a tuple of its frames alone.
            wan: arguments by the names of diffusers' `WanPipeline`; see
                `runtime.diffusers_arguments.WanArguments`.

        Raises:
            UserError: for an empty prompt, an impossible length, or a job beyond the model.
        """
        refuse_unlike(wan, self._job.height, self._job.width)
        length = seconds_of(wan, seconds)
        job, frames = self._job.another(
            _prompts(one_prompt(prompt)), seconds=LONGEST_SECONDS if length is None else length,
            seed=seed_of(wan, seed), steps=wan.get("num_inference_steps", steps), start=_path(start),
        )  # fmt: skip
        job = replace(job, sampler=sampler_of(wan, job.sampler))
        form = form_of(wan, self._job.decoding.sizes(), wan.get("num_frames", frames))
        self._interrupt, queue, latents = False, self._queue(FrameQueue()), list[Tensor]()
        task = self._session.admit(
            job, queue, frames=None if length is None else frames,
            latents=latents.append if form.wants_latents else None,
        )  # fmt: skip
        video = GeneratedVideo(task, queue, pipeline=self, form=form, latents=latents)
        return video if return_dict else (video.frames,)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that is loaded: its folder, sizes and sampler."""
        return self._job.checkpoint

    def many(
        self, prompts: Sequence[Prompts], *, seconds: float | None = 10.0, seed: int = 0,
        seeds: Sequence[int] | None = None, steps: int | None = None,
    ) -> list[GeneratedVideo]:  # fmt: skip
        """Begin a video for each of `prompts`; they are made at the same time.

        `seeds` gives each its own; without it, all have the same `seed`. The videos may be consumed in any
        order: a video that is a few chunks ahead of its reader lets the others go first.

        Raises:
            UserError: as for one; all are closed then.
        """
        each = [seed] * len(prompts) if seeds is None else seeds
        if len(each) != len(prompts):
            raise UserError(f"{len(prompts)} prompts but {len(each)} seeds; give one for each")
        videos: list[GeneratedVideo] = []
        try:
            for prompt, own in zip(prompts, each, strict=True):
                videos.append(self(prompt, seconds=seconds, seed=own, steps=steps))
        except UserError:
            for video in videos:
                video.close()
            raise
        return videos

    def restore(self, state: State) -> GeneratedVideo:
        """Resume the video of `state`; its frames are those it would have had without stopping.

        The first ones are those that were made but not yet taken when the state was. A state may be restored
        any number of times, also at the same time.

        Raises:
            UserError: if it is a state of another model, decoder, device or number of threads.
        """
        queue = self._queue(FrameQueue(state.pending, frames=state.mark["frames"]))
        return GeneratedVideo(self._session.restore(state, queue), queue, pipeline=self)

    def save(
        self, prompt: Prompts, path: str | Path, *, seconds: float = 10.0, seed: int = 0,
        steps: int | None = None, start: str | Path | None = None, scale: int | None = None,
        overwrite: bool = False, save_every: float | None = 5.0, telemetry: Telemetry | None = None,
    ) -> Outcome:  # fmt: skip
        """Make a file as `vmla-run` does, and return when it is whole.

        An interruption (Ctrl-C) ends it after the chunk under way and is raised then; `vmla-run --resume`
        goes on with what there is.

        Args:
            prompt, seconds, seed, steps, start: as of a video to iterate over; it cannot be endless.
            path: an `.mp4` file, or a folder for pictures.
            scale: enlarge frames; to at least 256 pixels if not given.
            overwrite: replace a video that exists, once the new one has frames.
            save_every: seconds between two states on disk; None saves none.
            telemetry: is told of every chunk.

        Raises:
            UserError: if there is such a file already, or it cannot be written.
        """
        output = Path(path)
        job, frames = self._job.another(
            _prompts(prompt), seconds=seconds, seed=seed, steps=steps, start=_path(start)
        )
        order = Order(job=job, frames=frames, scale=choose_scale(job.height, scale))
        with claimed(output, fresh=True, overwrite=overwrite):
            sink = sink_for(output, order)
            video = VideoFile(
                self._session, output, order, sink, telemetry or NoTelemetry(),
                save_every=save_every, load_seconds=self._load_seconds,
            )  # fmt: skip
            try:
                return video.outcome()
            except KeyboardInterrupt:
                video.task.end()
                video.task.wait()
                raise

    def close(self) -> None:
        """End all videos, those on their way to a file with their state on disk, and unload the model."""
        self._session.close()
        for queue in list(self._queues):
            queue.abandon()
        self._thread.join()

    def __enter__(self) -> VideoPipeline:
        """Return the pipeline; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all videos and unload the model; see `close`."""
        self.close()

    def _queue(self, queue: FrameQueue) -> FrameQueue:
        self._queues.add(queue)
        return queue


def generate(
    prompt: Prompts,
    *,
    seconds: float | None = 10.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    steps: int | None = None,
    device: str = "cpu",
    text_device: str = "auto",
    dtype: str = "auto",
    engine: str | Path | None = None,
    decoder: str | Path | None = None,
    threads: int | None = None,
) -> Iterator[Frames]:
    """Yield the frames of a video one by one: the short form of `VideoPipeline` for a single video.

    Args:
        prompt, seconds, seed, steps: as of `VideoPipeline.__call__`.
        checkpoint, device, text_device, dtype, engine, decoder, threads: as of
            `VideoPipeline.from_pretrained`.

    Yields:
        Frames [H, W, 3] uint8, red green blue. Memory does not grow with their number.

    Raises:
        UserError: for an empty prompt, an impossible length, a missing checkpoint or device.
    """
    with (
        VideoPipeline.from_pretrained(
            checkpoint,
            engine=engine,
            device=device,
            text_device=text_device,
            dtype=dtype,
            decoder=decoder,
            threads=threads,
        ) as pipeline,
        pipeline(prompt, seconds=seconds, seed=seed, steps=steps) as video,
    ):
        for frames in video:
            yield from frames


def _serve(session: Session) -> None:
    with session:
        session.serve()


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _prompts(prompt: Prompts) -> str | PromptSource | Sequence[ScheduleEntry]:
    if not isinstance(prompt, Mapping):
        return prompt
    for at, text in prompt.items():
        if not isinstance(at, int | float) or not isinstance(text, str):
            raise UserError(f"{at!r}: {text!r} is not a prompt of a schedule; give texts by their seconds")
    return [ScheduleEntry(at=float(at), prompt=text) for at, text in sorted(prompt.items())]
