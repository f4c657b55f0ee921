"""`vmla-bench`: what is claimed, measured."""

from __future__ import annotations

import importlib
from typing import Any

import click

from vmla.command import OneLineErrors

VERBS = {
    "engines": "bench.engines",
    "roofline": "bench.roofline",
    "memory": "bench.memory",
    "gpu": "bench.gpu",
    "spectrum": "bench.spectrum",
    "quality": "bench.quality",
    "report": "bench.report",
    "rollout": "bench.rollout",
    "runtime": "bench.runtime",
    "grades": "bench.grades",
    "grader": "bench.grader",
    "diagnose": "bench.diagnose",
    "kernels": "bench.kernels",
    "graph": "bench.graph",
    "study": "bench.study",
    "conversion": "bench.conversion",
    "layouts": "bench.layouts",
}
"""Each verb's module, loaded when the verb is used."""


class Verbs(OneLineErrors):
    """The verbs, found by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
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
