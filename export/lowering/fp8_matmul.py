"""fp8 layers as products of codes (`torch._scaled_mm`), for GPUs from Ada and Hopper on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from export.lowering.fp8 import DEQUANTIZE, DEQUANTIZE_BY
from export.lowering.quantized_layers import LINEAR
from export.lowering.trace import rebuilt
from plugins.fp8.product import scaled_product


def scaled_linear(codes: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of `export.lowering.fp8`, computed from its codes.

    Args:
        codes: [..., in] float8_e4m3fn.
        weight: [out, in] float8_e4m3fn.
        scales: [out] float32, of the rows of `weight` times that of all `codes`.
        bias: [out] bfloat16, or None.

    Returns:
        [..., out] float32, rounded to bfloat16 by the product, which returns nothing wider with row scales.
    """
    rows = codes.reshape([-1, codes.shape[-1]])
    # The product takes scales of both factors by row or of neither. All layers of a program share these ones.
    ones = torch.ones([rows.shape[0], 1], dtype=torch.float32, device=codes.device)
    made = scaled_product(rows, ones, weight, scales, bias)
    return made.reshape([*codes.shape[:-1], weight.shape[0]]).float()


_LIBRARY = torch.library.Library("vmla", "FRAGMENT")
_LIBRARY.define("scaled_linear(Tensor codes, Tensor weight, Tensor scales, Tensor? bias) -> Tensor")
_LIBRARY.impl("scaled_linear", scaled_linear, "CompositeImplicitAutograd")
SCALED = torch.ops.vmla.scaled_linear.default


def scaled(program: ExportedProgram) -> ExportedProgram:
    """Turn every fp8 layer of the quantised `program`, which is consumed, into a product of codes.

    The scale of a layer's inputs becomes part of its weight's, and its bias bfloat16, so that neither takes a
    kernel when the program runs.
    """
    names, weights = program.graph_signature.inputs_to_parameters, dict(program.state_dict)

    def store(parameter: Node, value: Tensor) -> None:
        weights[names[parameter.name]] = nn.Parameter(value, requires_grad=False)
        parameter.meta["val"] = parameter.meta["val"].to(value.dtype)

    for node in [node for node in program.graph.nodes if node.target is LINEAR]:
        values = node.args[0]
        if not isinstance(values, Node) or values.target not in (DEQUANTIZE, DEQUANTIZE_BY):
            continue
        (codes, scale, _), (weight, scales) = values.args, node.args[1].args
        of_inputs: Any = weights[names[scale.name]] if isinstance(scale, Node) else scale
        store(scales, with_inputs(weights[names[scales.name]], of_inputs))
        bias = node.args[2] if len(node.args) > 2 else None
        if bias is not None:
            store(bias, weights[names[bias.name]].to(torch.bfloat16))
        with program.graph.inserting_before(node):
            made = program.graph.call_function(SCALED, (codes, weight, scales, bias))
        made.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(made)
        program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    return rebuilt(
        program,
        signature=program.graph_signature,
        state_dict=weights,
        constants=program.constants,
    )


def with_inputs(scales: Tensor, scale: Tensor | float) -> Tensor:
    """The scales that `scaled_linear` takes; exact, as all are powers of two.

    Args:
        scales: [out] float32, of a weight's rows.
        scale: of the layer's inputs.
    """
    return scales.detach() * (scale.detach() if isinstance(scale, Tensor) else scale)
