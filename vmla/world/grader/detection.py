"""Finds the objects of a sprite video: the shape of each, which is in front, and their paths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vmla.world.grader.colours import (
    MOST,
    TRACE,
    assign_pixels,
    coverage_by,
    find_colours,
    grow,
    label_pixels,
    rgb,
    trace,
)
from vmla.world.grader.motion import Track
from vmla.world.grader.template_matching import Pose, best_name, best_pose, make_bank, misfit
from vmla.world.scene import COLOURS
from vmla.world.worlds import World

SHAPE_FRAMES = 8
"""Frames that vote on the shape."""

HIDDEN = 0.1
"""If less than this part of an object is in sight, clear of blended edges, its place is not measured."""

CLEAR = 0.4
"""If more than this part is in sight, its place is certain even where a codec smears colours into each other.
If most frames have no such clear sight of it, the others count as well."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object as found: its shape and size, its path, and how present it is."""

    colour: str
    track: Track
    """Where it is, in the frames that show it clearly."""
    presence: float
    """Share of the frames, of those in which nothing hides it, that show it."""
    error: float
    """Mean squared error of its shape per pixel of its area."""


def find_objects(frames: Tensor, background: Tensor, world: World) -> list[Found]:
    """Every object of `world` in `frames` [F, 3, 64, 64] before a `background` of colour [3]."""
    colours = find_colours(frames, background, label_pixels(frames, background))
    labels = assign_pixels(frames, background, colours)
    # A colour whose pixels all prove to be blends towards another one is no object's.
    colours = [k for k in colours if trace(labels == k) > 0]
    return [found for layer in _layers(frames, background, labels, colours, world) for found in _peel(layer)]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One colour's coverage, where that counts, and the shape that explains it best."""

    colour: int
    mine: Tensor
    """Its pixels: bool [F, 64, 64]."""
    cover: Tensor
    valid: Tensor
    name: tuple[str, str]
    error: float
    world: World


def _layers(
    frames: Tensor, background: Tensor, labels: Tensor, colours: list[int], world: World
) -> list[_Layer]:
    """A layer for each colour, given who hides whom."""
    behind = [_layer(frames, background, labels, k, colours, world, front=False) for k in colours]
    if len(colours) != 2 or not _touch(labels == colours[0], labels == colours[1]):
        return behind
    before = [_layer(frames, background, labels, k, colours, world, front=True) for k in colours]
    # Taken for the one in front, a hidden object seems bitten and fits no shape; the other way round,
    # whatever lies beside the front one does not count. So the right order has the least error.
    orders = [before[0], behind[1]], [behind[0], before[1]]
    return min(orders, key=lambda layers: sum(layer.error for layer in layers))


def _layer(
    frames: Tensor, background: Tensor, labels: Tensor, k: int, colours: list[int], world: World,
    *, front: bool,
) -> _Layer:  # fmt: skip
    """Coverage by colour `k`, taken for `front` or for behind everything else.

    A pixel's coverage is its place on the line from the background's colour to the object's. Where
    another object is, it is 0 for an object in front and unknown for one behind.
    """
    others = torch.isin(labels, torch.tensor([i for i in colours if i != k], dtype=labels.dtype))
    rim = grow(others) & ~others
    cover = coverage_by(frames, background, rgb(k)) * ~others
    valid = (~(rim if front else rim | others)).float()
    mine = labels == k
    name, error = _vote(cover, valid, mine, world)
    return _Layer(colour=k, mine=mine, cover=cover, valid=valid, name=name, error=error, world=world)


def _vote(cover: Tensor, valid: Tensor, mine: Tensor, world: World) -> tuple[tuple[str, str], float]:
    """The (shape, size) that explains a few of the frames with the colour best, and its error."""
    usable = (mine.sum((1, 2)) >= TRACE).nonzero()[:, 0]
    picks = torch.linspace(0, len(usable) - 1, min(SHAPE_FRAMES, len(usable))).round().long()
    some, every = usable[picks], make_bank(world)
    return best_name(misfit(cover[some], valid[some], every), every)


def _peel(layer: _Layer) -> list[Found]:
    """The objects of one colour: the best one, then those left after taking it away."""
    found: list[Found] = []
    (shape, size), valid, mine = layer.name, layer.valid, layer.mine
    while len(found) < MOST:
        pose = best_pose(layer.cover, valid, make_bank(layer.world, shape, size))
        seen = (pose.visible > HIDDEN) & (pose.strength > 0.5)
        if not seen.any():
            break
        found.append(_judge(layer, shape, size, pose, seen, valid))
        taken = grow(pose.template > 0, 3) & seen[:, None, None]
        valid, mine = valid * ~taken, mine & ~taken
        if trace(mine) == 0:
            break
        (shape, size), _ = _vote(layer.cover, valid, mine, layer.world)
    return found


def _judge(layer: _Layer, shape: str, size: str, pose: Pose, seen: Tensor, valid: Tensor) -> Found:
    """The evidence about an object from the frames that show it, and their number."""
    track = _track(layer.world, shape, size, pose, seen)
    missing = sum(not _is_hidden(track, pose, int(f), valid[f]) for f in (~seen).nonzero()[:, 0])
    clear = seen & (pose.visible > CLEAR)
    return Found(
        colour=list(COLOURS)[layer.colour],
        track=_track(layer.world, shape, size, pose, clear) if 2 * clear.sum() > seen.sum() else track,
        presence=len(track.frame) / (len(track.frame) + missing),
        error=float(pose.error[seen].mean()),
    )


def _track(world: World, shape: str, size: str, pose: Pose, chosen: Tensor) -> Track:
    """The `chosen` frames (bool [F]) of a pose."""
    x, y, angle = (v[chosen].double().numpy() for v in (pose.x, pose.y, pose.angle))
    frame = chosen.nonzero()[:, 0].numpy()
    return Track(shape=shape, size=size, frame=frame, x=x, y=y, angle=angle, world=world)


def _is_hidden(track: Track, pose: Pose, frame: int, valid: Tensor) -> bool:
    """Whether an object not seen in `frame` may be behind another, where its track leads."""
    x, y = track.guess_place(frame)
    near = int(track.frame[abs(track.frame - frame).argmin()])
    moved = (round(y - float(pose.y[near])), round(x - float(pose.x[near])))
    template = pose.template[near].roll(moved, (0, 1))
    return bool((valid * template).sum() < 3 * HIDDEN * template.sum())


def _touch(one: Tensor, other: Tensor) -> bool:
    """Whether two masks ever come closer than their blended edges are wide."""
    return bool((grow(one, 2) & grow(other)).any())
