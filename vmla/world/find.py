"""Finding the objects of a sprite video: background, colours, who is in front, and where each one is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from vmla.world.fit import Pose, best_name, best_pose, make_bank, misfit
from vmla.world.motion import Track
from vmla.world.scene import BACKGROUNDS, COLOURS

NEAR = 0.17
"""Distance in RGB (each 0 to 1) within which a background has its name: the closest two of the world,
navy and forest, are 0.24 apart, and codecs shift colours by a few hundredths."""

MIXED = 0.15
"""Distance in RGB from the line between two colours within which a pixel may be a blend of them. No other
colour is closer than 0.21 to a line from a background to a colour (orange, between maroon and yellow),
or than 0.26 to one between two colours, save orange: it lies between red and yellow, so that beside an
object of each a third one in orange goes unseen."""

TRACE = 20
"""Pixels of one colour that make an object: a tenth of the smallest one, a small star."""

OFTEN = 1 / 7
"""Share of the frames that must show a colour for it to be one of the video's."""

SHAPE_FRAMES = 8
"""Frames that vote on the shape."""

STEADY = 0.8
"""Share of the frames for which a background must hold."""

MOST = 3
"""Colours, and objects of one colour, that are looked for: enough to see that there are too many."""

HIDDEN = 0.1
"""Less than this part of an object in sight, clear of blended edges, and its place is not measured."""

CLEAR = 0.4
"""More than this part in sight, and its place is beyond doubt even where a codec smears colours into each
other. If most frames have no such clear sight of it, the others count as well."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object as found: what it is, where, and how present."""

    colour: str
    track: Track
    """Where it is, in the frames that show it clearly."""
    presence: float
    """Share of the frames, of those in which nothing hides it, that show it."""
    error: float
    """Mean squared error of its shape per pixel of its area."""


def find_background(frames: Tensor) -> tuple[str | None, Tensor]:
    """The background's name, or None if it has none or does not keep it; and its colour, [3].

    `frames` is [F, 3, 64, 64] float32. Objects never cover half a frame, so a median sees past them.
    """
    medians = frames.flatten(2).median(2).values
    names, palette = list(BACKGROUNDS), _palette(BACKGROUNDS)
    distance, index = torch.cdist(medians, palette).min(1)
    votes = Counter(names[i] for i, d in zip(index.tolist(), distance.tolist(), strict=True) if d < NEAR)
    colour = medians.median(0).values
    if not votes:
        return None, colour
    name, count = votes.most_common(1)[0]
    return (name if count >= STEADY * len(frames) else None), colour


def find_objects(frames: Tensor, background: Tensor) -> list[Found]:
    """Every object in `frames` [F, 3, 64, 64] before a `background` of colour [3]."""
    labels = label_pixels(frames, background)
    colours = find_colours(frames, background, labels)
    return [found for layer in _layers(frames, background, labels, colours) for found in _peel(layer)]


def label_pixels(frames: Tensor, background: Tensor) -> Tensor:
    """The nearest of the eight colours (0 to 7) or the background (8) for each pixel: [F, 64, 64]."""
    palette = torch.cat([_palette(COLOURS), background[None]])
    # |p - c|^2 without the p^2, which is the same for every colour.
    scores = torch.einsum("fchw,kc->fkhw", frames, -2 * palette) + palette.square().sum(1)[:, None, None]
    return scores.argmin(1)


def find_colours(frames: Tensor, background: Tensor, labels: Tensor) -> list[int]:
    """The colours of the video's objects, as labels; edges, which blend two colours, are none.

    Greedy: the colour of most pixels first, then again without all blends of those found so far.
    """
    ends, colours = [background], list[int]()
    unexplained = labels < len(COLOURS)
    while len(colours) < MOST:
        traces = {k: _trace(unexplained & (labels == k)) for k in range(len(COLOURS)) if k not in colours}
        best = max(traces, key=lambda k: traces[k])
        if traces[best] == 0:
            break
        colour = _palette(COLOURS)[best]
        for end in ends:
            unexplained &= _distance_to_line(frames, end, colour) > MIXED
        ends.append(colour)
        colours.append(best)
    return colours


def _trace(mask: Tensor) -> int:
    """How much of a colour a video shows: the solid pixels of its mask, 0 if they are too few too often."""
    if not _is_often(mask.sum((1, 2))):
        return 0
    pixels = _solid(mask)
    return int(pixels.sum()) if _is_often(pixels) else 0


def _distance_to_line(frames: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """How far each pixel is from the straight line between two colours: [F, 64, 64]."""
    axis, from_start = end - start, frames - start[:, None, None]
    along = torch.einsum("fchw,c->fhw", from_start, axis / axis.square().sum()).clamp(0, 1)
    return (from_start - along[:, None] * axis[:, None, None]).square().sum(1).sqrt()


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One colour's coverage, where that counts, and the shape that explains it best."""

    colour: int
    mine: Tensor
    """Where the colour is the nearest one: bool [F, 64, 64]."""
    cover: Tensor
    valid: Tensor
    name: tuple[str, str]
    error: float


def _layers(frames: Tensor, background: Tensor, labels: Tensor, colours: list[int]) -> list[_Layer]:
    """A layer for each colour, given who hides whom."""
    behind = [_layer(frames, background, labels, k, colours, front=False) for k in colours]
    if len(colours) != 2 or not _touch(labels == colours[0], labels == colours[1]):
        return behind
    before = [_layer(frames, background, labels, k, colours, front=True) for k in colours]
    # Taken for the one in front, a hidden object seems bitten and fits no shape; the other way round,
    # whatever lies beside the front one does not count. So the right order has the least error.
    orders = [before[0], behind[1]], [behind[0], before[1]]
    return min(orders, key=lambda layers: sum(layer.error for layer in layers))


def _layer(
    frames: Tensor, background: Tensor, labels: Tensor, k: int, colours: list[int], *, front: bool
) -> _Layer:
    """Coverage by colour `k`, taken for `front` or for behind everything else.

    A pixel's coverage is its place on the line from the background's colour to the object's. Where
    another object is, it is 0 for an object in front and unknown for one behind.
    """
    axis = _palette(COLOURS)[k] - background
    cover = torch.einsum("fchw,c->fhw", frames - background[:, None, None], axis / axis.square().sum())
    others = torch.isin(labels, torch.tensor([i for i in colours if i != k], dtype=labels.dtype))
    rim = _grow(others) & ~others
    cover = cover.clamp(0, 1) * ~others
    valid = (~(rim if front else rim | others)).float()
    name, error = _vote(cover, valid, labels == k)
    return _Layer(colour=k, mine=labels == k, cover=cover, valid=valid, name=name, error=error)


def _vote(cover: Tensor, valid: Tensor, mine: Tensor) -> tuple[tuple[str, str], float]:
    """The (shape, size) that explains a few of the frames with the colour best, and its error."""
    usable = (mine.sum((1, 2)) >= TRACE).nonzero()[:, 0]
    picks = torch.linspace(0, len(usable) - 1, min(SHAPE_FRAMES, len(usable))).round().long()
    some, every = usable[picks], make_bank()
    return best_name(misfit(cover[some], valid[some], every), every)


def _peel(layer: _Layer) -> list[Found]:
    """The objects of one colour: the best one, then what is left after taking it away."""
    found: list[Found] = []
    (shape, size), valid, mine = layer.name, layer.valid, layer.mine
    while len(found) < MOST:
        pose = best_pose(layer.cover, valid, make_bank(shape, size))
        seen = (pose.visible > HIDDEN) & (pose.strength > 0.5)
        if not seen.any():
            break
        found.append(_judge(list(COLOURS)[layer.colour], shape, size, pose, seen, valid))
        taken = _grow(pose.template > 0, 3) & seen[:, None, None]
        valid, mine = valid * ~taken, mine & ~taken
        if _trace(mine) == 0:
            break
        (shape, size), _ = _vote(layer.cover, valid, mine)
    return found


def _judge(colour: str, shape: str, size: str, pose: Pose, seen: Tensor, valid: Tensor) -> Found:
    """What the frames that show an object say of it, and how many do."""
    track = _track(shape, size, pose, seen)
    missing = sum(not _is_hidden(track, pose, int(f), valid[f]) for f in (~seen).nonzero()[:, 0])
    clear = seen & (pose.visible > CLEAR)
    return Found(
        colour=colour,
        track=_track(shape, size, pose, clear) if 2 * clear.sum() > seen.sum() else track,
        presence=len(track.frame) / (len(track.frame) + missing),
        error=float(pose.error[seen].mean()),
    )


def _track(shape: str, size: str, pose: Pose, chosen: Tensor) -> Track:
    """The `chosen` frames (bool [F]) of a pose."""
    x, y, angle = (v[chosen].double().numpy() for v in (pose.x, pose.y, pose.angle))
    frame = chosen.nonzero()[:, 0].numpy()
    return Track(shape=shape, size=size, frame=frame, x=x, y=y, angle=angle)


def _is_hidden(track: Track, pose: Pose, frame: int, valid: Tensor) -> bool:
    """Whether an object not seen in `frame` may be behind another, where its track leads."""
    x, y = track.guess_place(frame)
    near = int(track.frame[abs(track.frame - frame).argmin()])
    moved = (round(y - float(pose.y[near])), round(x - float(pose.x[near])))
    template = pose.template[near].roll(moved, (0, 1))
    return bool((valid * template).sum() < 3 * HIDDEN * template.sum())


def _solid(mask: Tensor) -> Tensor:
    """How many pixels of each frame have most of their neighbourhood in the mask as well: [F]."""
    rows = pad(mask.to(torch.uint8), (1, 1, 1, 1))
    rows = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    neighbours = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    return (mask & (neighbours >= 5)).sum((1, 2))


def _is_often(pixels: Tensor) -> bool:
    """Whether enough frames have enough `pixels` [F] of something."""
    return bool((pixels >= TRACE).float().mean() > OFTEN)


def _touch(one: Tensor, other: Tensor) -> bool:
    """Whether two masks ever come closer than their blended edges are wide."""
    return bool((_grow(one, 2) & _grow(other)).any())


def _grow(mask: Tensor, pixels: int = 1) -> Tensor:
    """A mask [F, 64, 64] with all its neighbours up to `pixels` away."""
    return max_pool2d(mask.float()[:, None], 2 * pixels + 1, 1, pixels)[:, 0] > 0


def _palette(colours: dict[str, tuple[int, int, int]]) -> Tensor:
    return torch.tensor(list(colours.values()), dtype=torch.float32) / 255
