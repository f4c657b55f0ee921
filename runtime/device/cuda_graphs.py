"""What is different on a GPU, with the same face on a CPU: graphs, a second stream, clocks."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 2
"""Calls before a capture: libraries choose and allocate on the first ones."""

Stamp = float | torch.cuda.Event
"""A moment: of this process on a CPU, in the current stream on a GPU."""

Pool = Any
"""What PyTorch calls memory that graphs share."""


class Replay:
    """A captured graph: calling it launches the whole of it, and counts that."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph
        self.count = 0

    def __call__(self) -> None:
        """Launch it."""
        self._graph.replay()
        self.count += 1


def replays_of(functions: Sequence[Callable[[], None]]) -> int | None:
    """How often the host has launched graphs for all of them; None if there are none, or one is no graph."""
    counts = [function.count for function in functions if isinstance(function, Replay)]
    return sum(counts) if counts and len(counts) == len(functions) else None


def graph_pool(device: torch.device) -> Pool | None:
    """Memory for what graphs hold for a moment: for all of them together that are replayed one at a time."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def captured(
    function: Callable[[], None], device: torch.device, pool: Pool | None = None
) -> Callable[[], None]:
    """`function` itself on a CPU; on CUDA its graph, or with a warning itself where it cannot be captured.

    It may take no arguments and read and write only tensors that outlive the result. It is called a
    few times on the way: what these tensors hold afterwards means nothing. All else lies in `pool`, which
    other graphs may overwrite between two replays.
    """
    if device.type != "cuda":
        return function
    try:
        graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream(device).wait_stream(aside)
        # Other threads decode meanwhile; what they allocate is no part of the graph.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            function()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"no CUDA graph of the chunk, it runs launch by launch: {reason}", stacklevel=2)
        return function
    return Replay(graph)


class SideStream:
    """Work on results of the rollout while the rollout goes on; on a CPU, threads alone do that.

    One at a time: two at once would take twice the memory and not be done sooner.
    """

    def __init__(self, device: torch.device) -> None:
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def after(self, ready: Stamp, *tensors: Tensor) -> Iterator[None]:
        """Inside, work waits on the device for the moment `ready`, when `tensors` are complete."""
        with self._lock:
            if self._stream is None or not isinstance(ready, torch.cuda.Event):
                yield
                return
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(ready)
                for tensor in tensors:
                    tensor.record_stream(self._stream)
                yield


def host_copy(tensor: Tensor) -> Tensor:
    """A copy of `tensor` in main memory; from a GPU it is complete once the current stream comes so far."""
    if tensor.device.type != "cuda":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """`tensor` in main memory, through pinned memory; waits for the current stream alone."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = host_copy(tensor)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


def wait_for(moment: Stamp) -> None:
    """Wait until the device has come to `moment`."""
    if isinstance(moment, torch.cuda.Event):
        moment.synchronize()


def stamp(device: torch.device) -> Stamp:
    """Now."""
    if device.type != "cuda":
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def between(first: Stamp, last: Stamp) -> float:
    """Seconds from one moment to another that has passed on the device."""
    if isinstance(first, torch.cuda.Event) and isinstance(last, torch.cuda.Event):
        last.synchronize()
        return first.elapsed_time(last) / 1000
    assert isinstance(first, float)
    assert isinstance(last, float)
    return last - first
