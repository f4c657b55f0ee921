"""The attention operator: one reference, one entry point, and the kernels behind it."""

from plugins.backends import Backend
from plugins.dense import dense_attention
from plugins.operator import expand, mla_attention, mla_attention_absorbed

__all__ = ["Backend", "dense_attention", "expand", "mla_attention", "mla_attention_absorbed"]
