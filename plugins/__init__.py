"""The attention operator: one reference, one entry point, and the kernels behind it."""

from plugins.operator import Backend, expand, mla_attention, mla_attention_absorbed

__all__ = ["Backend", "expand", "mla_attention", "mla_attention_absorbed"]
