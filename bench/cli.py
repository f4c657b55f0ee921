"""`vmla-bench`: measurements of everything that the project claims."""

from __future__ import annotations

import importlib
import json
from importlib.resources import files
from typing import Any

import click

from plugins.errors import missing_extra
from vmla.cli.command import OneLineErrors

VERBS = {
    "engines": ("bench.speed.engines", "Compare the engines of a model: speed, first frame, memory, error."),
    "roofline": (
        "bench.speed.roofline",
        "Count what a pass costs, measure this machine's peaks, and compute a chunk's least time.",
    ),
    "memory": (
        "bench.speed.memory",
        "Measure the cache of both layouts, the peak of a pass, and how many streams fit.",
    ),
    "gpu": (
        "bench.gpu.run",
        "Measure a GPU: a chunk by kernel, each item's gain, both windows, fp8, AOTInductor, kernels.",
    ),
    "spectrum": (
        "bench.studies.spectrum",
        "Report the effective ranks of CHECKPOINTS' key and value weights (default: sprites).",
    ),
    "quality": (
        "bench.quality.vbench",
        "Score VIDEOS with VBench's own package: six dimensions and the paper's mean of them.",
    ),
    "vbench": (
        "bench.quality.vbench_suite",
        "Make videos of VBench's prompts in FOLDER, and score them with VBench's own package.",
    ),
    "report": (
        "bench.report.page",
        "Write a page and a summary from RESULTS, with old results beside new ones; exit with 1 if a file "
        "was left out because it is damaged.",
    ),
    "rollout": ("bench.speed.rollout", "Time a whole video, from typing the command to the finished file."),
    "runtime": (
        "bench.speed.runtime",
        "Compare the runtime with a plain one: speed, evenness, cost of saving, cost of resuming.",
    ),
    "grades": ("bench.quality.grades", "Grade a sprite model over time on held-out prompts."),
    "grader": (
        "bench.quality.grader",
        "Measure the grader of the sprite world on rendered scenes, as they are and degraded.",
    ),
    "diagnose": (
        "bench.quality.diagnose",
        "Grade a sprite model's codec, first chunk and continuation separately.",
    ),
    "sheet": (
        "bench.quality.sheet",
        "Draw every shape, colour and motion, and pairs of objects, with failures marked.",
    ),
    "caches": (
        "bench.caches.run",
        "Compare caches of one model: per head, latent, latent in 16, 8 and 4 bits.",
    ),
    "serve": ("bench.serving.run", "Measure the server as its viewers see it."),
    "kernels": ("bench.speed.kernels", "Time the attention kernels and write every sample to a JSON file."),
    "graph": (
        "bench.speed.onnx_graph",
        "Export a model of a named shape without weights, or build engines with random ones.",
    ),
    "study": (
        "bench.studies.study",
        "Compare layouts, widths, splits and initialisations of a small model, with seeds.",
    ),
    "conversion": (
        "bench.studies.conversion",
        "Convert per-head models of a recipe in every way, and compare the converted models.",
    ),
    "layouts": ("bench.studies.layouts", "Compare sprite models: grades, drift, speed, cache."),
}
"""Each verb's module, which is loaded when the verb is used, and its one-line help."""


class HelpOnly(click.Command):
    """Stands in for a verb whose help is asked for: `verbs.json` holds it, and the verb loads PyTorch."""

    def get_help(self, ctx: click.Context) -> str:
        """The help of the verb's own command, for a terminal of 80 columns."""
        texts: dict[str, str] = json.loads((files("bench") / "verbs.json").read_text(encoding="utf-8"))
        return texts[self.name or ""]


class Verbs(OneLineErrors):
    """The verbs, found by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The `main` of a verb's module."""
        if cmd_name not in VERBS:
            return None
        try:
            command: Any = importlib.import_module(VERBS[cmd_name][0]).main
        except ModuleNotFoundError as error:
            raise missing_extra(str(error.name), "dev") from error
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb with its arguments; for its help alone, a stand-in that does not load PyTorch."""
        if len(args) == 2 and args[0] in VERBS and args[1] in ctx.help_option_names:
            return args[0], HelpOnly(args[0]), args[1:]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, does) for name, (_, does) in VERBS.items()])


@click.group(cls=Verbs)
def main() -> None:
    """Measure what the project claims; every verb ends with one line of JSON."""
