"""Pictures: the same scene gives the same frames, wherever one starts, and shapes are where they are."""

import math

import numpy as np
import pytest
import torch
from kit.measure import assert_close

from vmla.world.render import coverage, render, signed_distance
from vmla.world.scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    Sprite,
    draw_scene,
    trace_path,
)
from vmla.world.worlds import SIZE

pytestmark = pytest.mark.cpu

AREAS = {  # of the outline about the origin, in units of the squared radius
    "circle": math.pi * 0.9**2,
    "ring": math.pi * (0.96**2 - 0.48**2),
    "square": 1.5**2,
    "cross": 2 * 1.9 * 0.6 - 0.6**2,
    "triangle": 3 * math.sin(math.pi / 3) * 1.1 * 0.55,
    "star": 5 * math.sin(math.pi / 5) * 1.1 * 0.46,
}


STILL = {"shape": "star", "colour": "red", "size": "large", "motion": "resting", "seed": 3}


def sprite(**changes):
    return Sprite(**{**STILL, **changes})


def scenes(count):
    rng = np.random.default_rng(5)
    return [draw_scene(rng) for _ in range(count)]


@pytest.mark.parametrize("scene", scenes(6), ids=lambda scene: scene.sprites[0].motion)
def test_a_start_offset_shows_the_same_video_later(scene):
    whole = render(scene, 40)
    assert whole.shape == (40, 3, SIZE, SIZE)
    assert whole.dtype == torch.float32
    assert torch.equal(render(scene, 40), whole)
    assert torch.equal(render(scene, 10, start=30), whole[30:])
    assert 0 <= whole.min() <= whole.max() <= 1


def test_the_picture_is_background_and_colour():
    for colour, background in (("red", "navy"), ("white", "beige"), ("blue", "black")):
        scene = Scene(background=background, sprites=(sprite(shape="square", colour=colour),))
        frame, path = render(scene, 1)[0], trace_path(scene.sprites[0], 1)
        behind, before = (torch.tensor(rgb) / 255 for rgb in (BACKGROUNDS[background], COLOURS[colour]))
        assert_close(frame[:, int(path.y[0]), int(path.x[0])], before, rtol=0, atol=1e-6)
        corners = frame[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert_close(corners, behind[:, None].expand(3, 4), rtol=0, atol=1e-6)


def test_the_first_object_is_at_the_back():
    back, front = sprite(shape="square", colour="red"), sprite(shape="square", colour="cyan")
    both, alone = (render(Scene(background="gray", sprites=s), 1)[0] for s in ((back, front), (front,)))
    whole = coverage(front, 1)[0] == 1
    assert whole.sum() > 400
    assert_close(both[:, whole], alone[:, whole], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_area_about_its_centre(shape):
    still = sprite(shape=shape)
    cover, path = coverage(still, 1)[0], trace_path(still, 1)
    area = AREAS[shape] * still.radius**2
    # The ramp of one pixel at edges and corners moves a little of it.
    assert float(cover.sum()) == pytest.approx(area, rel=0.03)
    centres = torch.arange(SIZE) + 0.5
    middle = float((cover.sum(0) * centres).sum() / cover.sum())
    assert middle == pytest.approx(float(path.x[0]), abs=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_negative_inside_and_bounded_by_the_true_ones(shape):
    """A signed distance is 1-Lipschitz, and its zeros are the outline."""
    axis = torch.linspace(-20, 20, 161)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius = 12.1  # no outline passes through the points of the grid
    distance = signed_distance(shape, x, y, radius)
    steps = [(distance[1:] - distance[:-1]).abs().max(), (distance[:, 1:] - distance[:, :-1]).abs().max()]
    assert max(steps) <= 0.25 * 1.001
    assert (distance[torch.hypot(x, y) > 1.11 * radius] > 0).all()
    inside = float((distance < 0).float().mean()) * 40.25**2
    assert inside == pytest.approx(AREAS[shape] * radius**2, rel=0.02)


def test_what_points_up_points_up():
    """The first point of a triangle and of a star is at the top."""
    for shape in ("triangle", "star"):
        height = signed_distance(shape, torch.zeros(2), torch.tensor([-12.5, 12.5]), 12.0)
        assert height[0] < 0 < height[1]


@pytest.mark.parametrize("motion", MOTIONS)
def test_only_what_moves_changes_the_picture(motion):
    frames = coverage(sprite(motion=motion), 16)
    assert bool((frames[8] != frames[0]).any()) == (motion != "resting")


def test_a_shape_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="no such shape: heart"):
        signed_distance("heart", torch.zeros(1), torch.zeros(1), 1.0)
