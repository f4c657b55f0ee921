"""A learned vector for each place of the picture: off unless asked for, and then it is everywhere."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.references.equations import Equations
from kit.tiny.checkpoints import debug_checkpoint
from kit.tiny.models import draw, tiny_config, tiny_model
from kit.tiny.passes import pass_inputs, window_at

from export.lowering.trace import trace_step
from export.onnx.decompositions import decomposed
from plugins.errors import UserError
from vmla.cache import CacheSpec
from vmla.config import MODEL_CONFIGS, ModelConfig, named_config
from vmla.train.cli.commands import main
from vmla.train.objectives.teacher_forcing import Forcing, forcing_loss, forcing_loss_at_once
from vmla.train.optim.optimizers import Optimizers, TrainingSchedule
from vmla.train.stages.denoiser import initialised
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.source import open_source, published

pytestmark = pytest.mark.cpu

TABLE = "position_embedding"
LAYOUTS = ["mla", "mha"]
BATCH = 2


def test_it_is_off_unless_asked_for():
    assert [name for name, config in MODEL_CONFIGS.items() if config.position_table] == ["sprites"]
    without, with_one = (VideoMLA(tiny_config(position_table=on)).state_dict() for on in (False, True))
    assert with_one.keys() - without.keys() == {TABLE}
    config = tiny_config()
    assert with_one[TABLE].shape == (config.tokens_per_frame, config.inner_dim)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_it_is_on_or_off_and_nothing_else(value):
    with pytest.raises(UserError, match=f"position_table is {value!r}"):
        ModelConfig.from_dict({**asdict(named_config("debug")), "position_table": value})


def test_everything_else_starts_as_without_one():
    models = []
    for on in (False, True):
        torch.manual_seed(0)
        models.append(VideoMLA(tiny_config(position_table=on)).state_dict())
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())
    assert 0.01 < models[1][TABLE].std() < 0.03


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_of_zeros_changes_no_bit(layout):
    without, with_one = tiny_model(layout=layout), VideoMLA(tiny_config(layout=layout, position_table=True))
    zeros = torch.zeros_like(with_one.position_embedding)
    with_one.load_state_dict({**without.state_dict(), TABLE: zeros})
    inputs = pass_inputs(without.config, 4, batch=BATCH)
    with torch.no_grad():
        for ours, theirs in zip(with_one(**inputs), without(**inputs), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cached_rollout_equals_one_full_masked_forward(layout):
    model = tiny_model(layout=layout, position_table=True)
    c, spec, frames = model.config, CacheSpec.of(model.config), 4 * model.config.chunk
    shape = (BATCH, c.in_channels, frames, c.sample_height, c.sample_width)
    clean, noisy, text = draw(*shape, seed=1), draw(*shape, seed=2), draw(BATCH, 5, 10, seed=3)
    timestep = 1000 * torch.rand(BATCH, frames, generator=torch.Generator().manual_seed(4))
    text_kv, cache, rolled = model.encode_text(text), spec.allocate(BATCH, dtype=torch.float32), []
    for number in range(4):
        part = slice(number * c.chunk, (number + 1) * c.chunk)
        window = window_at(spec, number)
        rolled.append(model(noisy[:, :, part], timestep[:, part], text_kv, cache, *window)[0])
        entries = model.entries(clean[:, :, part], torch.zeros(BATCH, c.chunk), text_kv, cache, *window)
        spec.commit_(cache, entries, part.start)
    expected = Equations(model).run(clean, noisy, timestep, text)[0][:, :, frames:]
    assert_close(torch.cat(rolled, dim=2), expected, rtol=1e-4, atol=1e-4)
    still = Equations(tiny_model(layout=layout)).run(clean, noisy, timestep, text)[0][:, :, frames:]
    assert (expected - still).abs().max() > 0.1


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [0, 7, 8, 9]], ids=str)
def test_a_clip_at_once_has_the_loss_and_gradient_of_a_rollout(numbers):
    losses, gradients = [], []
    for at_once in (False, True):
        model = tiny_model(position_table=True).requires_grad_(True)
        c, forcing = model.config, Forcing(copies=1, own_share=0.0)
        latents = draw(BATCH, c.in_channels, len(numbers) * c.chunk, c.sample_height, c.sample_width)
        rest = CacheSpec.of(c), latents, model.encode_text(draw(BATCH, 5, 10, seed=1)), numbers, forcing
        loss, run = (forcing_loss_at_once, model.forward_packed) if at_once else (forcing_loss, model)
        losses.append(loss(run, *rest, torch.Generator().manual_seed(3)))
        losses[-1].backward()
        gradients.append(model.position_embedding.grad)
    assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert gradients[0].abs().max() > 0
    assert_close(gradients[1], gradients[0], rtol=0, atol=1e-4 * float(gradients[0].abs().max()))


def test_training_starts_with_it_and_leaves_it_to_adamw():
    torch.manual_seed(0)
    model = initialised(VideoMLA(tiny_config(position_table=True)))
    assert 0.01 < model.position_embedding.std() < 0.03
    optimizers = Optimizers(model, TrainingSchedule(steps=2, learning_rate=1e-3, matrix_rate=1e-3, decay=1))
    adamw = {id(p) for group in optimizers._all[0].param_groups for p in group["params"]}
    assert id(model.position_embedding) in adamw
    assert id(model.blocks[0].ffn.up.weight) not in adamw


# Files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of the debug model with a table; read only."""
    return debug_checkpoint(tmp_path_factory.mktemp("table") / "debug", position_table=True)


def test_a_checkpoint_keeps_it(folder):
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["position_table"] is True
    opened = open_checkpoint(folder)
    assert opened.model_config() == replace(named_config("debug"), position_table=True)
    assert opened.transformer().position_embedding.std() > 0.1


def test_a_model_without_one_is_known_by_the_settings_it_had():
    sizes = named_config("debug").identity()
    assert "position_table" not in sizes
    assert ModelConfig.from_dict(sizes) == named_config("debug")
    assert replace(named_config("debug"), position_table=True).identity()["position_table"] is True


def test_it_survives_the_way_to_heads_and_back(folder, tmp_path):
    table, source = open_checkpoint(folder).transformer().position_embedding, folder
    for layout in ("mha", "mla"):
        command = ["convert", "--from", source, "--layout", layout, "-o", tmp_path / layout]
        result = CliRunner().invoke(main, [str(word) for word in command], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        source = tmp_path / layout
        made = open_checkpoint(source).transformer()
        assert made.config.layout == layout
        assert torch.equal(made.position_embedding, table)
        if layout == "mha":
            layers = json.loads((source / "conversion.json").read_text())["layers"]
            assert all(layer["output error"]["unfolded"] < 0.5 for layer in layers)


@pytest.mark.parametrize("on", [True, False])
def test_weights_under_other_names_say_whether_they_have_one(tmp_path, on):
    model = tiny_model(position_table=on)
    torch.save({"generator": published(model, wan=True)}, tmp_path / "model.pt")
    found = open_source(tmp_path / "model.pt", like=tiny_config(position_table=not on))
    assert found.config == model.config
    loaded = found.model().state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("form", ["exported", "decomposed"])
def test_an_exported_program_equals_the_model(folder, form):
    model = open_checkpoint(folder).transformer()
    program = trace_step(model, batch=BATCH)
    assert TABLE in program.state_dict
    run = (program if form == "exported" else decomposed(program)).module()
    for number in (0, 5):
        inputs = pass_inputs(model.config, number, batch=BATCH, seed=number)
        for ours, theirs in zip(run(*inputs.values()), model(**inputs), strict=True):
            assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
