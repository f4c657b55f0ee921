"""Finds the products of a graph by the weights that they multiply, whose names every lowering keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PRODUCTS = frozenset({"MatMul", "Gemm"})
MOVES = frozenset({"Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose"})
"""What may stand between a weight and its product; each reads the weight as its first input."""
ENDING = ".weight"


def products(model: ModelProto) -> dict[str, str]:
    """The outputs of the products of weights, without their biases, by the layer's name, in graph order.

    Node and tensor names change with the lowering; the names of weights do not. A layer that is multiplied
    several times is counted: `blocks.0.attn1.up_k` and `blocks.0.attn1.up_k (2)`.
    """
    weights = {tensor.name for tensor in model.graph.initializer if tensor.name.endswith(ENDING)}
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, str] = {}
    times: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in PRODUCTS:
            continue
        for weight in _weights_of(node, weights, makers):
            layer = weight.removesuffix(ENDING)
            times[layer] = times.get(layer, 0) + 1
            found[layer if times[layer] == 1 else f"{layer} ({times[layer]})"] = node.output[0]
    return found


def _weights_of(node: NodeProto, weights: set[str], makers: Mapping[str, NodeProto]) -> Iterator[str]:
    """The weights among the two factors of `node`."""
    for name in node.input[:2]:
        while name not in weights and name in makers and makers[name].op_type in MOVES:
            name = makers[name].input[0]
        if name in weights:
            yield name
