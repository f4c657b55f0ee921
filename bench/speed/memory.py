"""Bytes of the cache, allocated and measured, in both layouts; peak memory of a pass; streams that fit.

    vmla-bench memory

The cache is that of Wan2.1-1.3B in bfloat16, as the paper's. The passes are those of a small model, because
a large one takes minutes on a CPU: name another with --shape.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from bench.harness.document import Record
from bench.harness.engine_arms import EngineArm, failing
from bench.harness.memory_use import Peak, held
from bench.harness.subject import RandomCheckpoint, endless, open_subject
from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.cli.command import OneLineCommand
from vmla.cli.options.choices import Choice
from vmla.cli.options.device import choose_device, device_option, tell_device
from vmla.cli.progress import ProgressLine
from vmla.cli.terminal import say
from vmla.config import MODEL_CONFIGS, WINDOWS, Layout, ModelConfig, named_config
from vmla.weights.checkpoint import Checkpoint

LAYOUTS: tuple[Layout, ...] = ("mha", "mla")
ARMS = {
    "mha": EngineArm(engine="eager-mha", precision="fp32"),
    "mla": EngineArm(engine="eager-mla", precision="fp32"),
    "absorbed": EngineArm(engine="absorbed", precision="fp32"),
}
BATCHES = (1, 2, 4)
LEAST_BYTES = 64 << 20
"""Bytes to allocate for a measurement: the system counts pages, and allocators round small pieces up."""
RESERVE = 0.08
"""Share of a device's memory that is left free, for fragmentation and the driver."""


def measured_cache(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Bytes that the device holds for filled caches of as many videos as make up `LEAST_BYTES`.

    Raises:
        UserError: if the system does not report the memory of a process.
    """
    spec = CacheSpec.of(config)
    videos = -(-LEAST_BYTES // spec.bytes(element_size=dtype.itemsize))
    gc.collect()
    # Loads threads and code, which must not count below. On a CPU it also takes up what this process has
    # freed, which its allocator would hand out again, although the system has never stopped counting it.
    size = 1 << 17 if device.type == "cuda" else videos * spec.bytes(element_size=dtype.itemsize)
    ballast = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    before = held(device)
    # Written, because a system counts memory of a process only once it is touched.
    cache = spec.allocate(videos, dtype=dtype, device=device).fill_(1)
    after = held(device)
    del ballast
    if before is None or after is None:
        raise UserError("this system does not say what a process holds in memory; measure on Linux or a GPU")
    layers, _, tokens, _ = cache.shape
    each = (after - before) / (layers * videos * tokens)
    return {
        "layout": config.layout,
        "videos": videos,
        "slots": spec.slots,
        "tokens": tokens,
        "layers": layers,
        "entry_width": config.entry_width,
        "bytes": after - before,
        "bytes_per_video": (after - before) / videos,
        "bytes_per_token_and_layer": each,
        "computed_bytes_per_token_and_layer": config.entry_width * dtype.itemsize,
    }


def compared(caches: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The claims about the two layouts, checked against the measurements."""
    heads, latent = (caches[name]["bytes_per_token_and_layer"] for name in LAYOUTS)
    return {"less": 1 - latent / heads, "times_smaller": heads / latent}


def peaks_of_passes(subject: Checkpoint, device: torch.device, folder: Path) -> Iterator[dict[str, Any]]:
    """The most that a rollout's second chunk holds beyond weights, by layout, window and batch.

    The part that every video holds (cache, text) is included, and also given by itself.
    """
    for window, (sink, history) in WINDOWS.items():
        config = replace(subject.model_config(), sink=sink, history=history, layout="mla")
        shape = RandomCheckpoint.of(config, f"{subject.name}-{window}", device=device.type)
        for name, arm in ARMS.items():
            engine, refusal = failing(
                lambda arm=arm, shape=shape: arm.open(shape, device, batch=1, folder=folder)  # type: ignore[misc]
            )
            for batch in BATCHES if refusal is None else ():
                yield {"arm": name, "window": window, "batch": batch, **_peak(engine, shape, batch, device)}


def _peak(engine: Any, subject: Checkpoint, batch: int, device: torch.device) -> dict[str, Any]:
    config, size = engine.config, engine.dtype.itemsize
    peak = Peak(device)
    stream = endless(engine, subject.sampler(), batch=batch)
    for _ in range(2):
        next(stream)
    return {
        "peak_bytes": peak.bytes(),
        "cache_bytes": engine.cache_spec.bytes(batch, element_size=size),
        "text_bytes": 2 * config.num_layers * batch * config.text_tokens * config.inner_dim * size,
    }


def streams(
    caches: dict[str, dict[str, Any]], config: ModelConfig, total: int, itemsize: int
) -> list[dict[str, Any]]:
    """How many videos' measured caches fit into `total` bytes beside the weights; decoders do not count."""
    rows = []
    for layout, cache in caches.items():
        model = replace(config, layout=layout)  # type: ignore[arg-type]
        weights = itemsize * count_parameters(model)
        # Keys and values of one layer: latent attention expands them for each pass, one layer at a time.
        expanded = (
            itemsize * 2 * config.inner_dim * (cache["tokens"] + config.chunk * config.tokens_per_frame)
        )
        free = (1 - RESERVE) * total - weights - (expanded if layout == "mla" else 0)
        rows.append({
            "layout": layout,
            "memory_bytes": total,
            "weights_bytes": weights,
            "streams": max(0, int(free // cache["bytes_per_video"])),
        })  # fmt: skip
    return rows


def count_parameters(config: ModelConfig) -> int:
    """Number of the denoiser's parameters; nothing is allocated."""
    from vmla.transformer import VideoMLA

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VideoMLA(config).parameters())


@click.command("memory", cls=OneLineCommand)
@click.option("--cache-shape", type=Choice(MODEL_CONFIGS), default="wan-1.3b", show_default=True,
              help="Named shape whose cache is measured.")  # fmt: skip
@click.option("--window", type=Choice(list(WINDOWS)), default="sink-1-history-6", show_default=True,
              help="Window of that cache: a reading of the paper's.")  # fmt: skip
@click.option("--shape", type=Choice(MODEL_CONFIGS), default="sprites", show_default=True,
              help="Named shape whose passes are measured.")  # fmt: skip
@click.option("--gib", type=click.FloatRange(min=0, min_open=True),
              help="Memory in GiB to fit streams into (default: the GPU's, else 80).")  # fmt: skip
@device_option()
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False),
              help="Results file to write (default: build/memory.json).")  # fmt: skip
def main(
    cache_shape: str, window: str, shape: str, gib: float | None, device: str, output: Path | None
) -> None:
    """Measure the cache of both layouts, the peak of a pass, and how many streams fit."""
    where, dtype = choose_device(device), torch.bfloat16
    config, passes = named_config(cache_shape, window=window), open_subject(None, shape)
    tell_device(where, device)
    record = Record("memory", output, device=where)
    caches: dict[str, dict[str, Any]] = {}
    with ProgressLine(sys.stderr) as line:
        for layout in LAYOUTS:
            line.show(f"memory: the cache of {cache_shape}, {layout}")
            caches[layout] = measured_cache(replace(config, layout=layout), dtype, where)
            record.save(subject=cache_shape, caches=caches)
        total = _total(gib, where)
        fits = streams(caches, config, total, dtype.itemsize)
        record.save(compared=compared(caches), streams=fits)
        rows: list[dict[str, Any]] = []
        for row in peaks_of_passes(passes, where, Path("build/engines")):
            line.show(f"memory: a pass of {shape}, {row['arm']}, {row['window']}, batch {row['batch']}")
            rows.append(row)
            record.save(passes_subject=shape, passes=rows)
    say(*show(record.document).split("\n"))
    record.finish(
        **{name: round(value, 4) for name, value in compared(caches).items()},
        bytes_per_token_and_layer={n: round(c["bytes_per_token_and_layer"], 2) for n, c in caches.items()},
        streams={row["layout"]: row["streams"] for row in fits},
    )


def _total(gib: float | None, device: torch.device) -> int:
    if gib is None and device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int((80 if gib is None else gib) * 2**30)


def show(document: dict[str, Any]) -> str:
    """Caches, streams and peaks as tables."""
    table = Table(title=f"{document['subject']}: the cache, measured")
    for heading in ("layout", "per token and layer, bytes", "per video, MB", "streams that fit"):
        table.add_column(heading, justify="right")
    fits = {row["layout"]: row["streams"] for row in document["streams"]}
    for name, cache in document["caches"].items():
        cells = [f"{cache['bytes_per_token_and_layer']:.1f}", f"{cache['bytes_per_video'] / 1e6:.1f}"]
        table.add_row(name, *cells, str(fits[name]))
    peaks = Table(title=f"{document['passes_subject']}: most held by a rollout beyond weights, MB")
    for heading in ("form", "window", *(f"batch {batch}" for batch in BATCHES)):
        peaks.add_column(heading, justify="right")
    rows = {(row["arm"], row["window"], row["batch"]): row["peak_bytes"] for row in document["passes"]}
    for arm in ARMS:
        for window in WINDOWS:
            found = [rows.get((arm, window, batch)) for batch in BATCHES]
            peaks.add_row(arm, window, *("-" if b is None else f"{b / 1e6:.1f}" for b in found))
    console = Console(width=120)
    with console.capture() as caught:
        console.print(table, peaks)
    claim = document["compared"]
    return f"{caught.get().rstrip()}\n{claim['less']:.1%} less, {claim['times_smaller']:.1f} times smaller"


if __name__ == "__main__":
    main()
