"""Which results file a table of a GPU's figures is made from.

`vmla-bench gpu -o bench/results/gpu.json` measures all of them in one run. Files of earlier runs have other
names, each with some measurements; they serve for what the new one lacks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.gpu.arms.items import ITEMS
from bench.harness.document import machine_name
from plugins.documents.json_file import read_json

NEWEST = "gpu.json"
"""The file of a whole run."""
NAMES = (NEWEST, "gpu-chunks.json", "gpu-windows.json", "gpu-fp8.json", "gpu-training.json", "gpu-wan.json")
"""All files, the newest first."""
COMMAND = "vmla-bench gpu --minutes 20"
"""The command that measures all; its time is about that of all measurements together."""

Document = dict[str, Any]


def gpu_documents(results: Path) -> list[Document]:
    """All of the files that are in the folder `results`, the newest first."""
    return [read_json(results / name) for name in NAMES if (results / name).exists()]


def newest_with(documents: list[Document], *measurements: str) -> Document | None:
    """The first of `documents` that has figures of all `measurements`."""
    for document in documents:
        if all(_has_figures(document.get(name) or {}) for name in measurements):
            return document
    return None


def _has_figures(found: Document) -> bool:
    return "device_ms" in found or any("refused" not in row for row in found.get("rows", []))


def where(document: Document) -> str:
    """The machine, the version of PyTorch and the date of a run."""
    return f"{machine_name(document)}, torch {document['versions']['torch']}, {document['date']}"


def lacking(document: Document) -> list[str] | None:
    """Features of today's code that the measured code lacked, without parts of others that it lacked.

    None for a document that does not record its features.
    """
    if "features" not in document:
        return None
    missing = {item.name for item in ITEMS} - set(document["features"])
    return [item.name for item in ITEMS if item.name in missing and item.part_of not in missing]
