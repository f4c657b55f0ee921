"""The end of every benchmark: a JSON document of its results and machine, and a line on the screen.

A document is saved, whole, after every part that is measured, so that an interrupted benchmark leaves what it
has measured; `complete` tells the two apart. The line on the screen leaves the raw samples out.
"""

from __future__ import annotations

import json
import platform
import shlex
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from plugins.documents.json_file import read_json
from plugins.errors import UserError
from vmla.cli.machine import commit, hardware
from vmla.cli.terminal import say
from vmla.weights.formats.files import write_json

VERSION = 1
"""Version of the documents' schema; `read_document` refuses others."""
PACKAGES = ("numpy", "triton", "onnxruntime", "tensorrt-rtx", "tensorrt")
"""Packages whose versions a document states if they are installed, beside Python's and torch's."""
BUILD = Path("build")
"""Folder of documents by default."""


class Record:
    """A document that grows part by part as things are measured."""

    def __init__(self, kind: str, path: Path | None, *, device: torch.device | None = None) -> None:
        """Begin the document of the verb `kind`; the arguments are those of the running command."""
        self.path = BUILD / f"{kind}.json" if path is None else path
        self.document: dict[str, Any] = {**_heading(kind, device), **_called(kind), "complete": False}

    def save(self, **parts: object) -> None:
        """Add or replace parts, and write the document."""
        self.document |= parts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.document)

    def finish(self, **figures: object) -> None:
        """Write the whole document; print its path, and the figures that it claims as one line of JSON."""
        self.save(summary=figures, complete=True)
        say(str(self.path))
        say(json.dumps({"kind": self.document["kind"], "output": str(self.path), **figures}))


def read_document(path: Path) -> dict[str, Any]:
    """A document that this version wrote.

    Raises:
        UserError: if it is not a results document, or of another version.
    """
    if not path.exists():
        raise UserError(f"no results file {path}; every verb of vmla-bench prints where it writes one")
    document = read_json(path)
    if not isinstance(document.get("kind"), str) or "machine" not in document:
        raise UserError(f"{path} is not a results file of vmla-bench")
    if document.get("version") != VERSION:
        found = document.get("version")
        raise UserError(f"{path} is of version {found}, this code reads {VERSION}; measure it again")
    return document


def machine_name(document: dict[str, Any]) -> str:
    """Processor, and GPU where one was used: figures of one name may be compared."""
    machine = document["machine"]
    return ", ".join(machine[part] for part in ("gpu", "hardware") if machine.get(part))


def _heading(kind: str, device: torch.device | None) -> dict[str, Any]:
    """The heading of every document: its kind, when and where it was made, and with which versions."""
    found: dict[str, Any] = {
        "hardware": hardware(), "system": platform.system(), "threads": torch.get_num_threads()
    }  # fmt: skip
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if device is not None and device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["capability"] = list(torch.cuda.get_device_capability(device))
        found["gpu_bytes"] = torch.cuda.get_device_properties(device).total_memory
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "kind": kind,
        "version": VERSION,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": found,
        "versions": versions,
    }


def _called(kind: str) -> dict[str, Any]:
    """The running command's arguments, the line that repeats it, and the versions of what it may load."""
    installed: dict[str, str] = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    context = click.get_current_context(silent=True)
    if context is None:
        return {"installed": installed}
    arguments = {name: _plain(value) for name, value in context.params.items() if name != "output"}
    return {"arguments": arguments, "command": _command(kind, context), "installed": installed}


def _command(kind: str, context: click.Context) -> str:
    """The line that runs this command again, with the options that were given."""
    words = ["vmla-bench", kind]
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not given or name == "output":
            continue
        value = context.params[name]
        parts = _written(parameter, value)
        if isinstance(parameter, click.Argument):
            words += parts
        elif isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            words += [word for part in parts for word in (parameter.opts[-1], part)]
    return shlex.join(words)


def _written(parameter: click.Parameter, value: Any) -> list[str]:
    """The words of the command line for `value`, one for each time that the option is given."""
    once = parameter.nargs == 1 and not getattr(parameter, "multiple", False)
    if isinstance(value, tuple) and once:
        return [",".join(map(str, value))]
    return [str(part) for part in (value if isinstance(value, tuple) else (value,))]


def _plain(value: object) -> object:
    """An argument as JSON holds it."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
