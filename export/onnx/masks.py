"""Finds what an ONNX graph computes or takes for the validity of tokens.

A step that takes the slots that hold a frame, and no others, has none of it: every token counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

COMPARING = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Where", "Xor"}
)
"""Operations that make a mask or apply one. Positions and norms need none of them."""
MASK = 3
"""Which input of an attention node, `Attention` of ONNX or `mla_attention` of ours, says what is valid."""
ATTENTION = frozenset({"Attention", "mla_attention"})
"""Nodes that take a mask as an input instead of computing it."""


def masks(model: ModelProto) -> list[str]:
    """Inputs, comparisons and attention nodes of `model` that have to do with validity, in words."""
    from onnx import TensorProto

    found = [f"input {value.name} is of truth values" for value in model.graph.input
             if value.type.tensor_type.elem_type == TensorProto.BOOL]  # fmt: skip
    for node in model.graph.node:
        if node.op_type in COMPARING:
            found.append(f"{node.op_type} makes {node.output[0]}")
        elif node.op_type in ATTENTION and len(node.input) > MASK and node.input[MASK]:
            found.append(f"{node.op_type} of {node.output[0]} takes {node.input[MASK]}")
    return found
