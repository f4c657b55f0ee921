"""Every command of docs/training.md runs, in order, on a model of a few thousand parameters."""

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from kit.files.videos import write_video
from kit.references.wan import wan_transformer
from kit.tiny.models import randomise

import bench.cli
import runtime.cli.run
import vmla.train.cli.commands
from vmla.config import named_config
from vmla.train.stages.codec import with_statistics
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

DOCUMENT = Path(__file__).parents[3] / "docs" / "training.md"
PROGRAMS = {
    "vmla-train": vmla.train.cli.commands.main,
    "vmla-run": runtime.cli.run.main,
    "vmla-bench": bench.cli.main,
}
LAUNCHED = "torchrun --nproc-per-node 8 --no-python "
SMALL = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan", "--recipe wan-1.3b": "--recipe debug", "--device cuda": "",
    "--minutes 1": "--seconds 1", "--accumulate 16": "--accumulate 2", "--recipe mini": "--recipe debug",
    "run mini ": "run debug ", "pack mini ": "pack debug ", "--gpus 8": "--gpus 2",
    "--samples 200": "--samples 2", "study mini ": "study debug --seeds 1 --only inits ",
    "conversion mini ": "conversion debug --heal 1 --only whiten ", "runs/study/mini/": "runs/study/debug/",
    "--recipe sprites": "--recipe debug", "--from sprites ": "--from ./small ",
    "--with sprites": "--with small", "--teacher sprites": "--teacher small",
    "--start sprites": "--start small", "render sprites": "render debug", "--clips 2048": "--clips 3",
    "bench layouts ": "bench layouts --prompts 2 --seconds 4,12 ",
}  # fmt: skip
"""What is written otherwise for the small model. `torchrun` is left out: `test_parallel` has it."""


def commands():
    blocks = re.findall(r"^```\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def small(line):
    line = line.removeprefix(LAUNCHED)
    for written, instead in SMALL.items():
        line = line.replace(written, instead)
    if line.startswith("vmla-train convert") and "--from wan " in line:
        line += " --recipe debug" + ("" if "--layout mha" in line else " --clips 1")
    if line.startswith("vmla-train encode"):
        line += " --frames 9"
    return shlex.split(line)


@pytest.fixture
def here(tmp_path, monkeypatch, checkpoint):
    """A folder with a small Wan pipeline, videos and prompts, in which commands run."""
    config = named_config("debug", layout="mha")
    shutil.copytree(checkpoint, tmp_path / "small")
    (tmp_path / "small" / "training.json").write_text('{"recipe": "debug", "stages": {}}')
    shutil.copytree(checkpoint, tmp_path / "wan", ignore=shutil.ignore_patterns("transformer", "scheduler"))
    randomise(wan_transformer(config)).save_pretrained(tmp_path / "wan" / "transformer")
    (tmp_path / "videos").mkdir()
    for name in "abc":
        write_video(tmp_path / "videos" / f"{name}.mp4", frames=40)
        (tmp_path / "videos" / f"{name}.txt").write_text(f"a red star {name}")
    (tmp_path / "prompts.txt").write_text("a red star\na blue ring\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vmla.train.run.with_statistics", partial(with_statistics, clips=16, frames=4))
    monkeypatch.setattr("bench.studies.trial.PARTS", 1)
    return tmp_path


def test_the_document_says_what_can_be_done(here):
    lines = commands()
    assert len(lines) > 15
    assert {shlex.split(line.removeprefix(LAUNCHED))[0] for line in lines} == set(PROGRAMS)
    for line in lines:
        program, *arguments = small(line)
        result = CliRunner().invoke(PROGRAMS[program], arguments)
        assert result.exit_code == 0, (line, result.output[-500:], result.exception)
    assert (here / "minute.mp4").stat().st_size > 0
    assert (here / "runs" / "mini" / "samples" / "denoiser-0000004.png").stat().st_size > 0
    assert "inits" in (here / "report" / "report.md").read_text()
    distilled = ("wan/distribution", "wan/long", "mini-distribution", "mini-long", "sprites-mla-distribution")
    for folder in distilled:
        assert open_checkpoint(here / "runs" / folder / "checkpoint").sampler().steps == 4
    for layout in ("mla", "mha"):
        sibling = open_checkpoint(here / "runs" / f"sprites-{layout}-forcing" / "checkpoint")
        assert sibling.model_config().layout == layout
    packed = open_checkpoint(here / "runs" / "sprites-4")
    assert packed.sampler().steps == 4
    stages = json.loads((packed.folder / "training.json").read_text())["stages"]
    assert stages.keys() == {"forcing", "consistency", "distribution"}
    assert all(stage["steps"] > 0 for stage in stages.values())


def test_what_is_launched_in_processes_is_a_stage():
    launched = [line for line in commands() if not line.startswith("vmla-")]
    assert len(launched) == 4
    assert all(line.startswith(LAUNCHED + "vmla-train stage ") for line in launched)
