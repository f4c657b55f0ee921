"""Scenes to pixels: each shape is a signed distance, each frame an antialiased blend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vmla.world.scene import BACKGROUNDS, COLOURS, Scene, Sprite, trace_path
from vmla.world.worlds import SIZE


def render(scene: Scene, frames: int, start: int = 0) -> Tensor:
    """Frames `start` .. `start + frames` of `scene`: [frames, 3, 64, 64] float32 in [0, 1]."""
    canvas = _rgb(BACKGROUNDS[scene.background]).expand(frames, 3, SIZE, SIZE)
    for sprite in scene.sprites:
        cover = coverage(sprite, frames, start)[:, None]
        canvas = canvas + cover * (_rgb(COLOURS[sprite.colour]) - canvas)
    return canvas.contiguous()


def coverage(sprite: Sprite, frames: int, start: int = 0) -> Tensor:
    """How much of each pixel `sprite` covers: [frames, 64, 64] in [0, 1]."""
    path = trace_path(sprite, frames, start)
    x, y, angle = (torch.from_numpy(a).float()[:, None, None] for a in (path.x, path.y, path.angle))
    centres = torch.arange(SIZE) + 0.5
    dx, dy = centres[None, None, :] - x, centres[None, :, None] - y
    cos, sin = angle.cos(), angle.sin()
    # One pixel of ramp across the edge is the box filter of a straight edge.
    distance = signed_distance(sprite.shape, cos * dx + sin * dy, cos * dy - sin * dx, sprite.radius)
    return (0.5 - distance).clamp(0, 1)


def signed_distance(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Distance in pixels to the outline of an upright `shape` about the origin, negative inside."""
    if shape == "circle":
        return torch.hypot(x, y) - 0.9 * radius
    if shape == "ring":
        return (torch.hypot(x, y) - 0.72 * radius).abs() - 0.24 * radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.75 * radius
    if shape == "cross":
        near, far = torch.minimum(x.abs(), y.abs()), torch.maximum(x.abs(), y.abs())
        return torch.maximum(near - 0.3 * radius, far - 0.95 * radius)
    if shape == "triangle":
        return _folded_star(x, y, 3, 1.1 * radius, 0.55 * radius)
    if shape == "star":
        return _folded_star(x, y, 5, 1.1 * radius, 0.46 * radius)
    raise ValueError(f"no such shape: {shape}")


def _folded_star(x: Tensor, y: Tensor, points: int, outer: float, inner: float) -> Tensor:
    """A star with its first point up, folded onto one half-sector, where its outline is one line."""
    half = math.pi / points
    theta = torch.atan2(x, -y)
    folded = (torch.remainder(theta + half, 2 * half) - half).abs()
    rho = torch.hypot(x, y)
    u, v = rho * folded.cos(), rho * folded.sin()
    along = (inner * math.cos(half) - outer, inner * math.sin(half))
    length = math.hypot(*along)
    normal = (along[1] / length, -along[0] / length)
    return (u - outer) * normal[0] + v * normal[1]


def _rgb(colour: tuple[int, int, int]) -> Tensor:
    return torch.tensor(colour, dtype=torch.float32).div(255)[:, None, None]
