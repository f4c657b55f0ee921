"""fp8 layers as products of codes (`torch._scaled_mm`), for GPUs from Ada and Hopper on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from export.lowering.fp8 import DEQUANTIZE
from export.lowering.quantized_layers import LINEAR
from export.lowering.trace import rebuilt
from plugins.fp8.product import scaled_product


def scaled_linear(codes: Tensor, scale: float, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of `export.lowering.fp8`, computed from its codes.

    Args:
        codes: [..., in] float8_e4m3fn.
        scale: of all `codes`.
        weight: [out, in] float8_e4m3fn.
        scales: [out] float32.
        bias: [out] or None.

    Returns:
        [..., out] float32, rounded to bfloat16 by the product, which returns nothing wider with row scales.
    """
    rows = codes.reshape([-1, codes.shape[-1]])
    # The scale of the inputs is repeated for each row: the product takes both scales by row or neither.
    of_inputs = torch.full([rows.shape[0], 1], scale, dtype=torch.float32, device=codes.device)
    narrow = None if bias is None else bias.to(torch.bfloat16)
    made = scaled_product(rows, of_inputs, weight, scales, narrow)
    return made.reshape([*codes.shape[:-1], weight.shape[0]]).float()


_LIBRARY = torch.library.Library("vmla", "FRAGMENT")
_LIBRARY.define(
    "scaled_linear(Tensor codes, float scale, Tensor weight, Tensor scales, Tensor? bias) -> Tensor"
)
_LIBRARY.impl("scaled_linear", scaled_linear, "CompositeImplicitAutograd")
SCALED = torch.ops.vmla.scaled_linear.default


def scaled(program: ExportedProgram) -> ExportedProgram:
    """Turn every fp8 layer of the quantised `program`, which is consumed, into a product of codes."""
    for node in list(program.graph.nodes):
        if node.target is not LINEAR or not _is(node.args[0], DEQUANTIZE):
            continue
        (codes, scale, _), (weight, scales) = node.args[0].args, node.args[1].args
        bias = node.args[2] if len(node.args) > 2 else None
        with program.graph.inserting_before(node):
            made = program.graph.call_function(SCALED, (codes, scale, weight, scales, bias))
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


def _is(node: object, target: object) -> bool:
    return isinstance(node, Node) and node.target is target
