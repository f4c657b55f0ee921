"""Training resumes bit for bit wherever it stopped, and refuses what belongs to another recipe."""

import dataclasses
import json

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import draw

from plugins.errors import UserError
from vmla.train.data.latents import LatentSet, LatentSettings, make_latents
from vmla.train.loop.log import last_record
from vmla.train.loop.loop import train
from vmla.train.loop.state import load_state, save_state
from vmla.train.optim.optimizers import Optimizers, TrainingSchedule
from vmla.train.recipes.from_scratch import PRETRAINING_RECIPES, pretraining_recipe
from vmla.train.stages.codec import CodecStage
from vmla.train.stages.denoiser import DenoiserStage
from vmla.train.stages.text_encoder import TextStage

pytestmark = pytest.mark.cpu

DEBUG = PRETRAINING_RECIPES["debug"]


def latent_set():
    model, settings = DEBUG.model, DEBUG.latents
    latents = draw(
        settings.clips, model.in_channels, settings.frames, model.sample_height, model.sample_width
    )
    text = draw(settings.clips, model.text_tokens, model.text_dim, seed=1)
    return LatentSet(latents.half(), text.half(), {"made": "here"})


def codec_stage(training=DEBUG.codec_training):
    return CodecStage(DEBUG.codec, training)


def text_stage(training=DEBUG.text_training):
    return TextStage(DEBUG.text, DEBUG.model.text_tokens, training)


def denoiser_stage(training=DEBUG.denoiser_training):
    return DenoiserStage(DEBUG.model, training, latent_set())


STAGES = {"codec": codec_stage, "text": text_stage, "denoiser": denoiser_stage}


@pytest.fixture(params=STAGES)
def make(request):
    """What makes a fresh stage."""
    return STAGES[request.param]


def silent(message):
    """Where reports go that nobody reads."""


def run(stage, folder, **how):
    return train(stage, folder, report=silent, **how)


def assert_same(one, other):
    """Two trees of tensors and values, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def everything(folder, name):
    """A state without its clock, and the losses that were logged."""
    state = torch.load(folder / f"{name}.pt", weights_only=True)
    del state["seconds"]
    log = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return state, [(line["step"], line["loss"], line["rate"]) for line in log]


# Stopping and going on


def test_two_steps_and_two_more_are_four(make, tmp_path):
    whole = run(make(), tmp_path / "whole")
    assert run(make(), tmp_path / "parts", stop_after=2) is None
    assert last_record(tmp_path / "parts" / f"{make().name}.jsonl")["step"] == 2
    assert_same(run(make(), tmp_path / "parts"), whole)
    name = make().name
    assert_same(everything(tmp_path / "parts", name), everything(tmp_path / "whole", name))


class Killed(BaseException):
    """No error that anyone catches."""


def test_killed_between_two_saves_it_goes_on_from_the_last(make, tmp_path):
    whole = run(make(), tmp_path / "whole")
    stage = make()
    inner = stage.loss

    def loss(step):
        if step == 3:
            raise Killed
        return inner(step)

    stage.loss = loss
    with pytest.raises(Killed):
        run(stage, tmp_path / "parts")
    log = tmp_path / "parts" / f"{stage.name}.jsonl"
    log.write_text(log.read_text() + '{"step": 4, "lo')  # what a kill leaves of a line
    assert last_record(log)["step"] == 3
    assert_same(run(make(), tmp_path / "parts"), whole)
    assert_same(everything(tmp_path / "parts", stage.name), everything(tmp_path / "whole", stage.name))


def test_a_finished_stage_is_left_as_it_is(make, tmp_path):
    average = run(make(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert_same(run(make(), tmp_path), average)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_parameter_learns(make, tmp_path):
    start = {name: tensor.detach().clone() for name, tensor in make().model.named_parameters()}
    stage = make()
    average = run(stage, tmp_path)
    for name, tensor in stage.model.named_parameters():
        assert not torch.equal(tensor, start[name]), name
        assert torch.isfinite(average[name]).all(), name


def test_the_average_follows_the_weights(tmp_path):
    """With decay 1 - 1 / (1 + step / 10) while that is less than the schedule's."""
    stage = text_stage()
    expected = {name: tensor.detach().clone() for name, tensor in stage.model.named_parameters()}
    for step in range(1, 5):
        run(stage := text_stage(), tmp_path, stop_after=1)
        decay = min(stage.schedule.average, 1 - 1 / (1 + step / 10))
        for name, tensor in stage.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.detach()
    average = run(text_stage(), tmp_path)
    for name, tensor in expected.items():
        assert_close(average[name], tensor, rtol=1e-4, atol=1e-6)


# Refusals


@pytest.mark.parametrize("change", [{"learning_rate": 2e-3}, {"steps": 5}, {"matrix_rate": None}], ids=str)
def test_the_state_of_another_recipe_is_refused(tmp_path, change):
    run(codec_stage(), tmp_path, stop_after=1)
    schedule = dataclasses.replace(DEBUG.codec_training.schedule, **change)
    other = codec_stage(dataclasses.replace(DEBUG.codec_training, schedule=schedule))
    (key,) = change
    with pytest.raises(UserError, match=rf"codec.pt was made with training.schedule.{key} = ") as caught:
        run(other, tmp_path)
    assert "use another output folder or remove that file" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("left", [0, 1, 100, -1, -1000])
def test_a_truncated_state_is_refused_in_one_line(tmp_path, left):
    save_state(tmp_path / "a.pt", {"settings": {"a": 1}, "numbers": draw(1000)})
    assert torch.equal(load_state(tmp_path / "a.pt", {"a": 1})["numbers"], draw(1000))
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[:left])
    with pytest.raises(UserError, match="a.pt is damaged; remove it to train this part again") as caught:
        load_state(tmp_path / "a.pt", {"a": 1})
    assert "\n" not in str(caught.value)


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    save_state(tmp_path / "a.pt", {"settings": {}, "step": 1})

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_state(tmp_path / "a.pt", {"settings": {}, "step": 2})
    assert load_state(tmp_path / "a.pt", {})["step"] == 1


def test_what_is_no_state_is_refused(tmp_path):
    assert load_state(tmp_path / "none.pt", {}) is None
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="list.pt is damaged"):
        load_state(tmp_path / "list.pt", {})


def test_a_recipe_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="no such training recipe: large; there are debug, mini, sprites"):
        pretraining_recipe("large")


@pytest.mark.parametrize("recipe", PRETRAINING_RECIPES.values(), ids=lambda recipe: recipe.name)
def test_the_parts_of_a_recipe_fit_together(recipe):
    assert recipe.codec.latent_channels == recipe.model.in_channels
    assert recipe.text.width == recipe.model.text_dim
    chunks = recipe.latents.frames // recipe.model.chunk
    assert recipe.denoiser_training.chunks <= chunks
    assert recipe.denoiser_training.clips <= recipe.latents.clips
    # A rollout of training meets a full window, and a jump is possible.
    frames = recipe.denoiser_training.chunks * recipe.model.chunk
    assert frames > recipe.model.sink + recipe.model.history
    assert chunks > recipe.denoiser_training.chunks


# Optimizers


SCHEDULE = TrainingSchedule(steps=100, learning_rate=1e-2, warmup=10, decay=30)


def test_rates_rise_stay_and_fall():
    factors = [Optimizers(torch.nn.Linear(2, 2), SCHEDULE).factor(step) for step in range(100)]
    assert_close(torch.tensor(factors[:10]), torch.arange(1, 11) / 10, rtol=1e-6, atol=0)
    assert set(factors[10:70]) == {1.0}
    assert_close(torch.tensor(factors[70:]), torch.arange(30, 0, -1) / 30, rtol=1e-6, atol=0)


def test_a_step_beyond_the_schedule_is_refused_and_does_not_go_uphill():
    with pytest.raises(ValueError, match="step 100 of a schedule of 100"):
        Optimizers(torch.nn.Linear(2, 2), SCHEDULE).factor(100)


def loss_of(model):
    x = draw(5, 3, 4, 4)
    return (model(x).flatten(1) @ draw(2 * 16, 1, seed=1)).square().mean()


class Small(torch.nn.Module):
    """A convolution that Muon leaves, one that it takes, and a bias each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 4, 1)
        self.blocks = torch.nn.ModuleList([torch.nn.Conv2d(4, 2, 3, padding=1)])

    def forward(self, x):
        return self.blocks[0](self.first(x))


def test_without_a_matrix_rate_it_is_adamw():
    ours, theirs = Small(), Small()
    optimizers = Optimizers(ours, SCHEDULE)
    adamw = torch.optim.AdamW(theirs.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(12):
        loss_of(ours).backward()
        optimizers.step(step)
        assert all(parameter.grad is None for parameter in ours.parameters())
        adamw.zero_grad()
        loss_of(theirs).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.param_groups[0]["lr"] = 1e-2 * min((step + 1) / 10, 1)
        adamw.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_matrices_of_blocks_move_by_muon_and_all_else_by_adamw():
    """Muon's update of a matrix is orthogonal: singular values are about equal, whatever the gradient's."""
    schedule = dataclasses.replace(SCHEDULE, matrix_rate=0.1, warmup=1)
    ours, adam = Small(), Small()
    before = {name: tensor.detach().clone() for name, tensor in ours.named_parameters()}
    for model, how in ((ours, schedule), (adam, dataclasses.replace(SCHEDULE, warmup=1))):
        loss_of(model).backward()
        Optimizers(model, how).step(0)
    update = (ours.blocks[0].weight - before["blocks.0.weight"]).detach().flatten(1)
    values = torch.linalg.svdvals(update)
    assert values.min() / values.max() > 0.5
    # Scaled to the root mean square of an Adam update: 0.2 of the rate (arXiv 2502.16982, 2.2).
    assert float(update.square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.3)
    for name in ("first.weight", "first.bias", "blocks.0.bias"):
        assert torch.equal(ours.get_parameter(name), adam.get_parameter(name))


# Latents on disk


class FakeCodec:
    """Says of each latent frame how bright its pixel frames were."""

    temporal_ratio = 4
    config = DEBUG.codec

    def encode(self, video):
        return video.unflatten(1, (-1, 4)).mean(dim=(2, 4, 5)).transpose(1, 2)[..., None, None]


def encode_captions(captions):
    return torch.stack([torch.full((2, 3), float(len(caption))) for caption in captions])


TEXT = {"steps": 3}
"""What determined `encode_captions`, as far as the latents know."""


def test_latents_are_made_once_and_the_rest_of_them_later(tmp_path):
    settings, reports = LatentSettings(clips=5, frames=3, shard=2), []
    made = make_latents(settings, FakeCodec(), encode_captions, TEXT, tmp_path, reports.append)
    assert made.latents.shape == (5, 3, 3, 1, 1)
    assert made.text.shape == (5, 2, 3)
    assert made.latents.dtype == made.text.dtype == torch.float16
    assert len(made.latents.unique()) > 20
    assert reports == [f"latents: clip {first} of 5" for first in (0, 2, 4)]
    (tmp_path / "latents-000002.pt").unlink()
    again = make_latents(settings, FakeCodec(), encode_captions, TEXT, tmp_path, reports.append)
    assert reports[3:] == ["latents: clip 2 of 5"]
    assert torch.equal(again.latents, made.latents)
    assert torch.equal(again.text, made.text)
    helped = make_latents(settings, FakeCodec(), encode_captions, TEXT, tmp_path / "two", silent, workers=2)
    assert torch.equal(helped.latents, made.latents) and torch.equal(helped.text, made.text)
    with pytest.raises(UserError, match="was made with latents.frames = 3, this recipe has 4"):
        other = dataclasses.replace(settings, frames=4)
        make_latents(other, FakeCodec(), encode_captions, TEXT, tmp_path, silent)
    with pytest.raises(UserError, match="was made with text.steps = 3, this recipe has 4"):
        make_latents(settings, FakeCodec(), encode_captions, {"steps": 4}, tmp_path, silent)
