"""How every benchmark ends: a JSON document that says what was measured where, and its line on the screen."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch

from vmla.machine import commit, hardware
from vmla.weights.files import write_json

VERSION = 1
"""Of the documents' form."""


def write_document(kind: str, figures: dict[str, Any], path: Path | None) -> None:
    """Complete `figures` with machine, versions and commit, write them, and print them as one line."""
    document = {
        "kind": kind,
        "version": VERSION,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": {"hardware": hardware(), "system": platform.system(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        **figures,
    }
    if path is not None:
        write_json(path, document)
        click.echo(str(path))
    click.echo(json.dumps(document))

