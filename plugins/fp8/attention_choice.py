"""Whether attention in float8 is taken: only where it was right and faster, on this device and at this size.

It is run on random inputs first, and must come as close to its plain reference as their different roundings
allow, and as close to attention in the wide type as the reference does. Then both are timed in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from plugins.fp8.attention import AttendToCodes, fp8_attention, reference_attend
from plugins.fp8.cudnn_attention import AttentionSizes
from plugins.operator import dense_attention
from plugins.triton.split_kv import Timer, fastest_splits

FARTHEST = 0.08
"""Largest distance from the reference. Two forms that round weights relative to different maxima, and their
outputs, are 0.036 to 0.050 apart (normal inputs, 512 to 9,360 keys, on a CPU)."""
WORST = 1.25
"""Largest error against the wide type, as a multiple of the reference's own."""
ROWS = 256
"""Queries that are compared, spread over all of them: the reference writes out their scores."""

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention to all keys: see `plugins.dense_attention`."""


class Check(NamedTuple):
    """How close a form in float8 comes, on random inputs; distances are norms over norms."""

    distance: float
    """From the plain reference."""
    error: float
    """From attention in the wide type."""
    reference_error: float
    """Of the reference from attention in the wide type."""

    def fault(self) -> str | None:
        """What is wrong, or None; NaN is wrong."""
        if not self.distance <= FARTHEST:
            return f"it is {self.distance:.3f} away from its reference, and may be {FARTHEST}"
        if not self.error <= WORST * self.reference_error:
            return f"its error is {self.error:.3f}, and that of its reference {self.reference_error:.3f}"
        return None


def random_inputs(
    sizes: AttentionSizes, *, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, keys and values [B, N, tokens, ...], with the memory of [B, tokens, N, ...], of one seed.

    Heads have flatter and sharper softmaxes, from scores of deviation 1 to 3.
    """
    generator = torch.Generator(device).manual_seed(0)

    def drawn(tokens: int, width: int, spread: Tensor | float = 1.0) -> Tensor:
        shape = sizes.batch, tokens, sizes.heads, width
        made = torch.randn(shape, generator=generator, device=device) * spread
        return made.to(dtype).transpose(1, 2)

    sharp = torch.linspace(1, 3, sizes.heads, device=device)[:, None]
    return (
        drawn(sizes.queries, sizes.width, sharp),
        drawn(sizes.keys, sizes.width),
        drawn(sizes.keys, sizes.deep),
    )


def checked(query: Tensor, keys: Tensor, values: Tensor, attend: AttendToCodes) -> Check:
    """Compare `attend` with its reference and with attention in the wide type, on some of the queries."""
    made = fp8_attention(query, keys, values, attend)
    picked = torch.linspace(0, query.shape[2] - 1, min(ROWS, query.shape[2]), device=query.device).long()

    def of_some(*inputs: Tensor) -> Tensor:
        # The scales are those of all queries, as they are in what is checked.
        return reference_attend(inputs[0].index_select(1, picked), *inputs[1:])

    wanted = fp8_attention(query, keys, values, of_some)
    wide = dense_attention(query.index_select(2, picked), keys, values)
    got = made.index_select(2, picked)
    return Check(_distance(got, wanted), _distance(got, wide), _distance(wanted, wide))


def is_faster(form: Form, wide: Form, inputs: tuple[Tensor, Tensor, Tensor], timer: Timer) -> bool:
    """Whether `form` takes clearly less time than `wide`, by the median of rounds in turns."""
    forms = (wide, form)
    return fastest_splits(lambda number: forms[number](*inputs), timer, (0, 1)) == 1


def _distance(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())
