"""The pass that quantises linear layers, and the inputs of self-attention, in a traced program's graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import Node

from export.lowering import nvfp4
from export.lowering.calibration import attention_input_names
from export.lowering.fp8 import (
    DEQUANTIZE,
    DEQUANTIZE_BY,
    DEQUANTIZE_ROWS,
    QUANTIZE,
    QUANTIZE_BY,
    input_scale,
    quantize,
    row_scales,
)
from export.lowering.trace import rebuilt

HEADROOM = 1.1
"""Factor by which inputs may exceed the largest in calibration before they saturate."""

LINEAR = torch.ops.aten.linear.default
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Layer:
    """A linear layer in the graph of a program."""

    name: str
    node: Node
    weight: Node


def linear_layers(program: ExportedProgram) -> list[Layer]:
    """The linear layers of `program` whose weight is a parameter, in the order of its graph."""
    parameters = program.graph_signature.inputs_to_parameters
    return [
        Layer(parameters[weight.name].removesuffix(".weight"), node, weight)
        for node in program.graph.nodes
        if node.target is LINEAR and isinstance(weight := node.args[1], Node) and weight.name in parameters
    ]


def quantized(
    program: ExportedProgram, largest: Mapping[str, float], precision: str, *, shared: bool = False
) -> ExportedProgram:
    """Quantise what is named in `largest`: layers to `precision`, self-attention to fp8. All else stays.

    Args:
        program: traced in float32, as by `export.lowering.trace`; it is consumed.
        largest: the largest magnitude of the inputs of each layer, by its name, and of those of each
            self-attention, by `export.lowering.calibration.attention_input_names`.
        precision: `fp8` or `nvfp4`.
        shared: the scales of inputs are parameters too, as in `fp8_weights`, so that the program serves other
            layers of the same shapes; for fp8 alone.
    """
    edit = ProgramEdit(program, shared)
    for layer in linear_layers(program):
        if layer.name in largest:
            reach = HEADROOM * largest[layer.name]
            read = edit.fp8(layer, reach) if precision == "fp8" else edit.nvfp4(layer, reach)
            layer.node.args = (*read, *layer.node.args[2:])
    for name, node in attentions(program).items():
        if all(part in largest for part in attention_input_names(name)):
            edit.attention(node, [HEADROOM * largest[part] for part in attention_input_names(name)])
    return edit.done()


def attentions(program: ExportedProgram) -> dict[str, Node]:
    """The attentions of `program` without a mask, by the name of the module that calls each."""
    calls = [node for node in program.graph.nodes if node.target is ATTENTION and len(node.args) == 3]
    return {list(node.meta["nn_module_stack"].values())[-1][0]: node for node in calls}


def fp8_weights(name: str, weight: Tensor, reach: float) -> dict[str, Tensor]:
    """What the program of the layer called `name` computes with: codes, their scales, and that of its inputs.

    The last one is a parameter of programs that are `shared` alone.

    Args:
        name: of the layer.
        weight: [out, in] float32.
        reach: `HEADROOM` times the largest magnitude of the layer's inputs.
    """
    scales = row_scales(weight)
    return {
        f"{name}.weight": quantize(weight / scales[:, None], 1.0),
        f"{name}.weight_scale": scales,
        f"{name}.input_scale": weight.new_full((), input_scale(reach)),
    }


class ProgramEdit:
    """Edits a program: replaces weights by codes and adds parameters."""

    def __init__(self, program: ExportedProgram, shared: bool = False) -> None:
        self.program, self.graph, self.shared = program, program.graph, shared
        self.state_dict = dict(program.state_dict)
        self.specs: list[InputSpec] = list(program.graph_signature.input_specs)
        self.codes: dict[tuple[Node, float | Node], Node] = {}
        """The quantised form of each input at each scale, which layers that read the same input share."""

    def fp8(self, layer: Layer, reach: float) -> tuple[Node, Node]:
        """Quantise input and weight to e4m3 codes that are dequantised before the product."""
        made = fp8_weights(layer.name, self.state_dict[f"{layer.name}.weight"], reach)
        weight, *scales = made
        self.replace(layer.weight, made[weight])
        of_weight, *of_input = (
            self.parameter(name, made[name], before=layer.weight)
            for name in (scales if self.shared else scales[:1])
        )
        scale: float | Node = of_input[0] if self.shared else input_scale(reach)
        codes = self.codes_of(layer.node.args[0], scale)  # type: ignore[arg-type]
        with self.graph.inserting_before(layer.node):
            dequantize = DEQUANTIZE_BY if self.shared else DEQUANTIZE
            values = self.call(dequantize, codes, scale, torch.float32)
            return values, self.call(DEQUANTIZE_ROWS, layer.weight, of_weight)

    def attention(self, node: Node, reaches: Sequence[float]) -> None:
        """Let the attention `node` read codes of queries, keys and values, which reach as far as `reaches`.

        TensorRT fuses attention on codes if queries are scaled before they are rounded, and the softmax is
        rounded too. No operation of a graph does the latter: `export.backends.tensorrt_process` asks for it.
        """
        query, keys, values = cast(tuple[Node, Node, Node], node.args)
        scale = query.meta["val"].shape[-1] ** -0.5
        with self.graph.inserting_before(node):
            scaled = self.call(torch.ops.aten.mul.Tensor, query, scale)
            scales = [input_scale(reach) for reach in (reaches[0] * scale, *reaches[1:])]
            node.args = tuple(
                self.call(DEQUANTIZE, self.call(QUANTIZE, part, own), own, torch.float32)
                for part, own in zip((scaled, keys, values), scales, strict=True)
            )
        node.kwargs = {**node.kwargs, "scale": 1.0}

    def nvfp4(self, layer: Layer, reach: float) -> tuple[Node, Node]:
        """Quantise to e2m1 codes with a scale for each 16 numbers; inputs are quantised at run time."""
        weight = self.state_dict[f"{layer.name}.weight"]
        scale = nvfp4.tensor_scale(float(weight.abs().max()))
        codes, scales = nvfp4.quantize(weight, scale)
        self.replace(layer.weight, codes)
        scales_node = self.parameter(f"{layer.name}.weight_scale", scales, before=layer.weight)
        with self.graph.inserting_before(layer.node):
            values = self.call(nvfp4.ROUND, layer.node.args[0], nvfp4.tensor_scale(reach))  # type: ignore[arg-type]
            return values, self.call(nvfp4.DEQUANTIZE, layer.weight, scales_node, scale)

    def replace(self, weight: Node, codes: Tensor) -> None:
        """Replace the parameter behind the placeholder `weight` by `codes`."""
        name = self.program.graph_signature.inputs_to_parameters[weight.name]
        self.state_dict[name] = nn.Parameter(codes, requires_grad=False)
        weight.meta["val"] = weight.meta["val"].new_empty(codes.shape, dtype=codes.dtype)

    def codes_of(self, x: Node, scale: float | Node) -> Node:
        """The codes of `x`, computed once for all layers that read it with this scale."""
        if (x, scale) not in self.codes:
            with self.graph.inserting_after(x):
                # Behind x itself, so that every layer that reads x comes after it.
                self.codes[x, scale] = self.call(QUANTIZE_BY if self.shared else QUANTIZE, x, scale)
        return self.codes[x, scale]

    def parameter(self, name: str, value: Tensor, *, before: Node) -> Node:
        """Add a parameter to the program, in front of the one whose placeholder is `before`."""
        with self.graph.inserting_before(before):
            node: Node = self.graph.placeholder("p_" + name.replace(".", "_"))
        node.meta["val"] = before.meta["val"].new_empty(value.shape, dtype=value.dtype)
        place = next(i for i, spec in enumerate(self.specs) if spec.arg.name == before.name)
        argument = TensorArgument(name=node.name)
        self.specs.insert(place, InputSpec(kind=InputKind.PARAMETER, arg=argument, target=name))
        self.state_dict[name] = nn.Parameter(value, requires_grad=False)
        return node

    def call(self, target: torch._ops.OpOverload, *args: Node | float | torch.dtype) -> Node:
        node: Node = self.graph.call_function(target, args)
        node.meta["val"] = target(*(a.meta["val"] if isinstance(a, Node) else a for a in args))
        return node

    def done(self) -> ExportedProgram:
        """The program after the edit, checked again by torch."""
        signature = ExportGraphSignature(self.specs, self.program.graph_signature.output_specs)
        constants = self.program.constants
        return rebuilt(self.program, signature=signature, state_dict=self.state_dict, constants=constants)
