"""One interface to graphs, a second stream and clocks, which differ between a GPU and a CPU."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 2
"""Calls before a capture: libraries choose algorithms and allocate workspaces in the first ones."""

Stamp = float | torch.cuda.Event
"""A point in time: of this process on a CPU, of the current stream on a GPU."""

Pool = Any
"""PyTorch's handle of memory that several graphs share."""


class Replay:
    """A captured graph. Calling it launches the graph."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def __call__(self) -> None:
        """Launch the whole graph in the current stream, and return without waiting."""
        self._graph.replay()


def graph_pool(device: torch.device) -> Pool | None:
    """Memory for intermediate results, shared by graphs that are replayed one at a time; None on a CPU."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def captured(
    function: Callable[[], None], device: torch.device, pool: Pool | None = None
) -> Callable[[], None]:
    """`function` as a CUDA graph; `function` itself on a CPU or, with a warning, where capture fails.

    `function` may read and write only tensors that outlive the graph. It is called a few times on the way, so
    what these tensors hold afterwards is undefined. Its intermediate results lie in `pool`, which other
    graphs may overwrite between two replays.
    """
    if device.type != "cuda":
        return function
    try:
        graph = torch.cuda.CUDAGraph()
        warm_up = torch.cuda.Stream(device)  # warm-ups may not run in the default stream (PyTorch's notes)
        warm_up.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(warm_up):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream(device).wait_stream(warm_up)
        # Other threads decode meanwhile; their allocations must not become part of the graph.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            function()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"no CUDA graph of the chunk, it runs launch by launch: {reason}", stacklevel=2)
        return function
    return Replay(graph)


class SideStream:
    """A second CUDA stream for work on the results of a rollout that goes on; on a CPU only a lock.

    One thread works at a time: two at once would take twice the memory and finish no sooner.
    """

    def __init__(self, device: torch.device) -> None:
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def after(self, ready: Stamp, *tensors: Tensor) -> Iterator[None]:
        """Inside, the device starts work only at `ready`, when `tensors` are complete."""
        with self._lock:
            if self._stream is None or not isinstance(ready, torch.cuda.Event):
                yield
                return
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(ready)
                for tensor in tensors:  # or the allocator could reuse their memory while this stream reads
                    tensor.record_stream(self._stream)
                yield


def host_copy(tensor: Tensor) -> Tensor:
    """A copy of `tensor` in main memory. From a GPU it is complete once the current stream has got there."""
    if tensor.device.type != "cuda":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """`tensor` in main memory, copied through pinned memory; waits for the current stream only."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = host_copy(tensor)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


def wait_for(moment: Stamp) -> None:
    """Block until the device has reached `moment`."""
    if isinstance(moment, torch.cuda.Event):
        moment.synchronize()


def stamp(device: torch.device) -> Stamp:
    """The present: a time on a CPU, an event recorded in the current stream on a GPU."""
    if device.type != "cuda":
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def between(first: Stamp, last: Stamp) -> float:
    """Seconds between two stamps; waits for the later one on a GPU."""
    if isinstance(first, torch.cuda.Event) and isinstance(last, torch.cuda.Event):
        last.synchronize()
        return first.elapsed_time(last) / 1000
    assert isinstance(first, float)
    assert isinstance(last, float)
    return last - first
