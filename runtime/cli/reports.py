"""The reports that a run writes beside its video, and the commands that resume stopped ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from plugins.documents.lock import lock_path
from plugins.documents.regular_file import opened
from plugins.errors import UserError
from runtime.outputs.stream import STANDARD_OUTPUT, is_stream
from runtime.resume.autosave import resume_command
from runtime.resume.sidecar import sidecar_path
from runtime.resume.state import state_path
from runtime.telemetry.events import JsonLines
from runtime.telemetry.metrics import PrometheusFile
from vmla.cli.terminal import warn

OPTIONS = ("events", "metrics")
BEGINNINGS = {"events": (b'{"event": ', b'{"video": '), "metrics": (b"# TYPE videomla_",)}
"""The first bytes of each kind of report; a file that begins otherwise is not replaced."""
READ = ("prompts", "videos", "repeat", "start", "decoder")
"""Options that name input files."""


def check_reports(options: Mapping[str, Any], outputs: Iterable[Path]) -> None:
    """Refuse report files that cannot be written, or that hold or will hold something else.

    Raises:
        UserError: naming the first such file.
    """
    taken = {_file(options[name]): f"--{name}" for name in READ if options.get(name) is not None}
    for output in outputs:
        beside = () if is_stream(output) else (sidecar_path(output), state_path(output), lock_path(output))
        taken |= {_file(path): f"the video {output}" for path in (output, *beside)}
    for name in OPTIONS:
        path = options[name]
        if path is None:
            continue
        if (other := taken.get(_file(path))) is not None:
            raise UserError(f"--{name} and {other} are both {path}; give each its own file")
        taken[_file(path)] = f"--{name}"
        if path != STANDARD_OUTPUT:
            _check_file(name, path)


def _file(path: Path) -> tuple[int, int] | str:
    """The identity of the file at `path` under any name: device and inode, or the real path if it is new."""
    try:
        found = os.fstat(1) if path == STANDARD_OUTPUT else path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _check_file(name: str, path: Path) -> None:
    """Refuse a file that the reports `name` cannot be written to, or whose content they would destroy."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for --{name}; make it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UserError(f"--{name} {path} is not writable; name another file")
    if path.is_file() and path.stat().st_size:
        with opened(path) as file:
            if not file.read(32).startswith(BEGINNINGS[name]):
                raise UserError(f"{path} holds no {name}, so it is not replaced; name another file")


@contextmanager
def standard_output_for_events(options: Mapping[str, Any]) -> Iterator[None]:
    """Within the context, prints go to standard error if `--events -` takes standard output.

    Raises:
        UserError: if standard output is closed.
    """
    if options["events"] != STANDARD_OUTPUT:
        yield
        return
    if getattr(sys.stdout, "silent", False):
        raise UserError("standard output is closed; name a file, or pipe it: --events - | jq .prompt")
    with redirect_stdout(sys.stderr):
        yield


def open_reports(stack: ExitStack, options: Mapping[str, Any]) -> list[JsonLines | PrometheusFile]:
    """The listeners that write the report files, open until `stack` is closed.

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


def resume_hints(outputs: Sequence[Path]) -> list[str]:
    """How to resume the stopped videos, one line each."""
    stopped = [path for path in outputs if state_path(path).exists()]
    if not stopped:
        return ["no state was saved; there is nothing to resume"]
    return [f"resume with: {resume_command(path)}" for path in stopped]
