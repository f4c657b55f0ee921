"""A distilled `.pt` and a Wan folder become a checkpoint that is sampled as its authors sample it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.references.equations import Equations
from kit.references.wan_folder import distilled, small_denoiser, small_wan, wan_folder
from kit.refusals import assert_one_line
from kit.tiny.models import draw

from plugins.errors import UserError
from runtime import VideoPipeline
from runtime.cli.run import main as run
from runtime.engines.base import EagerEngine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import rollout
from vmla.cache import CacheSpec
from vmla.scheduler import Sampler, keyed_noise
from vmla.train.cli.commands import main
from vmla.train.data.clips import open_clips
from vmla.train.data.encode import encode
from vmla.train.objectives.packed_clip import pack_clip
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.published.presets import PRESETS
from vmla.weights.source import published

pytestmark = pytest.mark.cpu

PROMPT = "a red star"


def convert(*arguments):
    return CliRunner().invoke(main, ["convert", "--sizes", "debug", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A distilled file, a Wan folder without a transformer of its own, and what the command makes of them."""
    folder = tmp_path_factory.mktemp("published")
    distilled(folder / "sf.pt", small_denoiser(), critic={"x": torch.ones(1)}, step=600)
    wan_folder(folder / "wan", transformer=False)
    result = convert(
        "--from", folder / "sf.pt", "--with", folder / "wan", "--preset", "self-forcing", "-o", folder / "sf"
    )
    assert result.exit_code == 0, result.output
    return folder


# Self-Forcing's sampler, written anew from its description: a scheduler of 1000 shifted timesteps, a list
# that indexes it, x0 at each step, fresh noise to the next, clean entries of what was made.


def self_forcing(model, text, *, steps, shift, warp, chunks, noise, wrapper_shift=None):
    """Latents [z, chunks * F, h, w] in float64, with absolute positions and all frames in the cache."""
    even = torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1]
    table = (wrapper_shift or shift) * even / (1 + ((wrapper_shift or shift) - 1) * even)
    times = 1000 * table
    told = torch.stack([times[1000 - s] for s in steps]) if warp else torch.tensor(steps).double()
    levels = [table[(times - t).abs().argmin()] for t in told]
    config, equations = model.config, Equations(model)
    size = config.chunk
    clean = torch.zeros(
        1, config.in_channels, chunks * size, config.sample_height, config.sample_width
    ).double()
    for number in range(chunks):
        part = slice(number * size, (number + 1) * size)
        latents = noise(number, 0)
        for step, (t, level) in enumerate(zip(told, levels, strict=True)):
            noisy = torch.zeros_like(clean)
            noisy[:, :, part] = latents
            time = torch.full((1, chunks * size), float(t))
            velocity = equations.run(clean, noisy, time, text)[0][:, :, chunks * size :][:, :, part]
            x0 = latents - level * velocity
            if step + 1 < len(told):
                latents = (1 - levels[step + 1]) * x0 + levels[step + 1] * noise(number, step + 1)
        clean[:, :, part] = x0
    return clean[0]


LISTS = {
    "self-forcing": {"steps": [1000, 750, 500, 250], "shift": 5, "warp": True},
    "videomla": {"steps": [1000, 750, 500, 250], "shift": 5, "warp": True},
    "causvid": {"steps": [1000, 757, 522], "shift": 8, "warp": False},
    "longlive": {"steps": [1000, 750, 500, 250], "shift": 5, "warp": True},
    "causal-forcing": {"steps": [1000, 750, 500, 250], "shift": 5, "warp": True},
    "causal-forcing-framewise": {"steps": [1000, 750, 500, 250], "shift": 5, "warp": True},
    "rolling-forcing": {"steps": [1000, 800, 600, 400, 200], "shift": 5, "warp": True},
}
"""Spelt out from their configurations, not from our table."""


def latents_of(folder, *, chunks, seed):
    """[z, chunks * F, h, w] of our rollout."""
    checkpoint, cpu = open_checkpoint(folder), torch.device("cpu")
    engine = EagerEngine(checkpoint.transformer(), checkpoint.text(), device=cpu, dtype=torch.float32)
    made = rollout(
        engine, NoDecoder(), FixedPrompts(PROMPT), checkpoint.sampler(), seeds=[seed], chunks=chunks
    )
    return torch.cat([chunk.frames[0].clone() for chunk in made]).transpose(0, 1)


def theirs_of(model, folder, name, *, chunks, seed):
    """The same of Self-Forcing's sampler, with our noise."""
    config = model.config
    shape = (config.in_channels, config.chunk, config.sample_height, config.sample_width)
    text = open_checkpoint(folder).text()([PROMPT])

    def noise(number, step):
        return keyed_noise(shape, seed=seed, chunk=number, step=step)[None].double()

    return self_forcing(model, text, **LISTS[name], chunks=chunks, noise=noise).float()


@pytest.mark.parametrize("name", ["self-forcing", "causvid"])
def test_the_same_seed_gives_the_latents_of_self_forcings_sampler(made, tmp_path, name):
    folder = made / "sf"
    if name != "self-forcing":
        folder = tmp_path / name
        parts = ("--from", made / "sf.pt", "--with", made / "wan", "--preset", name, "-o", folder)
        assert convert(*parts).exit_code == 0
    model = small_denoiser(chunk=3, sink=0, history=18)
    theirs = theirs_of(model, folder, name, chunks=3, seed=7)
    assert theirs.std() > 0.1
    assert_close(latents_of(folder, chunks=3, seed=7), theirs, rtol=1e-4, atol=1e-4)


def test_past_the_window_relative_positions_are_absolute_ones_where_there_is_no_sink(
    made, tmp_path, monkeypatch
):
    """Only differences of positions count, so that Self-Forcing's absolute ones give the same latents."""
    folder = shutil.copytree(made / "sf", tmp_path / "short")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"history": 3}))

    def absolute(config, number):
        made = number * config.chunk
        return {f: f for f in range(max(0, made - config.history), made)}, list(
            range(made, made + config.chunk)
        )

    monkeypatch.setattr("kit.references.equations.window_of", absolute)
    model = small_denoiser(chunk=3, sink=0, history=3)
    theirs = theirs_of(model, folder, "self-forcing", chunks=4, seed=3)
    assert_close(latents_of(folder, chunks=4, seed=3), theirs, rtol=1e-4, atol=1e-4)


def test_with_a_sink_absolute_positions_are_those_of_the_video_and_end_where_training_did(
    made, tmp_path, monkeypatch
):
    parts = ("--from", made / "sf.pt", "--with", made / "wan", "--preset", "longlive")
    assert convert(*parts, "--absolute-positions", 12, "-o", tmp_path / "absolute").exit_code == 0
    path = tmp_path / "absolute" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sink": 1, "history": 3}))

    def absolute(config, number):
        first = number * config.chunk
        kept = {*range(min(1, first)), *range(max(1, first - config.history), first)}
        return {f: f for f in sorted(kept)}, list(range(first, first + config.chunk))

    model = small_denoiser(chunk=3, sink=1, history=3)
    relative = theirs_of(model, tmp_path / "absolute", "longlive", chunks=4, seed=3)
    monkeypatch.setattr("kit.references.equations.window_of", absolute)
    theirs = theirs_of(model, tmp_path / "absolute", "longlive", chunks=4, seed=3)
    ours = latents_of(tmp_path / "absolute", chunks=4, seed=3)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - relative).abs().max() > 1e-2
    command = ("--prompt", PROMPT, "--checkpoint", tmp_path / "absolute", "--dry-run")
    plan = CliRunner().invoke(run, [str(a) for a in (*command, "--chunks", 4)])
    assert "positions 0 to 11, counted from the video's start" in plan.output
    refused = CliRunner().invoke(run, [str(a) for a in (*command, "--chunks", 5)])
    assert_one_line(refused, "trained for 12 latent frames", "convert it without --absolute-positions")
    with VideoPipeline.from_pretrained(tmp_path / "absolute") as pipeline:  # made for no length yet
        assert pipeline(PROMPT, num_frames=9, output_type="latent").frames.shape[2] == 3
        with pytest.raises(UserError, match="trained for 12 latent frames"):
            pipeline(PROMPT)


def test_training_sees_absolute_positions_as_the_rollout_does():
    spec = CacheSpec(sink=1, history=3, chunk=3, tokens_per_frame=1, entry_width=1, layers=1, absolute=True)
    clip = pack_clip(spec, range(4))
    assert clip.positions.tolist() == [*range(9), *range(12)]
    assert len(clip.repeated) == 0


def test_rolling_forcings_joint_window_is_named(made, tmp_path):
    parts = ("--from", made / "sf.pt", "--with", made / "wan", "-o", tmp_path / "rolling", "--preset")
    said = convert(*parts, "rolling-forcing")
    assert said.exit_code == 0
    assert "denoises five chunks at once" in said.output
    assert_one_line(convert(*parts, "rolling-forcing-joint"), "five chunks", "use --preset rolling-forcing")


def test_the_presets_negative_prompt_is_what_guidance_steers_away_from(made, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star\n")
    said = []
    how = {"frames": 1, "shard": 1, "device": "cpu"}
    encode(tmp_path / "prompts.txt", str(made / "sf"), tmp_path / "own", said.append, negative=None, **how)
    assert said[0].startswith("negative prompt of the preset: 色调艳丽")
    text = open_checkpoint(made / "sf").text()
    own = open_clips(tmp_path / "own", open_checkpoint(made / "sf").model_config(), video=False).negative
    assert torch.equal(own, text([PRESETS["self-forcing"].negative_prompt])[0].half())
    encode(tmp_path / "prompts.txt", str(made / "sf"), tmp_path / "told", said.append, negative="s", **how)
    told = open_clips(tmp_path / "told", open_checkpoint(made / "sf").model_config(), video=False).negative
    assert torch.equal(told, text(["s"])[0].half())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_timesteps_of_their_lists(name):
    """By the way of the authors' code: a list that indexes 1000 shifted timesteps, or says them itself."""
    listed, sampler = LISTS[name], PRESETS[name].sampler
    even = torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1]
    times = 1000 * listed["shift"] * even / (1 + (listed["shift"] - 1) * even)
    told = [float(times[1000 - s]) if listed["warp"] else s for s in listed["steps"]]
    assert sampler.timesteps().tolist() == pytest.approx(told, abs=1e-3)
    levels = [float(times[(times - t).abs().argmin()]) / 1000 for t in told]
    assert sampler.sigmas().tolist() == pytest.approx([*levels, 0], abs=1e-6)
    window = PRESETS[name].sink + PRESETS[name].history + PRESETS[name].chunk
    assert window == {"longlive": 12, "videomla": 10}.get(name, 21)


def test_what_lies_beside_the_model_is_said(made, tmp_path):
    held = {f"net.{name}": tensor for name, tensor in published(small_denoiser(), wan=True).items()}
    torch.save({**held, "step": np.int64(7), "logit_scale": torch.ones(1)}, tmp_path / "x.ckpt")
    result = convert("--from", tmp_path / "x.ckpt", "--with", made / "wan", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "left out, not of the transformer: logit_scale and 1 others" in result.output
    assert "no --preset: sampled with 50 steps of Euler" in result.output


def test_the_checkpoint_is_whole_and_says_where_it_is_from(made):
    checkpoint = open_checkpoint(made / "sf")
    config = checkpoint.model_config()
    assert config == small_wan(sink=0, history=18, chunk=3)
    ours, theirs = checkpoint.transformer().state_dict(), small_denoiser().state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert checkpoint.sampler() == Sampler(kind="renoise", steps=4, shift=5.0)
    note = json.loads((made / "sf" / "model_index.json").read_text())["preset"]
    assert note["name"] == "self-forcing"
    assert note["negative_prompt"].startswith("色调艳丽，过曝，静态")
    assert "33593df" in note["source"]
    assert checkpoint.codec().spatial_ratio == 8


@pytest.mark.parametrize("layout", ["mha", "mla"])
def test_the_runner_makes_a_video_of_it(made, tmp_path, layout):
    folder = made / "sf"
    if layout == "mla":
        folder = tmp_path / "mla"
        result = convert(
            "--from", made / "sf.pt", "--with", made / "wan", "--preset", "self-forcing", "--layout", "mla",
            "--clips", 1, "-o", folder,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    assert open_checkpoint(folder).model_config().layout == layout
    video = tmp_path / "x.mp4"
    arguments = ["--checkpoint", str(folder), "--prompt", PROMPT, "--chunks", "2", "-o", str(video)]
    result = CliRunner().invoke(run, arguments)
    assert result.exit_code == 0, result.output
    assert video.stat().st_size > 0


def test_parts_come_over_as_variants_and_as_pickles(made, tmp_path):
    expected = open_checkpoint(made / "sf")
    latents = draw(1, 4, 2, 2, 2)
    for name, how in (("variant", {"variant": "fp16"}), ("bin", {"safe": False})):
        wan_folder(tmp_path / name, transformer=False, **how)
        result = convert(
            "--from", made / "sf.pt", "--with", tmp_path / name, "--preset", "self-forcing",
            "-o", tmp_path / f"{name}-out",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        got = open_checkpoint(tmp_path / f"{name}-out")
        assert torch.equal(got.codec().decode(latents)[0], expected.codec().decode(latents)[0])
        assert torch.equal(got.text()([PROMPT]), expected.text()([PROMPT]))


def test_ti2vs_folder_becomes_a_video_of_cells_of_sixteen(tmp_path):
    config = small_wan(in_channels=6)
    wan_folder(tmp_path / "ti2v", config=config, residual=True)
    result = convert("--from", tmp_path / "ti2v", "--layout", "mha", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    latents = draw(1, 6, 1, config.sample_height, config.sample_width)
    assert open_checkpoint(tmp_path / "out").codec().decode(latents)[0].shape == (1, 1, 3, 128, 128)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"--preset": "self-forcng"}, "no such preset: self-forcng; there are videomla, self-forcing"),
        ({"--with": "release"}, "lacks models_t5_umt5-xxl-enc-bf16.pth; give the whole folder"),
        ({"--with": "bare"}, "has no text_encoder; give a whole pipeline folder"),
        ({"--with": "other"}, "has 6 latent channels, the transformer 4"),
        ({"--with": "wide"}, "is 40 wide, the transformer reads 32"),
        ({"--part": "generator"}, "has no part generator; it has generator_ema, critic"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(made, tmp_path, change, complaint):
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "Wan2.1_VAE.pth").write_bytes(b"")
    (tmp_path / "bare" / "vae").mkdir(parents=True)
    wan_folder(tmp_path / "other", config=small_wan(in_channels=6), transformer=False)
    wan_folder(tmp_path / "wide", config=small_wan(text_dim=40), transformer=False)
    options = {
        "--from": made / "sf.pt", "--with": made / "wan", "--preset": "self-forcing", "-o": tmp_path / "out",
    }  # fmt: skip
    options |= {key: tmp_path / value if key == "--with" else value for key, value in change.items()}
    result = convert(*(word for pair in options.items() for word in pair))
    assert result.exit_code == 2
    assert complaint in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def halve(path):
    content = path.read_bytes()
    path.unlink()  # which may be a second name of a file
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("part", "harm", "complaint"),
    [
        ("vae/diffusion_pytorch_model.safetensors", halve, "is damaged (its tensors take"),
        ("text_encoder/model.safetensors", halve, "is damaged (its tensors take"),
        ("text_encoder/model.safetensors", Path.unlink, "text_encoder lacks"),
        ("tokenizer/tokenizer.json", Path.unlink, "tokenizer lacks tokenizer.json; copy the whole folder"),
        ("vae/config.json", halve, "config.json is not valid JSON"),
    ],
)
def test_a_download_that_was_broken_off_is_found_before_anything_is_written(
    made, tmp_path, part, harm, complaint
):
    shutil.copytree(made / "sf", tmp_path / "wan")
    harm(tmp_path / "wan" / part)
    out = ("-o", tmp_path / "out")
    assert_one_line(convert("--from", made / "sf.pt", "--with", tmp_path / "wan", *out), complaint)
    ours = ["convert", "--from", str(tmp_path / "wan"), *map(str, out)]
    assert_one_line(CliRunner().invoke(main, ours), complaint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wan"]


def test_what_the_result_lacks_is_said_by_both_commands(made, tmp_path):
    result = convert("--from", made / "sf.pt", "--preset", "videomla", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "the result has no vae, text_encoder, tokenizer, without which it makes no video" in result.output
    assert "videomla is a preset for layout mla; these weights have layout mha and keep it" in result.output
    command = ("--checkpoint", str(tmp_path / "out"), "--prompt", PROMPT, "-o", str(tmp_path / "x.mp4"))
    assert_one_line(CliRunner().invoke(run, command), "convert again with a Wan folder for --with")
    shutil.copytree(made / "wan", tmp_path / "wan")
    (tmp_path / "wan" / "transformer").mkdir()
    (tmp_path / "wan" / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    for name in (tmp_path / "wan", made / "sf.pt"):
        command = ("--checkpoint", str(name), "--prompt", PROMPT, "-o", str(tmp_path / "x.mp4"))
        assert_one_line(CliRunner().invoke(run, command), f"vmla-train convert --from {name} -o FOLDER")


def test_another_number_of_steps_than_its_list_is_refused():
    sampler = PRESETS["causvid"].sampler
    assert Sampler(**json.loads(json.dumps(sampler.settings()))) == sampler
    assert "timestep_list" not in Sampler().settings()
    with pytest.raises(UserError, match="4 steps, but this model has 3 timesteps of its own"):
        replace(sampler, steps=4)
    with pytest.raises(UserError, match="do not fall from 1000"):
        Sampler(steps=2, timestep_list=(500, 700))
