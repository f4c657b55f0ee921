"""The reports that a run writes beside its video, and its last words when it is killed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from plugins.errors import UserError
from runtime.resume.autosave import resume_command
from runtime.resume.lock import lock_path
from runtime.resume.sidecar import sidecar_path
from runtime.resume.state import state_path
from runtime.telemetry.events import JsonLines
from runtime.telemetry.metrics import PrometheusFile
from vmla.cli.terminal import warn

OPTIONS = ("events", "metrics")


def check_reports(options: Mapping[str, Any], outputs: Iterable[Path]) -> None:
    """Refuse files for reports that cannot be written, or that are of a video.

    Raises:
        UserError: naming the first.
    """
    given = {f"--{name}": options[name].absolute() for name in OPTIONS if options[name] is not None}
    taken = {
        path.absolute(): output
        for output in outputs
        for path in (output, sidecar_path(output), state_path(output), lock_path(output))
    }
    for option, path in given.items():
        if path in taken:
            raise UserError(f"{option} and the video {taken[path]} are both {path}; give each its own file")
        if not path.parent.is_dir():
            raise UserError(f"there is no folder {path.parent} for {option}; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UserError(f"{option} {path} may not be written; name another file")
    if len(given) > len(set(given.values())):
        raise UserError(f"{' and '.join(given)} are both {path}; give each its own file")


def open_reports(stack: ExitStack, options: Mapping[str, Any]) -> list[JsonLines | PrometheusFile]:
    """The listeners of a run other than the terminal, open until `stack` is closed.

    Raises:
        UserError: if one of the files cannot be written.
    """
    found: list[JsonLines | PrometheusFile] = []

    def told(warning: str) -> None:
        warn([warning])

    if options["events"] is not None:
        found.append(stack.enter_context(JsonLines(options["events"], told)))
    if options["metrics"] is not None:
        found.append(PrometheusFile(options["metrics"], told))
    return found


def ways_on(outputs: Sequence[Path]) -> list[str]:
    """Lines that say how stopped videos are gone on with."""
    stopped = [path for path in outputs if state_path(path).exists()]
    if not stopped:
        return ["stopped; there is nothing to go on from"]
    return [f"stopped; go on with: {resume_command(path)}" for path in stopped]
