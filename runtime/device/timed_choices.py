"""What clocks have decided on a machine, in a file beside the compiled code.

Forms that are timed against each other round differently. So a choice is made once: a process that continues
a video on this machine makes the same frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch

from plugins.documents.json_file import read_json
from plugins.documents.typed import Between, typed
from plugins.triton.split_kv import TIMED
from vmla.weights.formats.files import write_json

T = TypeVar("T")
MEND = "remove it, and attention is timed again"


@dataclass(frozen=True)
class TimedChoices:
    """What was chosen on a machine, by what was timed there."""

    splits: dict[str, Annotated[int, Between(0, max(TIMED))]] = field(default_factory=dict)
    """Splits of our kernel for the queries that whole waves leave; 0 is the library alone."""
    fp8_attention: dict[str, bool] = field(default_factory=dict)
    """Whether full windows attend in float8."""


def kept_choice(
    kept: Path | None, table: Literal["splits", "fp8_attention"], name: str, choose: Callable[[], T]
) -> T:
    """What the file `kept` has under `name` in a field of `TimedChoices`; what `choose` gives is added to it.

    Raises:
        UserError: if `kept` is damaged.
    """
    found = TimedChoices()
    if kept is not None and kept.exists():
        found = typed(read_json(kept, mend=MEND), TimedChoices, str(kept), mend=MEND)
    known: dict[str, T] = getattr(found, table)
    if name not in known:
        known[name] = choose()
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, asdict(found))
    return known[name]


def machine(device: torch.device) -> str:
    """All that times on a GPU depend on besides sizes."""
    name = torch.cuda.get_device_properties(device).name
    return f"{name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
