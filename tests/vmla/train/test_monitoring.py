"""Dashboards and clips on the way: they see every step and change nothing."""

import sys
import types

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.tiny.models import draw

from vmla.train.cli.commands import main
from vmla.train.monitoring.contact_sheet import COLUMNS, strip, write_strip
from vmla.train.monitoring.dashboard import dashboard
from vmla.train.monitoring.samples import CHUNKS, PROMPTS, Samples, embedded, joining
from vmla.train.recipes.from_scratch import PRETRAINING_RECIPES
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

MODEL = PRETRAINING_RECIPES["debug"].model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips as a run leaves them, for the debug model."""
    folder = tmp_path_factory.mktemp("latents")
    latents = draw(4, MODEL.in_channels, 12, MODEL.sample_height, MODEL.sample_width).half()
    text = draw(4, MODEL.text_tokens, MODEL.text_dim, seed=1).half()
    torch.save({"latents": latents, "text": text, "settings": {}}, folder / "latents-000000.pt")
    return folder


def forcing(checkpoint, data, output, *more):
    arguments = ["forcing", "--recipe", "debug", "--from", checkpoint, "--data", data, "-o", output, *more]
    return CliRunner().invoke(main, ["stage", *(str(word) for word in arguments)])


class Writer:
    """Stands for TensorBoard's."""

    made = []

    def __init__(self, folder):
        self.folder, self.scalars, self.closed = folder, [], False
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


@pytest.fixture
def tensorboard(monkeypatch):
    """The writers that are made."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_watching_changes_no_weight(checkpoint, data, tmp_path, tensorboard):
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    assert forcing(checkpoint, data, plain).exit_code == 0
    result = forcing(checkpoint, data, watched, "--samples", 2, "--log", "tensorboard")
    assert result.exit_code == 0, result.output
    states = [torch.load(folder / "forcing.pt", weights_only=True) for folder in (plain, watched)]
    for key in ("model", "average"):
        for name, tensor in states[0][key].items():
            assert torch.equal(states[1][key][name], tensor), name
    assert states[0]["settings"] == states[1]["settings"]
    clips = sorted(path.name for path in (watched / "samples").iterdir())
    assert clips == ["forcing-0000002.png", "forcing-0000004.png"]
    (writer,) = tensorboard
    assert writer.closed
    assert writer.folder == str(watched / "tensorboard")
    losses = [(step, value) for name, value, step in writer.scalars if name == "forcing/loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert {name for name, _, _ in writer.scalars} > {"forcing/tokens_per_second", "forcing/utilisation"}


def test_tensorboard_itself_reads_back_what_was_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = {step: 0.5**step for step in (1, 2, 3)}
    with dashboard("tensorboard", tmp_path) as (watch,):
        for step, loss in losses.items():
            watch("forcing", {"step": step, "loss": loss, "waiting": 0.25}, {})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["forcing/loss", "forcing/waiting"]
    assert {event.step: event.value for event in events.Scalars("forcing/loss")} == losses
    assert [event.value for event in events.Scalars("forcing/waiting")] == [0.25] * 3


class Board:
    """Stands for a run of Weights & Biases."""

    def __init__(self, **how):
        self.how, self.logged, self.metrics, self.finished = how, [], [], False

    def define_metric(self, name, **how):
        self.metrics.append((name, how))

    def log(self, line):
        self.logged.append(line)

    def finish(self):
        self.finished = True


def test_weights_and_biases_sees_each_stage_by_its_own_steps(checkpoint, data, tmp_path, monkeypatch):
    boards, module = [], types.ModuleType("wandb")
    module.init = lambda **how: boards.append(Board(**how)) or boards[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert forcing(checkpoint, data, tmp_path / "run", "--log", "wandb").exit_code == 0
    (board,) = boards
    assert (board.how["name"], board.finished) == ("run", True)
    assert board.metrics == [("forcing/*", {"step_metric": "forcing/step"})]
    assert [line["forcing/step"] for line in board.logged] == [1, 2, 3, 4]


@pytest.mark.parametrize(("kind", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_dashboard_that_is_not_installed_is_named_before_anything_begins(
    checkpoint, data, tmp_path, monkeypatch, kind, module
):
    monkeypatch.setitem(sys.modules, module, None)
    result = forcing(checkpoint, data, tmp_path / "run", "--log", kind)
    assert result.exit_code == 2
    assert f'{kind} is not installed; install it with: pip install "videomla[{kind}]"' in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_clip_is_what_a_rollout_of_the_weights_makes(checkpoint, tmp_path):
    from runtime import generate

    opened = open_checkpoint(checkpoint)
    samples = Samples(
        folder=tmp_path, every=1, config=opened.model_config(), codec=opened.codec(),
        text=embedded(opened.text()), sampler=opened.sampler(), dtype=torch.float32,
    )  # fmt: skip
    latents = samples.latents(dict(opened.transformer().named_parameters()))
    frames = opened.codec().decode(latents)[0]
    assert frames.shape[:2] == (len(PROMPTS), 4 * MODEL.chunk * CHUNKS)
    for seed, prompt in enumerate(PROMPTS):
        made = list(generate(prompt, seconds=3, seed=seed, checkpoint=checkpoint))
        expected = torch.from_numpy(made[40]).permute(2, 0, 1) / 255
        assert_close(frames[seed, 40], expected, rtol=0, atol=1e-2)


def test_other_processes_bring_their_part_of_the_average_when_the_first_makes_clips(monkeypatch):
    brought = []
    monkeypatch.setattr("vmla.train.monitoring.samples.whole", brought.append)
    watch = joining(2)
    for step in range(1, 6):
        watch("forcing", {"step": step}, {"weights": step})
    assert brought == [{"weights": 2}, {"weights": 4}]


def test_a_strip_is_a_row_of_pictures_for_each_clip(tmp_path):
    import av

    frames = torch.rand(2, 40, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    picture = strip(frames)
    assert picture.shape == (2 * 16, COLUMNS * 24, 3)
    last = (frames[1, -1].permute(1, 2, 0) * 255).round().to(torch.uint8)
    assert torch.equal(picture[16:, -24:], last)
    assert strip(frames[:, :3]).shape == (32, 3 * 24, 3)
    write_strip(frames, tmp_path / "samples" / "x.png")
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["x.png"]
    with av.open(str(tmp_path / "samples" / "x.png")) as opened:
        read = next(opened.decode(video=0)).to_ndarray(format="rgb24")
    assert torch.equal(torch.from_numpy(read), picture)
