"""Muon: each matrix moves by the orthogonal matrix that is nearest to its gradient's momentum.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
(https://kellerjordan.github.io/posts/muon/); its update is scaled to that of AdamW (arXiv 2502.16982, 2.2).
The mathematics is that of `torch.optim.Muon`, which always multiplies in bfloat16: on a processor without
instructions for it, that takes many times as long as in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
"""Keller Jordan's default, which `torch.optim.Muon` shares."""
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Coefficients of x, x^3 and x^5 in the polynomial that each iteration applies to the singular values; it is
steep at 0, so that small ones grow fast."""
ITERATIONS = 5
"""Iterations of Newton and Schulz: with these coefficients, five bring all singular values near 1 (0.7 to
1.3)."""
TINY = 1e-7
"""Least norm that a matrix is divided by, for a gradient of zeros."""
ADAMW = 0.2
"""Root mean square of AdamW's update at rate 1, to which Muon's update is scaled (arXiv 2502.16982, 2.2)."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; without weight decay."""

    def __init__(self, matrices: Iterable[nn.Parameter], *, lr: float, dtype: torch.dtype) -> None:
        """Optimise `matrices`, each [m, n].

        Args:
            matrices: the parameters.
            lr: the learning rate, of the size that AdamW would have.
            dtype: the type of the products. It is no part of the state, which a run with another one may
                load.
        """
        super().__init__(matrices, {"lr": lr})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient; there is no `closure`."""
        for group in self.param_groups:
            for matrix in (p for p in group["params"] if p.grad is not None):
                update = orthogonal(self._momentum(matrix), self._dtype)
                matrix.add_(update, alpha=-group["lr"] * ADAMW * max(matrix.shape) ** 0.5)

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        """The mean of all gradients so far, moved once more towards this one (Nesterov)."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(mean, MOMENTUM)


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """`matrix` [m, n] with all its singular values near 1, by Newton and Schulz's iteration in `dtype`."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    # The iteration converges for singular values up to 1, none of which is more than this norm.
    x = x / x.norm().clamp(min=TINY)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
