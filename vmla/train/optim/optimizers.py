"""How a stage's parameters move: AdamW, with Muon for the matrices where a schedule asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vmla.train.optim.muon import Muon

PRETRAINING_BETAS = (0.9, 0.98)
"""AdamW's decay rates in training from nothing: 0.98, as for the first transformers, averages squares over
some 50 steps, which runs of a few thousand steps need; PyTorch's 0.999 averages over 1,000."""


@dataclass(frozen=True, kw_only=True)
class TrainingSchedule:
    """Length and rates of a stage: a linear rise, a plateau, and a linear fall to zero."""

    steps: int
    learning_rate: float
    """AdamW's rate on the plateau, after the warm-up."""
    matrix_rate: float | None = None
    """Muon's rate, for inner matrices and convolutions; None leaves them to AdamW."""
    warmup: int = 50
    """Steps of the linear rise at the start."""
    decay: int
    """Steps of the fall at the end."""
    average: float = 0.998
    """Decay of the exponential moving average of the weights; the average is what is shipped."""
    clip: float = 1.0
    """Norm that the gradient of all parameters together is clipped to."""
    save_every: int = 100

    @property
    def betas(self) -> tuple[float, float]:
        """AdamW's decay rates of the gradient's mean and of its square."""
        return PRETRAINING_BETAS

    @property
    def weight_decay(self) -> float:
        """AdamW's decoupled weight decay, none in training from nothing."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class DistilSchedule(TrainingSchedule):
    """Schedule of stages that start from trained weights: AdamW without momentum, as in Self-Forcing."""

    betas: tuple[float, float] = (0.0, 0.999)  # type: ignore[misc]
    weight_decay: float = 0.01  # type: ignore[misc]
    average: float = 0.99
    clip: float = 10.0
    warmup: int = 0
    decay: int = 0


class Optimizers:
    """The optimizers of one model under one schedule, stepped together."""

    def __init__(
        self, model: nn.Module, schedule: TrainingSchedule, dtype: torch.dtype = torch.float32
    ) -> None:
        """`dtype` is the type of Muon's products; weights and optimizer states are float32."""
        self._schedule = schedule
        self._parameters = list(model.parameters())
        named = [] if schedule.matrix_rate is None else model.named_parameters()
        inner = [p for n, p in named if _is_inner(n, p)]
        chosen = {id(p) for p in inner}
        others = [p for p in self._parameters if id(p) not in chosen]
        # Muon knows matrices only: a convolution joins as a view, one row for each output channel.
        self._views = [(p, nn.Parameter(p.detach().flatten(1))) for p in inner]
        self._all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                others,
                lr=schedule.learning_rate,
                betas=schedule.betas,
                weight_decay=schedule.weight_decay,
            )
        ]
        if schedule.matrix_rate is not None:
            views = [view for _, view in self._views]
            self._all.append(Muon(views, lr=schedule.matrix_rate, dtype=dtype))
        self._rates = [group["lr"] for optimizer in self._all for group in optimizer.param_groups]

    def factor(self, step: int) -> float:
        """Factor of the learning rates at `step`, counted from 0.

        Raises:
            ValueError: for a step that the schedule does not have.
        """
        if not 0 <= step < self._schedule.steps:
            raise ValueError(f"step {step} of a schedule of {self._schedule.steps}")
        rise = (step + 1) / max(self._schedule.warmup, 1)
        fall = (self._schedule.steps - step) / max(self._schedule.decay, 1)
        return min(1.0, rise, fall)

    def step(self, step: int) -> None:
        """Move the parameters by their gradients, which are then cleared."""
        nn.utils.clip_grad_norm_(self._parameters, self._schedule.clip)
        groups = [group for optimizer in self._all for group in optimizer.param_groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * self.factor(step)
        for parameter, view in self._views:
            view.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for optimizer in self._all:
            optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of each optimizer."""
        return [optimizer.state_dict() for optimizer in self._all]

    def sharded_state(self) -> dict[str, Any]:
        """The optimizer's state of each parameter, by the parameter's place; created now if it is missing."""
        (optimizer,) = self._all
        for parameter in self._parameters:
            if not optimizer.state[parameter]:
                moments = ("exp_avg", "exp_avg_sq")
                optimizer.state[parameter] = {key: torch.zeros_like(parameter) for key in moments}
                optimizer.state[parameter]["step"] = torch.zeros(())
        return {str(i): dict(optimizer.state[p]) for i, p in enumerate(self._parameters)}

    def load_sharded(self, state: dict[str, Any]) -> None:
        """Continue from a result of `sharded_state`."""
        (optimizer,) = self._all
        for i, parameter in enumerate(self._parameters):
            optimizer.state[parameter] = state[str(i)]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from `states`, as `state_dict` gave them."""
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


def _is_inner(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon suits it: a matrix or a convolution of the blocks, not a first or last layer."""
    return parameter.ndim in (2, 4) and any(part in name for part in ("blocks.", ".mix.", ".inner.", ".out."))
