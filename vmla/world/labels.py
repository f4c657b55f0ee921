"""Labels of a scene at each place of the picture, to align a denoiser's middle layer with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from vmla.config import FRAMES_PER_SECOND
from vmla.world.render import coverage
from vmla.world.scene import COLOURS, FOLDS, SHAPES, Scene, Sprite, trace_path
from vmla.world.worlds import SIZE

FASTEST = 32.0
"""Speed in pixels a second that a label scales to 1."""

WIDTH = 1 + len(SHAPES) + len(COLOURS) + 6
"""Numbers of a place: whether an object is there; its shape and colour, one of each 1 and the others 0; its
centre from the place's own middle, down and across; its velocity; cosine and sine of its turn."""


def label(scene: Scene, frames: int, start: int, *, grid: int, together: int = 4) -> Tensor:
    """The labels [frames / together, grid^2, WIDTH] of frames `start` .. `start + frames`.

    `together` frames have one label. An object counts at a place in proportion to the area that it covers
    there, a quarter of the place being all.
    """
    total = torch.zeros(frames // together, grid * grid, WIDTH)
    for sprite in scene.sprites:
        path = trace_path(sprite, frames, start)
        x, y, angle = (
            torch.from_numpy(values).float().unflatten(0, (-1, together))
            for values in (path.x, path.y, path.angle)
        )
        facts = torch.cat([_kind(sprite, *total.shape[:2]), _place(x, y, angle, sprite, grid)], dim=-1)
        total += _presence(sprite, frames, start, grid, together) * facts
    return total


def _presence(sprite: Sprite, frames: int, start: int, grid: int, together: int) -> Tensor:
    """[F, grid^2, 1] in [0, 1], as in the middle one of its frames."""
    middles = start + torch.arange(together // 2, frames, together)
    covered = torch.cat([coverage(sprite, 1, int(frame)) for frame in middles])
    return (4 * avg_pool2d(covered[:, None], SIZE // grid)).clamp(max=1).flatten(1)[..., None]


def _kind(sprite: Sprite, frames: int, places: int) -> Tensor:
    """The sprite's shape and colour, [F, grid^2, 1 + shapes + colours], which are the same at all places."""
    colour = list(COLOURS).index(sprite.colour)
    kind = torch.zeros(frames, places, 1 + len(SHAPES) + len(COLOURS))
    kind[..., [0, 1 + SHAPES.index(sprite.shape), 1 + len(SHAPES) + colour]] = 1
    return kind


def _place(x: Tensor, y: Tensor, angle: Tensor, sprite: Sprite, grid: int) -> Tensor:
    """Position, velocity and angle [F, grid^2, 6], for centres x, y and turns, each [F, together]."""
    middles = (torch.arange(grid) + 0.5) * SIZE / grid
    down, across = ((centre.mean(1)[:, None] - middles) * grid / SIZE for centre in (y, x))
    from_middle = torch.stack(
        [down[:, :, None].expand(-1, grid, grid), across[:, None, :].expand(-1, grid, grid)], dim=-1
    )
    speeds = [(way[:, -1] - way[:, 0]) * FRAMES_PER_SECOND / (way.shape[1] - 1) / FASTEST for way in (y, x)]
    turn = FOLDS[sprite.shape] * angle.mean(1)
    moving = torch.stack([*speeds, turn.cos(), turn.sin()], dim=-1)
    return torch.cat([from_middle.flatten(1, 2), moving[:, None].expand(-1, grid * grid, -1)], dim=-1)
