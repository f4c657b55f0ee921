"""Scenes: what is drawn, what is kept from training, and where objects go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmla.config import FRAMES_PER_SECOND
from vmla.world.scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    ROUND,
    SHAPES,
    SIZES,
    Sprite,
    draw_scene,
    is_held_out,
    trace_path,
)
from vmla.world.worlds import SIZE

pytestmark = pytest.mark.cpu

SPRITES = st.builds(
    Sprite,
    shape=st.sampled_from(SHAPES),
    colour=st.sampled_from(list(COLOURS)),
    size=st.sampled_from(SIZES),
    motion=st.sampled_from(MOTIONS),
    seed=st.integers(0, 2**31 - 1),
)
COMBINATIONS = [(s, c, b) for s in SHAPES for c in COLOURS for b in BACKGROUNDS]


def draw_many(count, **how):
    rng = np.random.default_rng(0)
    return [draw_scene(rng, **how) for _ in range(count)]


def test_training_never_draws_what_is_held_out():
    scenes = draw_many(3000)
    seen = {(s.shape, s.colour, scene.background) for scene in scenes for s in scene.sprites}
    assert not any(is_held_out(*combination) for combination in seen)
    assert seen == {combination for combination in COMBINATIONS if not is_held_out(*combination)}
    assert not any(scene.held_out for scene in scenes)


def test_the_held_out_draw_holds_nothing_else():
    scenes = draw_many(400, held_out=True)
    assert all(is_held_out(s.shape, s.colour, scene.background) for scene in scenes for s in scene.sprites)
    assert all(scene.held_out for scene in scenes)


def test_about_one_combination_in_eight_is_held_out():
    held = [combination for combination in COMBINATIONS if is_held_out(*combination)]
    assert 1 / 12 < len(held) / len(COMBINATIONS) < 1 / 6
    # None of the words is itself unknown to training.
    known = [combination for combination in COMBINATIONS if not is_held_out(*combination)]
    for place, words in enumerate((SHAPES, COLOURS, BACKGROUNDS)):
        assert {combination[place] for combination in known} == set(words)


def test_scenes_vary_and_are_decided_by_their_generator():
    scenes = draw_many(600)
    assert scenes == draw_many(600)
    counts = [len(scene.sprites) for scene in scenes]
    assert set(counts) == {1, 2}
    assert 0.2 < counts.count(2) / len(counts) < 0.4
    for name, words in (("shape", SHAPES), ("motion", MOTIONS), ("size", SIZES), ("colour", COLOURS)):
        assert {getattr(s, name) for scene in scenes for s in scene.sprites} == set(words)


def test_objects_of_a_scene_can_be_told_apart_and_what_moves_can_be_seen():
    for scene in draw_many(1000):
        assert len({sprite.colour for sprite in scene.sprites}) == len(scene.sprites)
        assert not any(s.motion == "spinning" and s.shape in ROUND for s in scene.sprites)


@pytest.mark.parametrize("objects", [1, 2])
def test_the_number_of_objects_can_be_fixed(objects):
    assert {len(scene.sprites) for scene in draw_many(100, objects=objects)} == {objects}


@settings(deadline=None, max_examples=200)
@given(SPRITES, st.integers(0, 100_000))
def test_an_object_stays_in_the_frame(sprite, start):
    path = trace_path(sprite, 200, start)
    for centre in (path.x, path.y):
        assert centre.shape == (200,)
        assert centre.min() >= sprite.radius
        assert centre.max() <= SIZE - sprite.radius


@settings(deadline=None, max_examples=200)
@given(SPRITES, st.integers(0, 5000), st.integers(1, 60))
def test_a_later_start_continues_the_same_path(sprite, start, frames):
    whole, part = trace_path(sprite, start + frames), trace_path(sprite, frames, start)
    for name in ("x", "y", "angle"):
        assert np.array_equal(getattr(whole, name)[start:], getattr(part, name))


@settings(deadline=None, max_examples=200)
@given(SPRITES, st.integers(0, 10_000))
def test_motions_are_as_fast_as_their_names_say(sprite, start):
    path = trace_path(sprite, 8 * FRAMES_PER_SECOND, start)
    steps = np.hypot(np.diff(path.x), np.diff(path.y)) * FRAMES_PER_SECOND
    turns = np.abs(np.diff(path.angle)) * FRAMES_PER_SECOND
    # A bounce within a frame shortens that step, so the usual step is looked at.
    speed, turn = np.median(steps), np.median(turns)
    expected = {"bouncing": (24, 36), "drifting": (6, 9), "spinning": (0, 0), "resting": (0, 0)}
    if sprite.motion == "orbiting":
        reach = SIZE / 2 - sprite.radius - 1
        assert 2 * np.pi * reach / 5.0 * 0.99 <= speed <= 2 * np.pi * reach / 3.5 * 1.01
    else:
        slowest, fastest = expected[sprite.motion]
        assert slowest - 1e-6 <= speed <= fastest + 1e-6
    spins = sprite.motion == "spinning"
    assert (2 * np.pi / 5 - 1e-6 <= turn <= 2 * np.pi / 3 + 1e-6) if spins else turn == 0


def test_paths_differ_with_their_seed():
    for motion in MOTIONS:
        paths = [
            trace_path(Sprite(shape="star", colour="red", size="small", motion=motion, seed=seed), 40)
            for seed in (1, 2)
        ]
        one, other = (np.concatenate([path.x, path.y, path.angle]) for path in paths)
        assert not np.allclose(one, other)
