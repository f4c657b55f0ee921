"""fp8 layers as products of codes (`torch._scaled_mm`), for GPUs from Ada and Hopper on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from export.lowering.fp8 import DEQUANTIZE, DEQUANTIZE_BY
from export.lowering.quantized_layers import LINEAR, ProgramEdit
from plugins.fp8.product import scaled_product

ROWS = "scaled_rows"
"""Name of the parameter with the scales of the rows of inputs, which are ones."""


def scaled_linear(codes: Tensor, rows: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of `export.lowering.fp8`, computed from its codes.

    Args:
        codes: [..., in] float8_e4m3fn, M rows in all.
        rows: [M, 1] float32, ones: the product takes scales of the rows of both factors or of neither.
        weight: [out, in] float8_e4m3fn.
        scales: [out] float32, of the rows of `weight` times that of all `codes`.
        bias: [out] bfloat16, or None.

    Returns:
        [..., out] float32, rounded to bfloat16 by the product, which returns nothing wider with row scales.
    """
    made = scaled_product(codes.reshape([-1, codes.shape[-1]]), rows, weight, scales, bias)
    return made.reshape([*codes.shape[:-1], weight.shape[0]]).float()


_LIBRARY = torch.library.Library("vmla", "FRAGMENT")
_LIBRARY.define(
    "scaled_linear(Tensor codes, Tensor rows, Tensor weight, Tensor scales, Tensor? bias) -> Tensor"
)
_LIBRARY.impl("scaled_linear", scaled_linear, "CompositeImplicitAutograd")
SCALED = torch.ops.vmla.scaled_linear.default


def scaled(program: ExportedProgram) -> ExportedProgram:
    """Turn every fp8 layer of the quantised `program`, which is consumed, into a product of codes.

    The scale of a layer's inputs becomes part of its weight's, its bias becomes bfloat16, and the scales of
    rows are a parameter of the program, so that none of them takes a kernel when the program runs.

    Raises:
        ValueError: if layers read different numbers of rows.
    """
    edit, rows = ProgramEdit(program), None
    names = program.graph_signature.inputs_to_parameters
    for node in [node for node in program.graph.nodes if node.target is LINEAR]:
        values = node.args[0]
        if not isinstance(values, Node) or values.target not in (DEQUANTIZE, DEQUANTIZE_BY):
            continue
        (codes, scale, _), (weight, scales) = values.args, node.args[1].args
        of_inputs: Any = edit.state_dict[names[scale.name]] if isinstance(scale, Node) else scale
        edit.replace(scales, with_inputs(edit.state_dict[names[scales.name]], of_inputs))
        bias = node.args[2] if len(node.args) > 2 else None
        if bias is not None:
            edit.replace(bias, edit.state_dict[names[bias.name]].detach().to(torch.bfloat16))
        count = codes.meta["val"].shape[:-1].numel()  # type: ignore[union-attr]
        if rows is None:
            like = edit.state_dict[names[weight.name]]
            first = next(node for node in program.graph.nodes if node.name in names)
            rows = edit.parameter(ROWS, like.new_ones([count, 1], dtype=torch.float32), before=first)
        if rows.meta["val"].shape[0] != count:
            raise ValueError(f"layers read {rows.meta['val'].shape[0]} rows and {count}")
        with program.graph.inserting_before(node):
            made = program.graph.call_function(SCALED, (codes, rows, weight, scales, bias))
        made.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(made)
        program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    return edit.done()


def with_inputs(scales: Tensor, scale: Tensor | float) -> Tensor:
    """The scales that `scaled_linear` takes; exact, as all are powers of two.

    Args:
        scales: [out] float32, of a weight's rows.
        scale: of the layer's inputs.
    """
    return scales.detach() * (scale.detach() if isinstance(scale, Tensor) else scale)
