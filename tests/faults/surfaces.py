"""What the four commands read, and how each is called on it: phases that end before much is computed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from faults.samples import PROMPT, RESULTS

COMMANDS = {
    "vmla-run": "runtime.cli.run",
    "vmla-export": "runtime.cli.export",
    "vmla-train": "vmla.train.cli.commands",
    "vmla-bench": "bench.cli",
}
LOADED = (
    *COMMANDS.values(), "av", "torch", "numpy", "yaml", "ftfy", "safetensors.torch", "tokenizers",
    "transformers.models.umt5.modeling_umt5", "transformers.tokenization_utils_fast", "export.checks",
    "runtime.session.replay", "runtime.session.generate", "runtime.outputs.mp4", "runtime.cli.videos",
    "runtime.cli.verify.engine", "vmla.train.cli.convert_options", "vmla.train.run", "bench.report.page",
    "vmla.train.cli.stage_options", "export.inspect", "vmla.weights.inspection.propose",
)  # fmt: skip
"""Modules that are imported once, before any process is forked."""
CHECKPOINT = ("--prompt", PROMPT, "--checkpoint", "checkpoint", "--engine", "eager")
WHOLE_CHECKPOINT = {
    "checkpoint/model_index.json": "json",
    "checkpoint/transformer/config.json": "json",
    "checkpoint/scheduler/scheduler_config.json": "json",
    "checkpoint/vae/config.json": "json",
}
PARTS = {
    "checkpoint/transformer/diffusion_pytorch_model.safetensors": "safetensors",
    "checkpoint/vae/diffusion_pytorch_model.safetensors": "safetensors",
    "checkpoint/text_encoder/model.safetensors": "safetensors",
}


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A command, and the files that it reads of a folder of `faults.samples`."""

    words: tuple[str, ...]
    files: Mapping[str, str]
    """Format by path; one of them is damaged."""
    seconds: float = 20.0
    """It has hung if it takes longer."""
    share: int = 4
    """How often it is tried beside the others."""
    whole: bool = True
    """Whether it ends well on undamaged files."""
    own: str | None = None
    """What it may change beside the folder `out`: every path that begins so."""
    makes: bool = False
    """Whether it makes the file itself where it is missing."""

    @property
    def name(self) -> str:
        """As a person would type it."""
        return " ".join("PROMPT" if word == PROMPT else word for word in self.words)

    def call(self) -> Callable[[], object]:
        """The command, to be called in its folder."""
        command = importlib.import_module(COMMANDS[self.words[0]]).main
        return partial(command.main, list(self.words[1:]), prog_name=self.words[0])


SURFACES = (
    Surface(words=("vmla-run", *CHECKPOINT, "--dry-run"), files={**WHOLE_CHECKPOINT, **PARTS}, share=12),
    Surface(
        words=("vmla-run", *CHECKPOINT, "--chunks", "1", "-o", "out/a.mp4"),
        files={
            **WHOLE_CHECKPOINT,
            **dict.fromkeys(PARTS, "weights"),
            "checkpoint/text_encoder/config.json": "json",
            "checkpoint/tokenizer/tokenizer.json": "json",
            "checkpoint/tokenizer/tokenizer_config.json": "json",
        },
        seconds=60.0,
        share=8,
    ),
    Surface(words=("vmla-run", "--repeat", "stopped.mp4.json", "--dry-run"),
            files={"stopped.mp4.json": "json"}, share=8),
    Surface(words=("vmla-run", "--resume", "stopped.mp4", "--dry-run"),
            files={"stopped.mp4.state": "safetensors"}, share=8),
    Surface(words=("vmla-run", "--resume", "stopped.mp4"), files={"stopped.mp4": "mp4"}, seconds=60.0,
            share=2, own="stopped.mp4"),
    Surface(words=("vmla-run", "--prompts", "prompts.yaml", "--checkpoint", "checkpoint", "--dry-run"),
            files={"prompts.yaml": "yaml"}, share=6),
    Surface(words=("vmla-run", "--prompts", "prompts.jsonl", "--checkpoint", "checkpoint", "--dry-run"),
            files={"prompts.jsonl": "jsonl"}),
    Surface(words=("vmla-run", "--videos", "videos.yaml", "--checkpoint", "checkpoint", "--dry-run"),
            files={"videos.yaml": "yaml"}, share=6),
    Surface(words=("vmla-run", "--videos", "videos.jsonl", "--checkpoint", "checkpoint", "--dry-run"),
            files={"videos.jsonl": "jsonl"}),
    Surface(words=("vmla-run", "--prompt", PROMPT, "--engine", "engine", "--dry-run"),
            files={"engine/manifest.json": "json"}, share=6),
    Surface(words=("vmla-export", "inspect", "engine"), files={"engine/manifest.json": "json"}),
    Surface(words=("vmla-export", "inspect", "engine", "--json"), files={"engine/manifest.json": "json"}),
    Surface(words=("vmla-export", "verify", "engine"), whole=False,
            files={"engine/manifest.json": "json", "engine/step.pt2": "mp4"}),
    *(
        Surface(words=("vmla-bench", "report", f"results/{path.name}", "-o", "out/report"),
                files={f"results/{path.name}": "json"}, share=1)
        for path in sorted(RESULTS.glob("*.json"))
    ),
    Surface(words=("vmla-train", "inspect", "wan.safetensors"), files={"wan.safetensors": "safetensors"}),
    Surface(words=("vmla-train", "inspect", "wan.pt"), files={"wan.pt": "pickle"}),
    Surface(words=("vmla-train", "convert", "--from", "wan.safetensors", "--recipe", "debug", "--dry-run"),
            files={"wan.safetensors": "safetensors"}),
    Surface(words=("vmla-train", "convert", "--from", "wan", "--recipe", "debug", "--dry-run"),
            files={"wan/config.json": "json", "wan/diffusion_pytorch_model.safetensors": "safetensors"}),
    Surface(words=("vmla-train", "convert", "--from", "wan.pt", "--recipe", "debug", "--dry-run"),
            files={"wan.pt": "pickle"}),
    Surface(words=("vmla-train", "convert", "--from", "wan.pt", "--map", "map.yaml", "--dry-run"),
            whole=False, files={"map.yaml": "yaml"}),
    Surface(words=("vmla-train", "run", "debug", "-o", "run", "--until", "codec", "--stop-after", "1"),
            files={"run/codec.pt": "pickle"}, seconds=60.0, share=3, own="run/", makes=True),
    Surface(words=("vmla-train", "stage", "forcing", "--recipe", "debug", "--from", "checkpoint", "--data",
                   "clips", "-o", "out/stage"), whole=False, share=3, seconds=60.0,
            files={"clips/clips.json": "json", "clips/clips-0000000.safetensors": "safetensors",
                   "clips/negative.safetensors": "safetensors"}),
)  # fmt: skip
