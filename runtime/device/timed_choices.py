"""What clocks have decided on a machine, in a file beside the compiled code.

Forms that are timed against each other round differently. So a choice is made once: a process that continues
a video on this machine makes the same frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from plugins.atomic_files import atomic_write_text
from plugins.documents.json_file import read_json
from plugins.documents.typed import Between, typed
from plugins.triton.split_kv import TIMED

MEND = "remove it, and attention is timed again"


@dataclass(frozen=True)
class TimedChoices:
    """What was chosen on a machine, by what was timed there."""

    splits: dict[str, Annotated[int, Between(0, max(TIMED))]] = field(default_factory=dict)
    """Splits of our kernel for the queries that whole waves leave; 0 is the library alone."""
    fp8_attention: dict[str, bool] = field(default_factory=dict)
    """Whether full windows attend in float8."""


def kept_splits(kept: Path | None, name: str, choose: Callable[[], int]) -> int:
    """The number of splits that the file `kept` has under `name`; what `choose` gives is added to it.

    Raises:
        UserError: if `kept` is damaged.
    """
    found = _read(kept)
    if name not in found.splits:
        found.splits[name] = choose()
        _write(kept, found)
    return found.splits[name]


def kept_fp8_attention(kept: Path | None, name: str, choose: Callable[[], bool]) -> bool:
    """Whether attention runs in float8, by the file `kept` under `name` or else by `choose`.

    Raises:
        UserError: if `kept` is damaged.
    """
    found = _read(kept)
    if name not in found.fp8_attention:
        found.fp8_attention[name] = choose()
        _write(kept, found)
    return found.fp8_attention[name]


def machine(device: torch.device) -> str:
    """All that times on a GPU depend on besides sizes."""
    name = torch.cuda.get_device_properties(device).name
    return f"{name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"


def _read(kept: Path | None) -> TimedChoices:
    if kept is None or not kept.exists():
        return TimedChoices()
    return typed(read_json(kept, mend=MEND), TimedChoices, str(kept), mend=MEND)


def _write(kept: Path | None, choices: TimedChoices) -> None:
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(kept, json.dumps(asdict(choices), indent=1) + "\n")
