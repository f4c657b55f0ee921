"""The colours of a sprite video: its background, those of its objects, and whose each pixel is."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

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

STEADY = 0.8
"""Share of the frames for which a background must hold."""

MOST = 3
"""Colours, and objects of one colour, that are looked for: enough to see that there are too many."""


def find_background(frames: Tensor) -> tuple[str | None, Tensor]:
    """The background's name, or None if it has none or does not keep it; and its colour, [3].

    `frames` is [F, 3, 64, 64] float32. Objects never cover half a frame, so a median sees past them.
    """
    medians = frames.flatten(2).median(2).values
    names, palette = list(BACKGROUNDS), palette_of(BACKGROUNDS)
    distance, index = torch.cdist(medians, palette).min(1)
    votes = Counter(names[i] for i, d in zip(index.tolist(), distance.tolist(), strict=True) if d < NEAR)
    colour = medians.median(0).values
    if not votes:
        return None, colour
    name, count = votes.most_common(1)[0]
    return (name if count >= STEADY * len(frames) else None), colour


def label_pixels(frames: Tensor, background: Tensor) -> Tensor:
    """The nearest of the eight colours (0 to 7) or the background (8) for each pixel: [F, 64, 64]."""
    palette = torch.cat([palette_of(COLOURS), background[None]])
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
        traces = {k: trace(unexplained & (labels == k)) for k in range(len(COLOURS)) if k not in colours}
        best = max(traces, key=lambda k: traces[k])
        if traces[best] == 0:
            break
        colour = rgb(best)
        for end in ends:
            unexplained &= _distance_to_line(frames, end, colour) > MIXED
        ends.append(colour)
        colours.append(best)
    return colours


def assign_pixels(frames: Tensor, background: Tensor, colours: list[int]) -> Tensor:
    """Whose each pixel is: the label of one of `colours`, or 8 for the background: [F, 64, 64].

    The edge of an object is a blend whose nearest colour may be that of another object; so it is the
    nearest line from the background to a colour that decides, and the nearer end of that line.
    """
    labels = torch.full((len(frames), *frames.shape[2:]), len(COLOURS))
    nearest = torch.full(labels.shape, torch.inf)
    for k in colours:
        colour = rgb(k)
        distance = _distance_to_line(frames, background, colour)
        inside = coverage_by(frames, background, colour) > 0.5
        nearer = distance < nearest
        labels = torch.where(nearer, torch.where(inside, k, len(COLOURS)), labels)
        nearest = torch.minimum(distance, nearest)
    return labels


def trace(mask: Tensor) -> int:
    """How much of a colour a video shows: the solid pixels of its mask, 0 if they are too few too often."""
    if not _is_often(mask.sum((1, 2))):
        return 0
    pixels = _solid(mask)
    return int(pixels.sum()) if _is_often(pixels) else 0


def _distance_to_line(frames: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """How far each pixel is from the straight line between two colours: [F, 64, 64]."""
    along = coverage_by(frames, start, end)[:, None]
    return (frames - torch.lerp(start[:, None, None], end[:, None, None], along)).square().sum(1).sqrt()


def coverage_by(frames: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """How far from `start` (0) to `end` (1) each pixel is: [F, 64, 64] in [0, 1]."""
    axis = end - start
    along = torch.einsum("fchw,c->fhw", frames - start[:, None, None], axis / axis.square().sum())
    return along.clamp(0, 1)


def _solid(mask: Tensor) -> Tensor:
    """How many pixels of each frame have most of their neighbourhood in the mask as well: [F]."""
    rows = pad(mask.to(torch.uint8), (1, 1, 1, 1))
    rows = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    neighbours = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    return (mask & (neighbours >= 5)).sum((1, 2))


def _is_often(pixels: Tensor) -> bool:
    """Whether enough frames have enough `pixels` [F] of something."""
    return bool((pixels >= TRACE).float().mean() > OFTEN)


def grow(mask: Tensor, pixels: int = 1) -> Tensor:
    """A mask [F, 64, 64] with all its neighbours up to `pixels` away."""
    return max_pool2d(mask.float()[:, None], 2 * pixels + 1, 1, pixels)[:, 0] > 0


def palette_of(colours: dict[str, tuple[int, int, int]]) -> Tensor:
    """A table of colours as [n, 3] in [0, 1], in its order."""
    return torch.tensor(list(colours.values()), dtype=torch.float32) / 255


def rgb(k: int) -> Tensor:
    """The colour with label `k`: [3] in [0, 1]."""
    return palette_of(COLOURS)[k]
