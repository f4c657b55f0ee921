"""The features of a chunk on a GPU that users get by default, each with the engine that lacks it.

A new feature is measured by one entry in `ITEMS`: reports, documents and the ladder follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.gpu.arms.attention import HeadsFirst, SeparateExpansion, SeparateProjections
from runtime.engines.base import EagerEngine
from runtime.engines.optimizations import Optimizations
from vmla.transformer import VideoMLA


class Masked(EagerEngine):
    """An engine that is never told that the window is full."""

    def _form(self, held: int | None) -> tuple[VideoMLA, bool]:
        return self._full, False


@dataclass(frozen=True, kw_only=True)
class Item:
    """A feature, and how an engine is made that has all but this one."""

    name: str
    without: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `EagerEngine` that turn it off."""
    kind: type[EagerEngine] = EagerEngine
    """The class of an engine without it."""
    graphs: bool = True
    """Whether chunks without it are replayed as CUDA graphs."""
    part_of: str | None = None
    """The name of the item that this one is a part of."""


def but(**off: Any) -> dict[str, Any]:
    """Arguments of an engine with all optimisations but some, which are fields of `Optimizations`."""
    return {"optimizations": Optimizations(**off)}


NOISE = Item(name="A against A")
"""The same engine twice: a gain within its spread is none."""
JOINED = "joined products"
ITEMS = (
    Item(name="graphs", graphs=False),
    Item(name="compiled blocks", without={"compiled": False}),
    Item(name="a full window pays no mask", kind=Masked),
    Item(name=JOINED, without=but(joined=False)),
    Item(name="GELU in its product", without=but(gelu_in_product=False)),
    Item(name="attention in waves", without=but(waves=False)),
    Item(
        name="expansion as one product",
        without=but(attention=SeparateExpansion),
        part_of=JOINED,
    ),
    Item(
        name="projections as one product",
        without=but(attention=SeparateProjections),
        part_of=JOINED,
    ),
    Item(
        name="heads stay in place",
        without=but(attention=HeadsFirst),
        part_of=JOINED,
    ),
)
"""The arms that are cheapest to build come first: from the third on, each compiles the model again. Parts of
others come last, because they are the first to be left out where time runs out."""
