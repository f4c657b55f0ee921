"""The second world: few values, closed paths, two objects that never touch, and a grader that knows it."""

import numpy as np
import pytest

from bench.quality.grader import measure
from vmla.config import FRAMES_PER_SECOND
from vmla.world.apart import FARTHEST, can_stay_apart, stay_apart
from vmla.world.caption import warning_for
from vmla.world.grader.grade import QUESTIONS
from vmla.world.render import coverage, render
from vmla.world.scene import MOTIONS, SIZES, Sprite, draw_scene, trace_path
from vmla.world.worlds import FIRST, SECOND, SIZE, World, world_named

pytestmark = pytest.mark.cpu


def scenes(count, **how):
    rng = np.random.default_rng(2)
    return [draw_scene(rng, world=SECOND, **how) for _ in range(count)]


def sprite(motion, size="small", seed=0):
    return Sprite(shape="star", colour="red", size=size, motion=motion, seed=seed, world=SECOND)


def test_two_objects_never_touch_however_long_one_looks():
    for scene in scenes(150, objects=2):
        one, other = (trace_path(s, 60 * FRAMES_PER_SECOND, 777) for s in scene.sprites)
        reach = FARTHEST * sum(s.radius for s in scene.sprites)
        assert np.hypot(one.x - other.x, one.y - other.y).min() > reach
    for scene in scenes(30, objects=2):
        first, second = (coverage(s, 64) > 0 for s in scene.sprites)
        assert not (first & second).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("motion", MOTIONS)
def test_paths_are_closed_and_stay_in_the_frame(motion, size):
    course = sprite(motion, size, seed=4).course
    time = np.linspace(0, 50, 2000)
    here, later = course.at(time), course.at(time + course.period)
    for one, other in ((here.x, later.x), (here.y, later.y)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)
        assert one.min() >= course.radius + 1 - 1e-9
        assert one.max() <= SIZE - course.radius - 1 + 1e-9


@pytest.mark.parametrize(("motion", "speed"), [("drifting", 12.0), ("bouncing", 32.0)])
def test_travellers_have_one_speed_and_four_headings(motion, speed):
    headings = set()
    for seed in range(40):
        path = trace_path(sprite(motion, seed=seed), 4)
        step = np.array([path.x[1] - path.x[0], path.y[1] - path.y[0]]) * FRAMES_PER_SECOND
        if np.allclose(np.abs(step), speed / np.sqrt(2)):  # no wall between the two frames
            headings.add(tuple(np.sign(step)))
    assert len(headings) == 4


@pytest.mark.parametrize("motion", ["spinning", "orbiting"])
def test_turning_is_ninety_degrees_a_second_either_way(motion):
    turns = set()
    for seed in range(20):
        path = trace_path(sprite(motion, seed=seed), FRAMES_PER_SECOND + 1)
        angle = path.angle if motion == "spinning" else np.arctan2(path.y - SIZE / 2, path.x - SIZE / 2)
        turned = np.angle(np.exp(1j * (angle[-1] - angle[0])))
        assert abs(turned) == pytest.approx(np.pi / 2)
        turns.add(float(np.sign(turned)))
    assert turns == {-1.0, 1.0}


def test_which_motions_fit_into_one_frame():
    def fits(one, other):
        return can_stay_apart(SECOND, one, other)

    assert fits(("bouncing", "small"), ("bouncing", "small"))
    assert fits(("resting", "large"), ("spinning", "large"))
    assert not fits(("bouncing", "small"), ("drifting", "small"))
    assert not fits(("orbiting", "small"), ("bouncing", "small"))
    assert not stay_apart(sprite("drifting").course, sprite("bouncing").course)
    assert not stay_apart(sprite("resting").course, sprite("resting").course)


def test_a_prompt_for_two_that_touch_is_warned_of():
    prompt = "a red star {} and a blue ring {} on a navy background"
    assert warning_for(prompt.format("bouncing", "bouncing"), SECOND) is None
    told = warning_for(prompt.format("bouncing", "drifting"), SECOND)
    assert told is not None and "touches" in told and "\n" not in told
    assert warning_for(prompt.format("bouncing", "drifting"), FIRST) is None
    large = "a large red star bouncing and a large blue ring bouncing on a navy background"
    assert warning_for(large, SECOND) is not None


@pytest.mark.parametrize("degraded", [False, True])
@pytest.mark.parametrize("objects", [1, 2])
def test_the_grader_knows_the_second_world(objects, degraded):
    tally = measure(34, seed=3, degraded=degraded, world=SECOND, objects=objects)
    assert {q: tally.accuracy(q) for q in QUESTIONS} == pytest.approx(dict.fromkeys(QUESTIONS, 1.0), abs=0.03)


def test_a_scene_hangs_on_its_generator_alone():
    assert scenes(50) == scenes(50)
    assert {len(scene.sprites) for scene in scenes(50)} == {1, 2}
    video = render(scenes(1)[0], 8)
    assert video.shape == (8, 3, SIZE, SIZE)


def test_worlds_have_names():
    assert world_named("sprites-2") is SECOND
    assert isinstance(world_named("sprites"), World)
    with pytest.raises(Exception, match="no such world: moon; there are sprites, sprites-2"):
        world_named("moon")
