"""The state of a sharded run: every process writes its own part, and a pointer names the last whole one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from plugins.documents.json_file import read_json
from plugins.errors import UserError
from vmla.train.loop.state import refuse_other_settings
from vmla.train.optim.optimizers import Optimizers
from vmla.weights.formats.files import write_json


def save_shards(
    folder: Path, name: str, parts: dict[str, Any], optimizers: dict[str, Optimizers], record: dict[str, Any]
) -> None:
    """Write tensors of `parts` and the optimizers' states; then move the pointer `name`.json to them.

    Whenever the run is killed, the pointer names a complete state. All processes must call this.
    """
    import torch.distributed.checkpoint as dcp

    target = folder / f"{name}-{record['step']:07d}"
    if _first():
        shutil.rmtree(target, ignore_errors=True)
    torch.distributed.barrier()
    dcp.save(_state(parts, optimizers), checkpoint_id=target)
    if _first():
        pointer = folder / f"{name}.json"
        before = read_json(pointer)["folder"] if pointer.exists() else None
        write_json(pointer, {**record, "folder": target.name})
        if before not in (None, target.name):
            shutil.rmtree(folder / str(before), ignore_errors=True)
    torch.distributed.barrier()


def load_shards(
    folder: Path,
    name: str,
    parts: dict[str, Any],
    optimizers: dict[str, Optimizers],
    settings: dict[str, Any],
) -> dict[str, Any] | None:
    """Fill `parts` and `optimizers` from the last whole state; its record, None if there is none.

    The number of processes may differ from that of the run that wrote it.

    Raises:
        UserError: if it was made with other settings, or is damaged.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    pointer = folder / f"{name}.json"
    if not pointer.exists():
        return None
    record = read_json(pointer)
    refuse_other_settings(record["settings"], settings, pointer)
    state = _state(parts, optimizers)
    try:
        dcp.load(state, checkpoint_id=folder / record["folder"])
    except (OSError, RuntimeError, KeyError, ValueError, CheckpointException) as error:
        raise UserError(f"{folder / record['folder']} is damaged; remove {pointer} to start again") from error
    for key, each in optimizers.items():
        each.load_sharded(state["optimizers"][key])
    return record


def _state(parts: dict[str, Any], optimizers: dict[str, Optimizers]) -> dict[str, Any]:
    return {"parts": parts, "optimizers": {key: each.sharded_state() for key, each in optimizers.items()}}


def _first() -> bool:
    return torch.distributed.get_rank() == 0
