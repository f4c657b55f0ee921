"""Calibration: what is watched, kept, refused; and the list of layers that it is not for."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from kit.tiny.models import tiny_config, tiny_model
from kit.tiny.passes import pass_inputs
from torch import nn

from export.layers import by_precision, layers_of
from export.lowering.calibration import Calibration, calibrate, draw_rollouts, observed
from export.lowering.exclusions import EXCLUDED, ends, reason_to_exclude
from export.settings import Settings
from plugins.errors import UserError
from runtime.cli.export import main
from runtime.rollout.calibration import drive
from vmla.config import named_config
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

SHORT = {"prompts": 2, "chunks": 2}


@pytest.fixture(scope="module")
def opened(checkpoint):
    return open_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def calibration(opened):
    """Of the debug model, short."""
    return calibrate(opened.transformer(), opened, draw_rollouts(opened, **SHORT), drive)


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_the_largest_input_of_each_layer_is_seen(layout, monkeypatch):
    model, wanted = tiny_model(layout=layout), {}
    plain = nn.Linear.forward
    names = {part: name for name, part in model.named_modules()}

    def forward(self, x):
        wanted.setdefault(names[self], []).append(max(x.min().abs().item(), x.max().abs().item()))
        return plain(self, x)

    monkeypatch.setattr(nn.Linear, "forward", forward)
    with observed(model) as seen:
        for number in (0, 4):
            model(**pass_inputs(model.config, number, seed=number))
    layers = {name: (n, float(value)) for name, (n, value) in seen.items() if name in names.values()}
    assert layers == {name: (2, max(values)) for name, values in wanted.items()}
    model(**pass_inputs(model.config, 1))  # nobody watches any more
    assert {count for count, _ in seen.values()} == {2}


def test_every_pass_of_every_chunk_is_watched(calibration, opened):
    # The last chunk needs no clean pass.
    assert calibration.passes == 2 * (opened.sampler().steps + 1) - 1
    assert calibration.model_hash == opened.model_hash()
    assert {"blocks.1.ffn.up", "proj_out", "blocks.0.attn2.to_k"} <= calibration.largest.keys()
    assert all(value > 0.1 for value in calibration.largest.values())


def test_it_depends_on_its_seed_alone(calibration, opened):
    again = calibrate(opened.transformer(), opened, draw_rollouts(opened, **SHORT), drive)
    assert again == calibration
    assert again.digest == calibration.digest
    other = calibrate(opened.transformer(), opened, draw_rollouts(opened, **SHORT, seed=1), drive)
    assert other.digest != calibration.digest


def test_sprites_are_asked_for_in_their_own_words(opened):
    sprites = open_checkpoint("sprites")
    prompts = draw_rollouts(sprites, prompts=5).prompts
    assert len(set(prompts)) == 5
    assert all(" on a " in prompt for prompt in prompts)
    assert draw_rollouts(sprites, prompts=5, seed=1).prompts != prompts
    assert len(draw_rollouts(opened, prompts=9).prompts) == 9


def test_what_is_written_is_read(calibration, tmp_path):
    path = tmp_path / "calibration.json"
    calibration.write(path)
    assert Calibration.read(path) == calibration
    assert [entry.name for entry in tmp_path.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"rollouts": {"prompts": []}}'])
def test_what_is_no_calibration_is_refused(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(
        UserError, match="calibration.json (is no|is not valid JSON|does not hold).*; make one with: "
    ):
        Calibration.read(path)


def test_one_of_other_weights_or_fewer_layers_is_refused(calibration):
    own = calibration.model_hash
    assert calibration.of_layers(["proj_out"], own) == {"proj_out": calibration.largest["proj_out"]}
    with pytest.raises(UserError, match="is of other weights"):
        calibration.of_layers(["proj_out"], "0" * 64)
    with pytest.raises(UserError, match="lacks blocks.7.ffn.up"):
        calibration.of_layers(["blocks.7.ffn.up"], own)


def test_inputs_that_are_not_finite_are_refused(opened):
    def lost(model, checkpoint, prompts, *, seed, chunks):
        model.proj_out(torch.full((1, 64), torch.nan))

    with pytest.raises(UserError, match="inputs of proj_out are not finite"):
        calibrate(opened.transformer(), opened, draw_rollouts(opened), lost)


def test_the_command_writes_and_reports_it(checkpoint, calibration, tmp_path):
    path = tmp_path / "calibration.json"
    options = ["--checkpoint", checkpoint, "--prompts", 2, "--chunks", 2, "-o", path]
    result = CliRunner().invoke(main, ["calibrate", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert Calibration.read(path) == calibration
    assert "calibrated on 2 prompts, 2 chunks, 5 passes, seed 0; largest inputs:" in result.output
    assert f"sha256 {calibration.digest}" in result.output
    assert "ffn.down: " in result.output


def test_a_gpu_that_is_not_here_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["--checkpoint", str(checkpoint), "--device", "cuda", "-o", str(tmp_path / "x.json")]
    result = CliRunner().invoke(main, ["calibrate", *options])
    assert result.exit_code == 2
    assert "no device 'cuda' here" in result.output


def test_a_model_of_which_no_layer_can_be_quantised_is_refused():
    with pytest.raises(UserError, match="no linear layer of this model can be in fp8; use fp32"):
        by_precision(tiny_config(attention_head_dim=20), Settings(backend="onnx", precision="fp8"))
    assert by_precision(
        tiny_config(attention_head_dim=20), Settings(backend="onnx", precision="fp32")
    ).keys() == {"fp32"}


def test_a_calibration_of_another_model_builds_nothing(checkpoint, calibration, tmp_path):
    path = tmp_path / "calibration.json"
    replace(calibration, model_hash="0" * 64).write(path)
    command = ["build", "--checkpoint", checkpoint, "--backend", "onnx", "--precision", "fp8"]
    options = ["--calibration", path, "-o", tmp_path / "engine"]
    result = CliRunner().invoke(main, [str(word) for word in (*command, *options)])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("Error: the calibration is of other weights")
    assert [entry.name for entry in tmp_path.iterdir()] == ["calibration.json"]
    assert json.loads(path.read_text())["passes"] == 5


def test_every_reason_to_exclude_is_one_of_some_layer():
    found = set()
    for layout in ("mla", "mha"):
        for name, shape in layers_of(named_config("wan-1.3b", layout=layout)).items():
            found.add(reason_to_exclude(name, shape, 30))
    assert set(EXCLUDED.values()) < found
    assert None in found


@pytest.mark.parametrize(("blocks", "edge"), [(2, 0), (6, 1), (30, 2), (40, 3)])
def test_blocks_at_the_ends_are_excluded(blocks, edge):
    assert ends(blocks) == edge
    kept = [n for n in range(blocks) if reason_to_exclude(f"blocks.{n}.ffn.up", (64, 32), blocks) is None]
    assert kept == list(range(edge, blocks - edge))


def test_widths_that_tensor_cores_do_not_take_are_excluded():
    assert reason_to_exclude("blocks.1.ffn.up", (64, 24), 3).startswith("its widths")
