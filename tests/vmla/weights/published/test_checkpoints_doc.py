"""Every command of docs/checkpoints.md runs, on small models of the kinds that it names."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.files.videos import write_picture, write_video
from kit.references.wan_folder import distilled, small_denoiser, small_wan, wan_folder
from kit.stand_ins.hub import StandInHub
from kit.tiny.models import draw, randomise
from safetensors.torch import save_file

import bench.cli
import runtime.cli.run
import vmla.train.cli.commands
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.key_mapping import LATENT
from vmla.weights.published.presets import PRESETS
from vmla.weights.source import published

pytestmark = pytest.mark.cpu

DOCUMENT = Path(__file__).parents[4] / "docs" / "checkpoints.md"
PROGRAMS = {"vmla-train": vmla.train.cli.commands.main, "vmla-run": runtime.cli.run.main,
            "vmla-bench": bench.cli.main}  # fmt: skip
HUB = re.compile(r"[\w-]+/([\w.-]+)(?::([\w./-]+))?")
"""A repository, and a file of it: what the test has under the repository's or the file's own name."""
THEIRS = {"down_kv": "kv_a_proj", "norm_kv": "kv_a_layernorm", "up_k": "k_b_proj", "up_v": "v_b_proj",
          "rotary_k": "k_rope_proj", "down_q": "q_a_proj", "norm_q": "q_a_layernorm", "up_q": "q_b_proj",
          "rotary_q": "q_rope_proj", "to_out": "o_proj"}  # fmt: skip


def blocks():
    """The fenced blocks of the document, each a list of commands."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return [block.splitlines() for language, block in found if not language]


def small(line):
    """The same command for a small model."""
    if line.startswith("vmla-train push"):
        return shlex.split(line)
    words = [
        (found[2] or found[1]).replace("/", "_")
        if (found := HUB.fullmatch(word)) and not Path(word).exists()
        else word
        for word in shlex.split(line)
    ]
    line = shlex.join(words)
    if line.startswith("vmla-bench"):
        return shlex.split(line.replace("--seconds 5", "--seconds 0.5"))
    for length, chunks in (("--minutes 3", 1), ("--seconds 5", 1), ("--seconds 10", 2)):
        line = line.replace(length, f"--chunks {chunks}")
    if line.startswith("vmla-train convert"):
        line += " --sizes debug" + (" --heads 2" if "--map auto" in line else "")
    if line.startswith("vmla-train codec"):
        line += " --steps 2 --clips 1"
    return shlex.split(line + (" --heads 2" if line.startswith("vmla-train inspect") else ""))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Everything that the document downloads, in one folder."""
    here = tmp_path_factory.mktemp("files")
    wan_folder(here / "Wan2.1-T2V-1.3B-Diffusers")
    wan_folder(here / "Wan2.2-TI2V-5B-Diffusers", config=small_wan(in_channels=6), residual=True)
    wan_folder(here / "wan-in-half", variant="fp16")
    model = small_denoiser()
    for name in (
        "checkpoints_self_forcing_dmd.pt", "models_longlive_base.pt", "chunkwise_causal_forcing.pt",
        "framewise_causal_forcing.pt", "checkpoints_rolling_forcing_dmd.pt",
    ):  # fmt: skip
        distilled(here / name, model, wrap="model._fsdp_wrapped_module.{}")
    distilled(here / "autoregressive_checkpoint_model.pt", model, part="generator")
    lora = {"base_model.model.model.blocks.0.self_attn.q.lora_A.weight": draw(2, 64),
            "base_model.model.model.blocks.0.self_attn.q.lora_B.weight": draw(64, 2)}  # fmt: skip
    torch.save({"generator_lora": lora, "step": 3000}, here / "models_lora.pt")
    latent = randomise(VideoMLA(replace(small_wan(), layout="mla")))
    theirs = published(latent, wan=True, latent={**LATENT, **THEIRS})
    held = {"generator_ema": {f"model.{name}": tensor for name, tensor in theirs.items()}}
    for name in ("stage3_la6_sink1_model.pt", "model.pt"):
        torch.save(held, here / name)
    single = {f"model.diffusion_model.{n}": t.half() for n, t in published(model, wan=True).items()}
    save_file(single, here / "wan2.1_t2v_1.3B_fp16.safetensors")
    write_picture(here / "picture.png")
    (here / "prompts.txt").write_text("a red star\n")
    (here / "clips").mkdir()
    write_video(here / "clips" / "one.mp4", frames=24)
    (here / "clips" / "one.txt").write_text("a red star")
    return here


@pytest.fixture(scope="module")
def hub():
    """What takes that which is pushed."""
    with StandInHub() as hub:
        yield hub


@pytest.mark.parametrize("lines", blocks(), ids=lambda lines: shlex.split(lines[-1])[-1])
def test_every_kind_of_checkpoint_becomes_a_video(files, hub, monkeypatch, lines):
    monkeypatch.chdir(files)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    for line in lines:
        program, *arguments = small(line)
        result = CliRunner().invoke(PROGRAMS[program], arguments)
        assert result.exit_code == 0, (line, result.output[-500:], result.exception)
    if program == "vmla-bench":
        assert [path.name for path in (files / arguments[1] / "videos").iterdir()] == ["a red star-0.mp4"]
        return
    folder, video = arguments[1], arguments[-1]
    assert (files / video).stat().st_size > 0
    preset = re.search(r"--preset ([\w-]+)", " ".join(lines))
    if preset is not None:
        assert open_checkpoint(files / folder).sampler() == PRESETS[preset[1]].sampler


def test_the_lines_for_python_run(files, monkeypatch):
    monkeypatch.chdir(files)
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    names = {}
    exec(code.replace("81", "9"), names)  # noqa: S102 - the document's own
    assert names["frames"].shape == (9, 64, 64, 3)


def test_every_preset_is_led_to_a_video():
    told = {match for lines in blocks() for match in re.findall(r"--preset ([\w-]+)", " ".join(lines))}
    assert told == set(PRESETS)
