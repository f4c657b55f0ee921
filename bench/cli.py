"""`vmla-bench`: what is claimed, measured."""

from __future__ import annotations

import importlib
from typing import Any

import click

from vmla.cli.command import OneLineErrors

VERBS = {
    "engines": "bench.speed.engines",
    "roofline": "bench.speed.roofline",
    "memory": "bench.speed.memory",
    "gpu": "bench.gpu.run",
    "spectrum": "bench.studies.spectrum",
    "quality": "bench.quality.vbench",
    "vbench": "bench.quality.vbench_suite",
    "report": "bench.report.page",
    "rollout": "bench.speed.rollout",
    "runtime": "bench.speed.runtime",
    "grades": "bench.quality.grades",
    "grader": "bench.quality.grader",
    "diagnose": "bench.quality.diagnose",
    "sheet": "bench.quality.sheet",
    "serve": "bench.serving.run",
    "kernels": "bench.speed.kernels",
    "graph": "bench.speed.onnx_graph",
    "study": "bench.studies.study",
    "conversion": "bench.studies.conversion",
    "layouts": "bench.studies.layouts",
}
"""Each verb's module, loaded when the verb is used."""


class Verbs(OneLineErrors):
    """The verbs, found by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The `main` of a verb's module."""
        if cmd_name not in VERBS:
            return None
        command: Any = importlib.import_module(VERBS[cmd_name]).main
        return command if isinstance(command, click.Command) else None


@click.group(cls=Verbs)
def main() -> None:
    """Measure what the project claims; every verb ends with one line of JSON."""
