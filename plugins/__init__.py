"""The attention operator: one reference, one entry point, and the kernels behind it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plugins.dispatch import Backend
    from plugins.operator import dense_attention, expand, mla_attention, mla_attention_absorbed

__all__ = ["Backend", "dense_attention", "expand", "mla_attention", "mla_attention_absorbed"]

HOMES = {
    "Backend": "plugins.dispatch",
    "dense_attention": "plugins.operator",
    "expand": "plugins.operator",
    "mla_attention": "plugins.operator",
    "mla_attention_absorbed": "plugins.operator",
}
"""Which module each name comes from; loaded on first use, so that `plugins.errors` loads no torch."""


def __getattr__(name: str) -> Any:
    """A name of `__all__`, from its module."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(HOMES[name]), name)
    return value
