"""The measurement `profile`: where the time of one chunk goes, by kernel, and the clocks meanwhile."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from bench.gpu.context import Context
from bench.harness.operation_counts import LAUNCHES
from bench.harness.paired_timing import WaitingClock
from bench.harness.subject import steady
from bench.speed.gpu_clocks import Clocks

SUSTAINED_SECONDS = 4.0
"""Seconds for which chunks are made without a pause: clocks take about that long to settle under load."""
SHOWN = 60
"""The most kernels that are recorded, those that take the most time first."""
PARTS = {
    "attention": r"attention|absorbed|fmha|flash|sdpa|merge",
    "products": r"gemm|nvjet|cutlass|cublas|xmma|scaled_mm|addmm|linear|matmul|\bmm\b|bmm",
    "expansion": r"^expand",
    "copies": r"memcpy|memset|copy|index",
}
"""Purposes of kernels by their names; the first match counts, and a kernel without one is element-wise."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A kernel that ran; times in microseconds."""

    name: str
    start: float
    end: float


def profile(context: Context) -> Iterator[dict[str, Any]]:
    """A chunk as users get it: under load for seconds with the clocks sampled, then kernel by kernel."""
    chunk = steady(context.engine(), context.sampler, graphs=True)
    yield {"sustained": sustained(chunk, context.device, SUSTAINED_SECONDS * context.scale)}
    yield seen(chunk, context)


def sustained(chunk: Callable[[], object], device: torch.device, seconds: float) -> dict[str, Any]:
    """Call `chunk` for `seconds`: times of all calls, and all samples of the clocks."""
    clock, samples, began = WaitingClock(device), list[float](), time.perf_counter()
    with Clocks(device) as clocks:
        while not samples or time.perf_counter() - began < seconds:
            samples.append(clock.time(chunk))
    tenth = max(1, len(samples) // 10)
    return {
        "samples_ms": samples,
        "first_tenth_ms": statistics.median(samples[:tenth]),
        "last_tenth_ms": statistics.median(samples[-tenth:]),
        "clocks": clocks.samples,
    }


def seen(chunk: Callable[[], object], context: Context) -> dict[str, Any]:
    """One call of `chunk` in PyTorch's profiler; the whole trace goes to `trace.json.gz`."""
    gpu = context.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    # The profiler's first use loads its libraries, which must not be in the trace.
    with profiler(activities=activities):
        pass
    with profiler(activities=activities) as trace:
        chunk()
        if gpu:
            torch.cuda.synchronize(context.device)
    context.folder.mkdir(parents=True, exist_ok=True)
    path = context.folder / "trace.json.gz"
    trace.export_chrome_trace(str(path))
    spans = spans_of(trace.events() or [], DeviceType.CUDA if gpu else DeviceType.CPU)
    launched = [event for event in trace.events() or [] if event.name.startswith(LAUNCHES)]
    return {"trace": str(path), "host_launches": len(launched), **summary(spans)}


def spans_of(events: Sequence[Any], device: DeviceType) -> list[Span]:
    """The kernels that ran on the device, in order; on a CPU the outermost operations stand for kernels."""
    found = [
        Span(name=event.name, start=event.time_range.start, end=event.time_range.end)
        for event in events
        if event.device_type == device
        and not getattr(event, "is_user_annotation", False)
        and not event.name.startswith(("##", "ProfilerStep"))
        and (device != DeviceType.CPU or event.cpu_parent is None)
    ]
    return sorted(found, key=lambda span: span.start)


def summary(spans: Sequence[Span]) -> dict[str, Any]:
    """Time by part and by kernel, and the gaps in which nothing ran; `spans` are in order."""
    if not spans:
        return {"kernels": [], "parts": {}, "gaps": {"count": 0, "ms": 0.0}, "device_ms": 0.0}
    by_name: dict[str, list[float]] = {}
    parts: dict[str, float] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span.end - span.start)
        part = part_of(span.name)
        parts[part] = parts.get(part, 0.0) + (span.end - span.start) / 1e3
    kernels: list[dict[str, Any]] = [
        {"kernel": name, "part": part_of(name), "count": len(took), "ms": sum(took) / 1e3,
         "median_us": statistics.median(took)}
        for name, took in by_name.items()
    ]  # fmt: skip
    kernels.sort(key=lambda row: row["ms"], reverse=True)
    return {
        "device_ms": (max(span.end for span in spans) - spans[0].start) / 1e3,
        "launched_kernels": len(spans),
        "parts": parts,
        "gaps": gaps(spans),
        "kernels": kernels[:SHOWN],
        "kernels_left_out": max(0, len(kernels) - SHOWN),
    }


def gaps(spans: Sequence[Span]) -> dict[str, Any]:
    """The times in which the device did nothing between the first and the last of `spans`."""
    idle, end = list[float](), spans[0].end
    for span in spans[1:]:
        if span.start > end:
            idle.append(span.start - end)
        end = max(end, span.end)
    return {
        "count": len(idle),
        "ms": sum(idle) / 1e3,
        "median_us": statistics.median(idle) if idle else 0.0,
        "most_us": max(idle, default=0.0),
    }


def part_of(kernel: str) -> str:
    """The purpose of the kernel of this name."""
    for part, pattern in PARTS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return part
    return "element-wise"
