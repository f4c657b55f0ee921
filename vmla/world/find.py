"""Finding the objects of a sprite video: background, colours, who is in front, and where each one is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from vmla.world.fit import Pose, best_name, best_pose, make_bank, misfit
from vmla.world.motion import Track
from vmla.world.scene import BACKGROUNDS, COLOURS, RADII, SIZE

NEAR = 0.17
"""Distance in RGB (each 0 to 1) within which a background has its name: the closest two of the world,
navy and forest, are 0.24 apart, and codecs shift colours by a few hundredths."""

CORE = 12
"""Pixels with all eight neighbours of the same colour that make an object rather than an edge."""

SHAPE_FRAMES = 12
"""Frames that vote on the shape."""

STEADY = 0.8
"""Share of the frames for which a background must hold."""

MOST = 3
"""Objects of one colour that are looked for: enough to see that there are too many."""

HIDDEN = 0.4
"""Less than this part of an object in sight, and its place is not measured."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One object as found: what it is, where, and how present."""

    colour: str
    track: Track
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
    present = [k for k in range(len(COLOURS)) if _has_core(labels == k)]
    found: list[Found] = []
    for k, (cover, valid) in zip(present, _layers(frames, background, labels, present), strict=True):
        colour = list(COLOURS)[k]
        found += _peel(colour, cover, valid, labels == k)
    return found


def label_pixels(frames: Tensor, background: Tensor) -> Tensor:
    """The nearest of the eight colours (0 to 7) or the background (8) for each pixel: [F, 64, 64]."""
    palette = torch.cat([_palette(COLOURS), background[None]])
    # |p - c|^2 without the p^2, which is the same for every colour.
    scores = torch.einsum("fchw,kc->fkhw", frames, -2 * palette) + palette.square().sum(1)[:, None, None]
    return scores.argmin(1)


def _layers(
    frames: Tensor, background: Tensor, labels: Tensor, present: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """For each colour its coverage and where that counts, given who hides whom."""
    behind = [_layer(frames, background, labels, k, present, front=False) for k in present]
    if len(present) != 2:
        return behind
    before = [_layer(frames, background, labels, k, present, front=True) for k in present]
    # Taken for the one in front, a hidden object seems bitten and fits no shape; the other way round,
    # whatever lies beside the front one does not count. So the right order has the least error.
    first_in_front = _shape_error(*before[0]) + _shape_error(*behind[1])
    second_in_front = _shape_error(*behind[0]) + _shape_error(*before[1])
    return [before[0], behind[1]] if first_in_front < second_in_front else [behind[0], before[1]]


def _layer(
    frames: Tensor, background: Tensor, labels: Tensor, k: int, present: list[int], *, front: bool
) -> tuple[Tensor, Tensor]:
    """Coverage by colour `k` and where it counts, both [F, 64, 64].

    A pixel's coverage is its place on the line from the background's colour to the object's. Where
    another object is, it is 0 for an object in `front` and unknown for one behind.
    """
    axis = _palette(COLOURS)[k] - background
    cover = torch.einsum("fchw,c->fhw", frames - background[:, None, None], axis / axis.square().sum())
    others = torch.isin(labels, torch.tensor([i for i in present if i != k], dtype=labels.dtype))
    rim = _grow(others) & ~others
    unknown = rim if front else rim | others
    return cover.clamp(0, 1) * ~others, (~unknown).float()


def _shape_error(cover: Tensor, valid: Tensor) -> float:
    some = _spaced(len(cover))
    bank = make_bank()
    return best_name(misfit(cover[some], valid[some], bank), bank)[1]


def _peel(colour: str, cover: Tensor, valid: Tensor, mine: Tensor) -> list[Found]:
    """The objects of one colour: the best one, then what is left after taking it away."""
    found: list[Found] = []
    every = make_bank()
    while _has_core(mine) and len(found) < MOST:
        some = _spaced(len(cover), _core(mine) >= CORE)
        (shape, size), _ = best_name(misfit(cover[some], valid[some], every), every)
        pose = best_pose(cover, valid, make_bank(shape, size))
        seen = (pose.visible > HIDDEN) & (pose.strength > 0.5)
        if not seen.any():
            break
        found.append(_judge(colour, shape, size, pose, seen, valid))
        taken = _grow(pose.template > 0, 3) & seen[:, None, None]
        valid, mine = valid * ~taken, mine & ~taken
    return found


def _judge(colour: str, shape: str, size: str, pose: Pose, seen: Tensor, valid: Tensor) -> Found:
    """What the frames that show an object say of it, and how many do."""
    frame = seen.nonzero()[:, 0]
    x, y, angle = (v[frame].double().numpy() for v in (pose.x, pose.y, pose.angle))
    track = Track(shape=shape, size=size, frame=frame.numpy(), x=x, y=y, angle=angle)
    missing = sum(not _is_hidden(track, int(f), valid[f]) for f in (~seen).nonzero()[:, 0])
    return Found(
        colour=colour,
        track=track,
        presence=len(frame) / (len(frame) + missing),
        error=float(pose.error[frame].mean()),
    )


def _is_hidden(track: Track, frame: int, valid: Tensor) -> bool:
    """Whether an object not seen in `frame` may be behind another, where its track leads."""
    x, y = track.guess_place(frame)
    span = torch.arange(SIZE) + 0.5
    disc = torch.hypot(span[None] - x, span[:, None] - y) < RADII[track.size]
    return bool(valid[disc].mean() < 2 * HIDDEN)


def _has_core(mask: Tensor) -> bool:
    """Whether a mask [F, 64, 64] has a solid part in at least one frame in seven."""
    return bool((_core(mask) >= CORE).float().mean() > 1 / 7)


def _core(mask: Tensor) -> Tensor:
    """Pixels of each frame whose eight neighbours are in the mask as well: [F]."""
    return (~_grow(~mask)).sum((1, 2))


def _grow(mask: Tensor, pixels: int = 1) -> Tensor:
    """A mask [F, 64, 64] with all its neighbours up to `pixels` away."""
    return max_pool2d(mask.float()[:, None], 2 * pixels + 1, 1, pixels)[:, 0] > 0


def _spaced(count: int, usable: Tensor | None = None) -> list[int]:
    """At most `SHAPE_FRAMES` of the `usable` frames, evenly spaced."""
    usable = torch.arange(count) if usable is None else usable.nonzero()[:, 0]
    picks = torch.linspace(0, len(usable) - 1, min(SHAPE_FRAMES, len(usable))).round().long()
    return [int(i) for i in usable[picks]]


def _palette(colours: dict[str, tuple[int, int, int]]) -> Tensor:
    return torch.tensor(list(colours.values()), dtype=torch.float32) / 255
