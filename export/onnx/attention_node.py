"""Self-attention as one node of an ONNX graph, and the model-local function that defines the node.

The node is `vmla::mla_attention`, with the inputs of the operator of that name. TensorRT's parser replaces it
by our plugin: the attribute `plugin_namespace` makes it look for a plugin first. A runtime without that
plugin, such as ONNX Runtime, runs the function of the same name.

The function is not written by hand. It is the operator's own composition, exported like everything else for
the shapes and types at hand. The exporter inlines every function that it sees, so it is attached afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram

from plugins import sdpa
from plugins.aot.tensorrt_plugin import NAMESPACE

if TYPE_CHECKING:
    import onnx_ir

NAME = "mla_attention"
INPUTS = ("query", "keys", "values", "valid")
OPERATOR = torch.ops.vmla.mla_attention.default

LOOKUP = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}
"""Attributes by which TensorRT's parser finds the plugin; `aot` selects its ahead-of-time kernel."""


class Composition(nn.Module):
    """The node's computation, in the form for which ONNX Runtime and TensorRT have a fused kernel."""

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
        """See `plugins.reference.attention`."""
        return sdpa.attention(query, keys, values, valid)


def translation() -> dict[Any, Callable[..., Any]]:
    """A translation table for the exporter that turns the operator into the node."""
    from onnxscript import values

    node = values.Op(values.Opset(NAMESPACE, 1), NAME, _schema())

    def translate(query: Any, keys: Any, values: Any, valid: Any, **_: Any) -> Any:
        return node(query, keys, values, valid, **LOOKUP)

    return {OPERATOR: translate}


def example(program: ExportedProgram) -> tuple[Tensor, ...] | None:
    """Fake arguments of the operator's calls in `program`; None if it is not called.

    Raises:
        ValueError: if its calls differ in shape or dtype, so that one function cannot serve all.
    """
    calls = [node for node in program.graph.nodes if node.target is OPERATOR]
    kinds = {
        tuple((tuple(a.meta["val"].shape), a.meta["val"].dtype) for a in call.args[: len(INPUTS)])
        for call in calls
    }
    if not kinds:
        return None
    [kind] = kinds
    with FakeTensorMode():
        return tuple(torch.empty(shape, dtype=dtype) for shape, dtype in kind)


def attach(model: onnx_ir.Model, body: onnx_ir.Model) -> None:
    """Add `body`, the exported `Composition`, to `model` as the function of its nodes."""
    import onnx_ir as ir

    if body.graph.initializers:
        raise ValueError(f"the function would need weights: {', '.join(body.graph.initializers)}")
    body.graph.opset_imports.update({"": model.opset_imports[""]})
    function = ir.Function(NAMESPACE, NAME, graph=body.graph, attributes=[])
    model.functions[function.identifier()] = function


def attention_nodes(graph: Path) -> int:
    """Number of attention nodes in the ONNX file `graph`."""
    import onnx

    nodes = onnx.load(str(graph), load_external_data=False).graph.node
    return sum((node.domain, node.op_type) == (NAMESPACE, NAME) for node in nodes)


def quantized_attentions(graph: Path) -> int:
    """Number of attentions in the ONNX file `graph` whose queries, keys and values are all codes."""
    import onnx

    nodes = onnx.load(str(graph), load_external_data=False).graph.node
    codes = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type == "Attention" and codes.issuperset(node.input[:3]) for node in nodes)


def _schema() -> Any:
    """The schema of the node, without which the exporter does not emit it."""
    from onnx import defs

    formal, attribute, kinds = (
        defs.OpSchema.FormalParameter, defs.OpSchema.Attribute, defs.OpSchema.AttrType
    )  # fmt: skip
    floats = ["tensor(float)", "tensor(bfloat16)", "tensor(float16)"]
    return defs.OpSchema(
        NAME,
        NAMESPACE,
        1,
        inputs=[*(formal(name, "T") for name in INPUTS[:3]), formal("valid", "tensor(bool)")],
        outputs=[formal("out", "T")],
        type_constraints=[("T", floats, "")],
        attributes=[
            attribute(name, kinds.INT if isinstance(value, int) else kinds.STRING, required=False)
            for name, value in LOOKUP.items()
        ],
    )
