"""The grader sees what was rendered, and each kind of failure as what it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from kit.measure import assert_close

from bench.quality.grader import degrade, draw_cases, measure
from vmla.world.caption import ObjectRequest, Reading, read
from vmla.world.grader.grade import QUESTIONS, Grade, Observation, SeenObject, grade, look
from vmla.world.grader.motion import Track, name_motion, split_legs
from vmla.world.grader.template_matching import best_pose, make_bank
from vmla.world.render import coverage, render
from vmla.world.scene import MOTIONS, SHAPES, Scene, Sprite, trace_path
from vmla.world.worlds import FIRST

pytestmark = pytest.mark.cpu

FRAMES = 64
STAR = {"shape": "star", "colour": "red", "size": "large", "motion": "bouncing"}


@pytest.fixture(autouse=True)
def one_thread():
    """Small transforms gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def film(*sprites, background="navy", frames=FRAMES, start=7, **changes):
    scene = Scene(background=background, sprites=sprites or (Sprite(**{**STAR, "seed": 5, **changes}),))
    return render(scene, frames, start)


def judge(frames, prompt="a red star bouncing on a navy background"):
    return grade(look(frames), read(prompt))


@pytest.mark.parametrize("degraded", [False, True])
def test_random_scenes(degraded):
    tally = measure(34, seed=11, degraded=degraded)
    wrong = {q: dict(tally.confusion[q]) for q in QUESTIONS if tally.accuracy(q) < 0.97}
    assert not wrong


@pytest.mark.parametrize("motion", MOTIONS)
def test_own_prompt(motion):
    prompt = f"a red star {motion} on a navy background"
    assert judge(film(motion=motion), prompt).all
    as_bytes = (film(motion=motion) * 255).round().to(torch.uint8)
    assert judge(as_bytes, prompt).all


@pytest.mark.parametrize(
    ("frames", "question"),
    [
        (film(colour="orange"), "colour"),
        (film(shape="cross"), "shape"),
        (film(background="black"), "background"),
        (film(motion="drifting"), "motion"),
        (film(motion="orbiting"), "motion"),
    ],
    ids=["colour", "shape", "background", "drifting", "orbiting"],
)
def test_one_wrong_thing(frames, question):
    answers = judge(frames)
    assert {q for q in QUESTIONS if not getattr(answers, q)} == {question}


def test_edges_are_not_another_object():
    """Orange fading into navy passes close to red, and a red object is there: see `assign_pixels`."""
    red = Sprite(shape="square", colour="red", size="large", motion="drifting", seed=1)
    orange = Sprite(shape="star", colour="orange", size="large", motion="orbiting", seed=2)
    prompt = "a red square drifting and a orange star orbiting on a navy background"
    seen = look(degrade(film(red, orange), torch.Generator().manual_seed(0)))
    assert grade(seen, read(prompt)).all
    assert [o.size for o in seen.objects] == ["large", "large"]


def test_missing_object():
    answers = judge(film(), "a red star bouncing and a white ring resting on a navy background")
    assert not answers.count and answers.background


@pytest.mark.parametrize(("colour", "shape"), [("cyan", "square"), ("red", "star"), ("red", "circle")])
def test_extra_object(colour, shape):
    extra = Sprite(shape=shape, colour=colour, size="small", motion="resting", seed=8)
    star = Sprite(**STAR | {"motion": "orbiting"}, seed=5)
    answers = judge(film(extra, star), "a red star orbiting on a navy background")
    assert not answers.count and answers.background and answers.colour


@pytest.mark.parametrize("motion", [m for m in MOTIONS if m != "resting"])
def test_frozen_object_does_not_move(motion):
    frozen = film(motion=motion)[:1].repeat(FRAMES, 1, 1, 1)
    assert not judge(frozen, f"a red star {motion} on a navy background").motion
    upright = film(motion="bouncing")[:1].repeat(FRAMES, 1, 1, 1)
    assert judge(upright, "a red star resting on a navy background").motion


@pytest.mark.parametrize("motion", [m for m in MOTIONS if m != "resting"])
def test_moving_object_does_not_rest(motion):
    assert not judge(film(motion=motion), "a red star resting on a navy background").motion


@pytest.mark.parametrize("motion", ["bouncing", "drifting", "orbiting", "spinning"])
def test_stopping_half_way_is_not_moving(motion):
    moving = film(motion=motion)
    stopped = torch.cat([moving[: FRAMES // 2], moving[FRAMES // 2].expand(FRAMES // 2, 3, 64, 64)])
    assert not judge(stopped, f"a red star {motion} on a navy background").motion


@pytest.mark.parametrize("every", [1, 3, 6])
@pytest.mark.parametrize("reach", [None, 4, 2])
def test_jumping_about_is_no_motion(every, reach):
    """A new place every few frames: anywhere, or within a few pixels of the last one."""
    rng = np.random.default_rng(every)
    frames, place = [], np.zeros(2, dtype=int)
    for i in range(FRAMES // every):
        if reach is None:
            frames.append(film(frames=every, motion="resting", seed=i))
            continue
        place = np.clip(place + rng.integers(-reach, reach + 1, size=2), -15, 15)
        centred = film(frames=every, motion="resting", seed=4)
        frames.append(centred.roll(tuple(place), (2, 3)))
    seen = look(torch.cat(frames))
    assert [o.shape for o in seen.objects] == ["star"]
    assert seen.objects[0].motion is None


def test_fading_object_does_not_count():
    navy = film()[:, :, :1, :1]
    strength = torch.linspace(2, 0, FRAMES).clamp(0, 1)[:, None, None, None]
    gone = torch.cat([film()[: FRAMES // 2], navy[FRAMES // 2 :].expand(-1, 3, 64, 64)])
    for frames in (navy + strength * (film() - navy), gone):
        assert not judge(frames).count
        assert judge(frames).background


def test_changing_background_is_no_background():
    frames = torch.cat([film()[: FRAMES // 2], film(background="maroon")[FRAMES // 2 :]])
    assert not judge(frames).background
    pink = torch.tensor([0.6, 0.3, 0.5])[:, None, None]
    assert look(pink.expand(FRAMES, 3, 64, 64)).background is None


def test_empty_video():
    empty = film()[:, :, :1, :1].expand(FRAMES, 3, 64, 64)
    assert look(empty) == Observation(background="navy", objects=())
    assert judge(empty) == Grade(background=True, colour=False, shape=False, motion=False, count=False)


def test_blob_has_no_shape():
    """Coarse squares of noise in the object's colour are an object of no shape."""
    blob = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(3)) > 0.4
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, 12:52, 12:52] = torch.nn.functional.interpolate(blob.float(), scale_factor=8)
    star = torch.tensor([222, 45, 45])[:, None, None] / 255
    navy = film()[:1, :, :1, :1]
    frames = (navy + mask * (star - navy)).expand(FRAMES, 3, 64, 64)
    assert not judge(frames, "a red star resting on a navy background").all
    assert all(o.shape is None for o in look(frames).objects)


@pytest.mark.parametrize("cells", [1, 4, 16, 64])
@pytest.mark.parametrize("frames", [1, 24])
def test_nonsense_is_graded_too(cells, frames):
    """Random colours, in patches of any size, pass no prompt and break nothing."""
    for seed in range(2):
        noise = torch.rand(frames, 3, cells, cells, generator=torch.Generator().manual_seed(seed))
        assert not judge(torch.nn.functional.interpolate(noise, size=64)).all
        smooth = torch.nn.functional.interpolate(noise, size=64, mode="bilinear")
        assert not judge(smooth).all


def test_wrong_frames_are_refused():
    with pytest.raises(ValueError, match="64"):
        look(torch.rand(8, 3, 32, 32))
    with pytest.raises(ValueError, match="64"):
        look(torch.rand(0, 3, 64, 64))


def test_objects_are_matched_by_colour():
    def thing(colour, shape, motion):
        return SeenObject(colour=colour, shape=shape, size="small", motion=motion, presence=1.0)

    objects = (thing("red", "star", "resting"), thing("blue", "ring", "drifting"))
    seen = Observation(background="gray", objects=objects)
    asked = (
        ObjectRequest(colour="blue", shape="ring", motion="drifting"),
        ObjectRequest(colour="red", shape="star", motion="resting"),
    )
    assert grade(seen, Reading(requests=asked, background="gray", unknown=())).all
    swapped = (replace(asked[0], colour="red"), replace(asked[1], colour="blue"))
    answers = grade(seen, Reading(requests=swapped, background=None, unknown=()))
    assert answers.colour and answers.count and answers.background
    assert not answers.shape and not answers.motion


def test_round_shapes_spin_unseen():
    ring = SeenObject(colour="red", shape="ring", size="small", motion="resting", presence=1.0)
    seen = Observation(background="gray", objects=(ring,))
    assert grade(seen, read("a red ring spinning on a gray background")).motion
    assert not grade(seen, read("a red ring orbiting on a gray background")).motion


@pytest.mark.parametrize("shape", SHAPES)
def test_pose_is_the_rendered_one(shape):
    sprite = Sprite(**STAR | {"shape": shape, "motion": "drifting"}, seed=3)
    path = trace_path(sprite, 16)
    pose = best_pose(coverage(sprite, 16), torch.ones(16, 64, 64), make_bank(FIRST, shape, "large"))
    assert_close(pose.x, torch.from_numpy(path.x), rtol=0, atol=0.1)
    assert_close(pose.y, torch.from_numpy(path.y), rtol=0, atol=0.1)
    assert_close(pose.strength, torch.ones(16), rtol=0, atol=0.1)


def test_legs_of_a_bounce_have_its_speed():
    sprite = Sprite(**STAR, seed=5)
    path = trace_path(sprite, FRAMES)
    track = Track(shape="star", size="large", frame=np.arange(FRAMES), x=path.x, y=path.y, angle=path.angle)
    fastest = np.hypot(np.diff(path.x), np.diff(path.y)).max() * 16
    longest = max(split_legs(track), key=lambda leg: leg.frames)
    assert np.hypot(*longest.velocity) == pytest.approx(fastest, rel=1e-3)
    assert name_motion(track) == "bouncing"


def test_cases_are_drawn_from_their_seed():
    one, again, other = (list(draw_cases(4, seed, degraded=True)) for seed in (3, 3, 4))
    assert [c.scene for c in one] == [c.scene for c in again] != [c.scene for c in other]
    assert {c.scene.held_out for c in one} == {True, False}
    assert {len(c.frames) for c in one} == {64, 80}
    for a, b in zip(one, again, strict=True):
        assert_close(a.frames, b.frames, rtol=0, atol=0)
