"""Labels say what is where; the aligner learns them beside the denoiser, and is gone afterwards."""

import dataclasses

import numpy as np
import pytest
import torch
from kit.measure import assert_close

from plugins.errors import UserError
from vmla.cache import ChunkLengths
from vmla.train.data.latents import LatentSet
from vmla.train.objectives.alignment import (
    alignment_loss,
    attach_aligner,
    detach_aligner,
    watched,
    without_aligner,
)
from vmla.train.recipes.from_scratch import PRETRAINING_RECIPES
from vmla.train.stages.batches import draw_batch
from vmla.train.stages.denoiser import DenoiserStage
from vmla.world.labels import WIDTH, label
from vmla.world.scene import COLOURS, SHAPES, Scene, Sprite, trace_path
from vmla.world.worlds import SECOND

pytestmark = pytest.mark.cpu

DEBUG = PRETRAINING_RECIPES["debug"]
PLACES = DEBUG.model.tokens_per_frame


def sprite(motion="drifting", seed=1):
    return Sprite(shape="star", colour="blue", size="large", motion=motion, seed=seed, world=SECOND)


def clips(count=4, frames=12, labelled=True):
    generator = torch.Generator().manual_seed(0)
    c = DEBUG.model
    latents = torch.randn(count, c.in_channels, frames, c.sample_height, c.sample_width, generator=generator)
    text = torch.randn(count, c.text_tokens, c.text_dim, generator=generator)
    labels = torch.rand(count, frames, PLACES, WIDTH, generator=generator) if labelled else None
    return LatentSet(latents.half(), text.half(), {}, objects=torch.tensor([1, 2, 1, 2]), labels=labels)


def stage(**changes):
    training = dataclasses.replace(
        DEBUG.denoiser_training, alignment=1.0, alignment_layer=1, chunks=4, **changes
    )
    return DenoiserStage(DEBUG.model, training, clips())


def test_a_label_says_what_is_where():
    scene = Scene(background="navy", sprites=(sprite(),))
    labels, path = label(scene, 8, 40, grid=4), trace_path(sprite(), 8, 40)
    assert labels.shape == (2, 16, WIDTH)
    x, y = path.x[:4].mean(), path.y[:4].mean()
    place = int(y // 16) * 4 + int(x // 16)
    here = labels[0, place]
    assert here[0] == here[1 + SHAPES.index("star")] == here[7 + list(COLOURS).index("blue")] == 1
    assert here[1:15].sum() == 2
    middle = np.array([(place // 4 + 0.5) * 16, (place % 4 + 0.5) * 16])
    assert_close(here[15:17], torch.tensor((np.array([y, x]) - middle) / 16).float(), rtol=0, atol=1e-5)
    velocity = np.array([path.y[3] - path.y[0], path.x[3] - path.x[0]]) / 3 * 16 / 32
    assert_close(here[17:19], torch.tensor(velocity).float(), rtol=0, atol=1e-5)
    assert labels[0, 15 - place].abs().sum() == 0 or labels[0, 15 - place, 0] < 1


def test_two_objects_are_both_there():
    one, other = sprite("resting", 1), dataclasses.replace(sprite("resting", 4), shape="ring", colour="red")
    both = label(Scene(background="navy", sprites=(one, other)), 4, 0, grid=4)
    alone = [label(Scene(background="navy", sprites=(s,)), 4, 0, grid=4) for s in (one, other)]
    assert_close(both, alone[0] + alone[1], rtol=0, atol=1e-6)


def test_passes_are_held_against_the_labels_of_their_chunk():
    """With an aligner that answers zero the error is that of the labels themselves, pass by pass."""
    made, batch = stage(), None
    for parameter in made.model.aligner.out.parameters():
        torch.nn.init.zeros_(parameter)
    batch = made.draw(5)
    with watched(made.model, 1) as seen:
        made.loss(5)
    loss = alignment_loss(made.model, seen, batch.labels, batch.numbers)
    copies = made.training.forcing.copies
    assert [len(tokens) // made.training.clips for tokens in seen][:2] == [copies, 1]
    by_chunk = batch.labels.square().unflatten(1, (4, 3)).mean((0, 2, 3, 4))
    jumped = batch.numbers[1] != 1
    passes = [2, 1 if jumped else 2, 2, 1]
    expected = sum(n * error for n, error in zip(passes, by_chunk, strict=True)) / sum(passes)
    assert_close(loss, expected, rtol=1e-5, atol=0)


def test_the_loss_reaches_the_blocks_below_and_the_aligner():
    made = stage()
    made.loss(0).backward()
    assert made.model.aligner.out.weight.grad.abs().sum() > 0
    plain = DenoiserStage(DEBUG.model, dataclasses.replace(made.training, alignment=0.0), clips())
    plain.loss(0).backward()
    ours, theirs = (s.model.blocks[0].ffn.up.weight.grad for s in (made, plain))
    assert not torch.equal(ours, theirs)


def test_an_aligner_comes_and_goes():
    model = stage().model
    names = set(without_aligner(model.state_dict()))
    assert any(name.startswith("aligner.") for name in model.state_dict())
    assert set(detach_aligner(model).state_dict()) == names
    assert detach_aligner(model) is model


def test_clips_without_fitting_labels_are_refused():
    model = stage().model
    with pytest.raises(UserError, match=f"needs {PLACES} labels a frame, the clips have none"):
        attach_aligner(model, None)
    with pytest.raises(UserError, match="the clips have 3;"):
        attach_aligner(model, torch.zeros(1, 2, 3, WIDTH))


def test_at_first_clips_show_one_object():
    training = dataclasses.replace(
        DEBUG.denoiser_training, opening_steps=20, single_steps=10, opening_clips=8
    )
    data, chunks = clips(), ChunkLengths(first=3, following=3)
    shown = {step: draw_batch(training, data, chunks, step).text[:, 0, 0] for step in range(20)}
    single = data.text[data.objects == 1][:, 0, 0].float()
    assert all(torch.isin(shown[step], single).all() for step in range(10))
    assert not all(torch.isin(shown[step], single).all() for step in range(10, 20))
