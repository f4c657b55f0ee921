"""Random inputs of the attention operator, scaled like real activations, with poison in empty slots."""

from dataclasses import dataclass

import torch

POISON = float("nan")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of a window; the defaults are odd on purpose."""

    batch: int = 2
    heads: int = 3
    cached: int = 37
    own: int = 21
    content: int = 32
    rotary: int = 16
    nope: int = 48
    values: int = 64
    empty: tuple[int, ...] = (0, 5, 6, 7, 36)
    """Cached tokens that hold nothing."""

    @property
    def keys(self):
        return self.cached + self.own

    @property
    def entry(self):
        return self.content + self.rotary


def draw(*shape, seed, dtype=torch.float32, device="cpu", scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).to(device, dtype)


def scales_of(*shape, spread, device="cpu"):
    """What a unit of float8 stands for: the same each time, for one draw in hundreds exceeds the bound."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(10)) * spread + 0.01).to(device)


def validity(case, device="cpu"):
    valid = torch.ones(case.keys, dtype=torch.bool)
    valid[list(case.empty)] = False
    return valid.to(device)


def positions(case, device="cpu"):
    """Cosines and sines [K, R / 2] of positions like those of a window."""
    angles = torch.rand(case.keys, case.rotary // 2, generator=torch.Generator().manual_seed(7)) * 20
    return angles.cos().to(device), angles.sin().to(device)


def latent_window(case, *, seed, dtype=torch.float32, device="cpu", poison=POISON):
    """cached, own, cos, sin, valid: content of unit size as its normalisation leaves it."""
    valid = validity(case, device)
    cached = draw(case.batch, case.cached, case.entry, seed=seed, dtype=dtype, device=device)
    cached[:, ~valid[: case.cached]] = poison
    own = draw(case.batch, case.own, case.entry, seed=seed + 1, dtype=dtype, device=device)
    return cached, own, *positions(case, device), valid


def projections(case, *, seed, dtype=torch.float32, device="cpu"):
    """W_uK and W_uV, which keep the size of what they project."""
    scale = case.content**-0.5
    shapes = ((case.heads * width, case.content) for width in (case.nope, case.values))
    return tuple(
        draw(*shape, seed=seed + i, dtype=dtype, device=device, scale=scale) for i, shape in enumerate(shapes)
    )


def head_window(case, *, seed, dtype=torch.float32, device="cpu", poison=POISON):
    """query, keys, values, valid of expanded attention."""
    width, valid = case.nope + case.rotary, validity(case, device)
    query = draw(case.batch, case.heads, case.own, width, seed=seed, dtype=dtype, device=device)
    keys = draw(case.batch, case.heads, case.keys, width, seed=seed + 1, dtype=dtype, device=device)
    values = draw(case.batch, case.heads, case.keys, case.values, seed=seed + 2, dtype=dtype, device=device)
    keys[:, :, ~valid] = values[:, :, ~valid] = poison
    return query, keys, values, valid


def latent_query(case, *, seed, dtype=torch.float32, device="cpu"):
    return draw(case.batch, case.heads, case.own, case.entry, seed=seed, dtype=dtype, device=device)
