"""The figures of a document that are worth comparing with those of an older one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number, and which way is better."""

    value: float
    more_is_better: bool = True
    spread: float = 0.0
    """Relative spread; 0 if it is not known."""


def figures(document: dict[str, Any]) -> dict[str, Figure]:
    """The comparable figures of a document by name; none for an unknown kind."""
    find = _KINDS.get(document["kind"])
    return dict(find(document)) if find else {}


def _engines(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for row in document["rows"]:
        if "refused" in row:
            continue
        name, spread = f"{row['engine']} {row['precision']}", row["spread"] / row["time_over_baseline"]
        yield f"{name}, frames/s", Figure(value=row["frames_per_second"], spread=spread)
        yield (
            f"{name}, time over baseline",
            Figure(value=row["time_over_baseline"], more_is_better=False, spread=spread),
        )
        for what in ("first_frame_seconds", "peak_bytes", "error_velocity"):
            if row.get(what):
                yield f"{name}, {what.replace('_', ' ')}", Figure(value=row[what], more_is_better=False)


def _memory(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for name, cache in document["caches"].items():
        each = cache["bytes_per_token_and_layer"]
        yield f"{name}, bytes per token and layer", Figure(value=each, more_is_better=False)
    for row in document.get("streams", []):
        yield f"{row['layout']}, streams", Figure(value=row["streams"])
    for row in document.get("passes", []):
        if row["peak_bytes"]:
            name = f"{row['arm']}, {row['window']}, batch {row['batch']}, peak bytes"
            yield name, Figure(value=row["peak_bytes"], more_is_better=False)


def _rollout(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    yield "frames/s", Figure(value=document["frames_per_second"])
    for what in ("wall_seconds", "first_frame_seconds", "peak_bytes"):
        yield what.replace("_", " "), Figure(value=document[what], more_is_better=False)


def _grades(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for second, row in document["grades"].items():
        for question, share in row.items():
            yield f"{question} after {second} s", Figure(value=share)


def _kernels(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for row in document["rows"]:
        if "refused" in row:
            continue
        name = f"{row['arm']}, {row['dtype']}, {row['shape']['keys']} keys, batch {row['shape']['batch']}"
        yield f"{name}, TFLOP/s", Figure(value=row["tflops"])


def _gpu(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for name in ("chunk", "compile", "aoti"):
        if "rows" in document.get(name, {}):
            yield from _engines(document[name])
    for row in document.get("graphs", {}).get("rows", []):
        yield f"graph {row['layout']}, frames/s", Figure(value=row["frames_per_second"], spread=row["spread"])
    if "rows" in document.get("kernels", {}):
        yield from _kernels(document["kernels"])


def _roofline(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for precision, rate in (document.get("peaks") or {}).get("matrix", {}).items():
        yield f"matrix peak {precision}", Figure(value=rate["per_second"])
    for gap in document.get("gaps", []):
        name = f"{gap['engine']} {gap['precision']}, times the floor"
        yield name, Figure(value=gap["times_the_floor"], more_is_better=False)


def _quality(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for dimension, score in document["scores"].items():
        yield dimension.replace("_", " "), Figure(value=score)


def _study(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for one in document["compared"]:
        loss = one["loss"]
        spread = loss["deviation"] / max(loss["mean"], 1e-9)
        name = f"{one['arm']}, loss"
        yield name, Figure(value=loss["mean"], more_is_better=False, spread=spread)


def _conversion(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for one in document["compared"]:
        loss = one["healed"] or one["loss"]
        spread = loss["deviation"] / max(loss["mean"], 1e-9)
        yield f"{one['variant']}, loss", Figure(value=loss["mean"], more_is_better=False, spread=spread)


def _caches(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for row in document["rows"]:
        yield (
            f"{row['cache']}, bytes per token and layer",
            Figure(value=row["bytes_per_token_and_layer"], more_is_better=False),
        )
        yield f"{row['cache']}, error of a chunk", Figure(value=row["error"], more_is_better=False)
        name, spread = f"{row['cache']}, time over the latent's", row["spread"] / row["time_over_latent"]
        yield name, Figure(value=row["time_over_latent"], more_is_better=False, spread=spread)


_KINDS: dict[str, Callable[[dict[str, Any]], Iterator[tuple[str, Figure]]]] = {
    "engines": _engines,
    "memory": _memory,
    "rollout": _rollout,
    "grades": _grades,
    "kernels": _kernels,
    "gpu": _gpu,
    "roofline": _roofline,
    "quality": _quality,
    "study": _study,
    "caches": _caches,
    "conversion": _conversion,
}
