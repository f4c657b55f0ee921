"""Template matching: how badly each shape, at each turn and place, explains a map of coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vmla.world.render import signed_distance
from vmla.world.scene import FOLDS, ROUND, SHAPES, SIZES
from vmla.world.worlds import SIZE, World

TURNS = 12
"""Angles tried within one fold: at most 10 degrees apart, 2 px at the point of a large triangle."""


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Templates of coverage, each centred on pixel (0, 0) and wrapped around, as spectra."""

    names: tuple[tuple[str, str], ...]
    """(shape, size) of each run of equal ones, in order."""
    turns: tuple[int, ...]
    """How many templates, at as many angles, each name has."""
    images: Tensor
    """[M, 64, 64] float32 in [0, 1]"""
    spectra: Tensor
    """[2, M, 64, 33] complex64: of the images and of their squares, conjugated."""


@lru_cache(maxsize=32)
def make_bank(world: World, shape: str | None = None, size: str | None = None) -> Bank:
    """The templates of `shape` and `size` in `world`; None stands for all shapes or sizes."""
    names = [(s, z) for s in SHAPES for z in SIZES if shape in (None, s) and size in (None, z)]
    turns = [1 if s in ROUND else TURNS for s, _ in names]
    images = torch.cat([_images(s, world.radii[z], n) for (s, z), n in zip(names, turns, strict=True)])
    spectra = torch.fft.rfft2(torch.stack([images, images.square()])).conj()
    return Bank(names=tuple(names), turns=tuple(turns), images=images, spectra=spectra)


def _images(shape: str, radius: float, turns: int) -> Tensor:
    """`shape` at `turns` angles within one fold: [turns, 64, 64]."""
    angle = torch.arange(turns)[:, None, None] * (2 * math.pi / FOLDS[shape] / turns)
    offset = torch.fft.fftfreq(SIZE, 1 / SIZE)
    dx, dy = offset[None, None, :], offset[None, :, None]
    cos, sin = angle.cos(), angle.sin()
    distance = signed_distance(shape, cos * dx + sin * dy, cos * dy - sin * dx, radius)
    return (0.5 - distance).clamp(0, 1)


def misfit(cover: Tensor, valid: Tensor, bank: Bank) -> Tensor:
    """The squared error of every template at every place.

    `cover` [F, 64, 64] is what is seen and `valid` [F, 64, 64] says where it counts (0 or 1). Returns
    sum(valid * (cover - template)^2) as [F, M, 64, 64]; the last two are the pixel of the centre.
    """
    image, square = bank.spectra
    seen, counted = torch.fft.rfft2(valid * cover), torch.fft.rfft2(valid)
    cross = counted[:, None] * square - 2 * seen[:, None] * image
    alone: Tensor = (valid * cover.square()).sum((1, 2))
    shared: Tensor = torch.fft.irfft2(cross, (SIZE, SIZE))
    return alone[:, None, None, None] + shared


def best_name(errors: Tensor, bank: Bank) -> tuple[tuple[str, str], float]:
    """Which (shape, size) explains all frames best, each frame at its own place and angle, and its error.

    `errors` is [F, M, 64, 64] from `misfit`; the error is summed over the frames.
    """
    least = errors.flatten(2).amin(2)
    totals = [run.amin(1).sum() for run in torch.split(least, list(bank.turns), dim=1)]
    best = int(torch.stack(totals).argmin())
    return bank.names[best], float(totals[best])


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where one shape fits best in each frame; every field is [F] unless it says otherwise."""

    x: Tensor
    """Centre in pixels, as in `scene.Path`."""
    y: Tensor
    angle: Tensor
    """Rotation in radians, within one fold: a square looks the same after a quarter turn."""
    visible: Tensor
    """Share of the template that lies where pixels count, in [0, 1]."""
    strength: Tensor
    """Mean of `cover` over that part: 1 for a solid object, 0 for none."""
    error: Tensor
    """Squared error per visible pixel of the template."""
    template: Tensor
    """The template where it fits: [F, 64, 64]."""


def best_pose(cover: Tensor, valid: Tensor, bank: Bank) -> Pose:
    """The best place and angle of the one shape in `bank`, finer than a pixel."""
    errors = misfit(cover, valid, bank)
    frames, turns = errors.shape[:2]
    index = errors.flatten(1).argmin(1)
    m, row, col = torch.unravel_index(index, (turns, SIZE, SIZE))
    f = torch.arange(frames)

    def finer(dm: int, dy: int, dx: int) -> Tensor:
        before, after = (
            errors[f, (m + s * dm) % turns, (row + s * dy) % SIZE, (col + s * dx) % SIZE] for s in (-1, 1)
        )
        # The vertex of the parabola through three neighbours; a flat one stays in the middle.
        bend = before - 2 * errors[f, m, row, col] + after
        return torch.where(bend > 0, (before - after) / (2 * bend.clamp_min(1e-9)), 0.0).clamp(-0.5, 0.5)

    step = 2 * math.pi / FOLDS[bank.names[0][0]] / turns
    template = place(bank.images[m], row, col)
    area, open_area = template.sum((1, 2)), (valid * template).sum((1, 2))
    return Pose(
        x=col + 0.5 + finer(0, 0, 1),
        y=row + 0.5 + finer(0, 1, 0),
        angle=(m + (finer(1, 0, 0) if turns > 1 else 0.0)) * step,
        visible=open_area / area,
        strength=(valid * cover * template).sum((1, 2)) / open_area.clamp_min(1e-9),
        error=errors.flatten(1).amin(1) / open_area.clamp_min(1.0),
        template=template,
    )


def place(images: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Move each of `images` [F, 64, 64] from pixel (0, 0) to its (row, col), wrapping around."""
    span = torch.arange(SIZE)
    rows, cols = (span - row[:, None]) % SIZE, (span - col[:, None]) % SIZE
    return images[torch.arange(len(images))[:, None, None], rows[:, :, None], cols[:, None, :]]
