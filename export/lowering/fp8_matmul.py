"""fp8 layers as products of codes (`torch._scaled_mm`), for GPUs from Ada and Hopper on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from export.lowering.fp8 import DEQUANTIZE, DEQUANTIZE_BY
from export.lowering.quantized_layers import LINEAR
from export.lowering.trace import rebuilt
from plugins.fp8.product import scaled_product


def scaled_linear(
    codes: Tensor, scale: float | Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None
) -> Tensor:
    """A linear layer of `export.lowering.fp8`, computed from its codes.

    Args:
        codes: [..., in] float8_e4m3fn.
        scale: of all `codes`; a tensor is [] float32.
        weight: [out, in] float8_e4m3fn.
        scales: [out] float32.
        bias: [out] or None.

    Returns:
        [..., out] float32, rounded to bfloat16 by the product, which returns nothing wider with row scales.
    """
    rows = codes.reshape([-1, codes.shape[-1]])
    # The scale of the inputs is repeated for each row: the product takes both scales by row or neither.
    of_inputs = torch.ones([rows.shape[0], 1], dtype=torch.float32, device=codes.device) * scale
    narrow = None if bias is None else bias.to(torch.bfloat16)
    made = scaled_product(rows, of_inputs, weight, scales, narrow)
    return made.reshape([*codes.shape[:-1], weight.shape[0]]).float()


_LIBRARY = torch.library.Library("vmla", "FRAGMENT")
for _name, _kind in (("scaled_linear", "float"), ("scaled_linear.Tensor", "Tensor")):
    _LIBRARY.define(
        f"{_name}(Tensor codes, {_kind} scale, Tensor weight, Tensor scales, Tensor? bias) -> Tensor"
    )
    _LIBRARY.impl(_name, scaled_linear, "CompositeImplicitAutograd")
SCALED, SCALED_BY = torch.ops.vmla.scaled_linear.default, torch.ops.vmla.scaled_linear.Tensor

PRODUCTS: dict[Any, torch._ops.OpOverload] = {DEQUANTIZE: SCALED, DEQUANTIZE_BY: SCALED_BY}
"""The product of codes, by what would turn them into values."""


def scaled(program: ExportedProgram) -> ExportedProgram:
    """Turn every fp8 layer of the quantised `program`, which is consumed, into a product of codes."""
    for node in [node for node in program.graph.nodes if node.target is LINEAR]:
        values = node.args[0]
        if not isinstance(values, Node) or values.target not in PRODUCTS:
            continue
        (codes, scale, _), (weight, scales) = values.args, node.args[1].args
        bias = node.args[2] if len(node.args) > 2 else None
        with program.graph.inserting_before(node):
            made = program.graph.call_function(PRODUCTS[values.target], (codes, scale, weight, scales, bias))
        made.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(made)
        program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    return rebuilt(
        program,
        signature=program.graph_signature,
        state_dict=program.state_dict,
        constants=program.constants,
    )
