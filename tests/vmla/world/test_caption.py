"""Captions say what a scene shows, and reading one gives it back."""

import numpy as np
import pytest

from vmla.world.caption import ObjectRequest, describe, read, warning_for
from vmla.world.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scene, Sprite, draw_scene

pytestmark = pytest.mark.cpu


def scenes(count=500):
    rng = np.random.default_rng(1)
    return [draw_scene(rng, held_out=bool(i % 2)) for i in range(count)]


def asked_by(scene):
    return [(s.shape, s.colour, s.motion, s.size) for s in scene.sprites]


def test_the_plain_caption_is_read_back():
    for scene in scenes():
        reading = read(describe(scene))
        assert reading.understood
        assert [(r.shape, r.colour, r.motion) for r in reading.requests] == [x[:3] for x in asked_by(scene)]
        assert reading.background == scene.background


def test_every_wording_is_read_back():
    rng, wordings = np.random.default_rng(2), set()
    for scene in scenes():
        caption = describe(scene, rng)
        reading = read(caption)
        assert reading.understood, caption
        assert reading.background == scene.background
        for request, (*expected, size) in zip(reading.requests, asked_by(scene), strict=True):
            assert [request.shape, request.colour, request.motion] == expected
            assert request.size in (size, None)
        wordings |= {word for word in ("is", "over", "on", "small", "large") if f" {word} " in f" {caption} "}
    assert wordings == {"is", "over", "on", "small", "large"}


def test_without_a_generator_sizes_are_told_and_the_form_is_plain():
    sprite = Sprite(shape="star", colour="red", size="large", motion="bouncing")
    other = Sprite(shape="ring", colour="cyan", size="small", motion="resting")
    caption = describe(Scene(background="navy", sprites=(sprite, other)))
    assert caption == "a large red star bouncing and a small cyan ring resting on a navy background"
    assert [r.size for r in read(caption).requests] == ["large", "small"]


def test_reading_minds_neither_case_nor_order_nor_punctuation():
    expected = (ObjectRequest(shape="star", colour="red", motion="bouncing", size=None),)
    for prompt in (
        "A RED star, bouncing; on a Navy background.",
        "on a navy background: a bouncing star red".replace(":", ","),
        "navy background... a star is bouncing, red",
    ):
        reading = read(prompt)
        assert (reading.requests, reading.background, reading.unknown) == (expected, "navy", ())


@pytest.mark.parametrize(
    ("prompt", "objects", "unknown"),
    [
        ("a red star bouncing", 1, ()),
        ("a red star on a navy background", 0, ()),
        ("a dog running on a navy background", 0, ("dog", "running")),
        ("a red star bouncing on a teal background", 1, ("teal",)),
        ("", 0, ()),
    ],
)
def test_what_is_missing_or_unknown_is_not_understood(prompt, objects, unknown):
    reading = read(prompt)
    assert not reading.understood
    assert len(reading.requests) == objects
    assert reading.unknown == unknown


def test_no_warning_for_what_the_world_can_show():
    assert [warning_for(describe(scene)) for scene in scenes(100)] == [None] * 100


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a dog running on a navy background", "does not know 'dog', 'running'"),
        ("a red circle spinning on a navy background", "is small"),
        ("a red star on a navy background", "is small"),
        (" and ".join(["a red star bouncing"] * 3) + " on a navy background", "is small"),
    ],
)
def test_a_warning_says_in_one_line_what_works_instead(prompt, names):
    warning = warning_for(prompt)
    assert warning.startswith(f"this model {names}; it knows one or two objects such as")
    assert "\n" not in warning
    for word in (*COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS, *SIZES):
        assert word in warning


def test_the_example_in_a_warning_is_understood():
    example = warning_for("a dog").split("'")[3]
    assert warning_for(example) is None


def test_every_word_has_one_meaning():
    words = [*COLOURS, *SHAPES, *MOTIONS, *BACKGROUNDS, *SIZES]
    assert len(set(words)) == len(words)
