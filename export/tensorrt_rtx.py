"""TensorRT-RTX engines from an ONNX graph, for a named GPU, on any machine: no GPU is needed to build.

Building runs in a process of its own (`python -m export.tensorrt_rtx GRAPH ENGINE TARGET`): the library
ends the process on some mistakes, and holds the weights several times over while it works. The one
module that imports it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from vmla.errors import UserError

TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""Compute capabilities that TensorRT-RTX 1.7 builds for; sm_90 and sm_100 are not among them."""


def check_target(target: str) -> None:
    """Refuse a GPU that the library has no engines for.

    Raises:
        UserError: naming those that it has.
    """
    if target not in TARGETS:
        raise UserError(f"TensorRT-RTX builds no engines for {target}; its targets are {', '.join(TARGETS)}")


def build(graph: Path, engine: Path, target: str) -> list[str]:
    """Build the ONNX file `graph` for `target` into the file `engine`.

    Returns:
        The warnings of parser and builder.

    Raises:
        UserError: if they refuse, with their last error.
    """
    command = [sys.executable, "-m", "export.tensorrt_rtx", str(graph), str(engine), target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode != 0 or not engine.is_file():
        errors = [text for severity, text in messages if severity == "error"]
        said = errors[-1] if errors else (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UserError(f"TensorRT-RTX cannot build {graph.name} for {target}: {said}")
    return [text for severity, text in messages if severity == "warning"]


def main(graph: str, engine: str, target: str) -> int:
    """Parse and build in this process; messages leave as lines of JSON `["warning", text]`."""
    import tensorrt_rtx as trt

    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(graph):
        for number in range(parser.num_errors):
            _say("error", str(parser.get_error(number)))
        return 1
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target.replace("_", "").upper()), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return 1
    Path(engine).write_bytes(bytes(plan))
    return 0


def _logger(trt: Any) -> Any:
    """A logger that says every warning and error in a line of JSON."""
    severities = {
        trt.Logger.Severity.WARNING: "warning",
        trt.Logger.Severity.ERROR: "error",
        trt.Logger.Severity.INTERNAL_ERROR: "error",
    }

    class Lines(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in severities:
                _say(severities[severity], message)

    return Lines()


def _say(severity: str, message: str) -> None:
    sys.stdout.write(json.dumps([severity, " ".join(message.split())]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
