"""Distribution matching distillation: the generator's videos are moved to where the teacher's are.

    sigma = clamp(shifted(u), 0.02, 0.98)              u uniform; one sigma for all frames of a clip
    fake = x_t - sigma v_critic,  real = c + g (c - u) of the teacher's estimates
    grad = (fake - real) / mean |x - real|             mean over all but the batch
    generator: 0.5 | x - stopgrad(x - grad) |^2        its gradient is grad
    critic:    | v_critic(x_t) - (eps - x) |^2         flow matching on the generator's own videos

arXiv 2311.18828 and 2405.14867, as Self-Forcing (arXiv 2506.08009) has them.
"""

from __future__ import annotations

from torch import Tensor

from vmla.scheduler import shifted

LEAST, MOST = 0.02, 0.98
"""Noise levels at which scores are compared: beyond them the two networks' estimates hardly depend on x. The
bounds are those of DMD2 and Self-Forcing (steps 20 to 980 of 1000)."""


def score_sigma(uniform: Tensor, shift: float) -> Tensor:
    """Noise levels at which scores are compared, from numbers in [0, 1)."""
    return shifted(uniform, shift).clamp(LEAST, MOST)


def guided_beyond(conditional: Tensor, unconditional: Tensor, extra: float) -> Tensor:
    """c + g (c - u): 0 is no guidance (DMD's real score, arXiv 2405.14867).

    It is `vmla.scheduler.guided` with weight g + 1: a weight of one is not a weight of the other.
    """
    return conditional + extra * (conditional - unconditional)


def matching_gradient(x: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """Where to move x [B, ...] away from: (fake - real), scaled by how far x is from real; NaN is 0."""
    axes = tuple(range(1, x.ndim))
    # Divided by each video's own error, so that all noise levels pull equally strongly (DMD, eq. 8).
    return ((fake - real) / (x - real).abs().mean(axes, keepdim=True)).nan_to_num(nan=0.0)


def generator_loss(x: Tensor, gradient: Tensor, mask: Tensor | None = None) -> Tensor:
    """A loss whose gradient in x is `gradient` / count, in float64; `mask` [frames] chooses latent frames."""
    # In float64, because the error is a difference of nearly equal numbers.
    target = (x - gradient).detach().double()
    error = (x.double() - target).square()
    return 0.5 * (error if mask is None else error[:, :, mask]).mean()


def critic_loss(velocity: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """Flow matching: mean (v - (eps - x))^2."""
    return (velocity - (noise - x)).square().mean()
