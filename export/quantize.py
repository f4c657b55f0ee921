"""fp8 linear layers: e4m3 codes of inputs and weights, as one pass over a traced program's graph.

A layer W x + b becomes  s_w s_x (W / s_w)_8 (x / s_x)_8 + b, where (.)_8 rounds to float8_e4m3fn and
saturates at 448. Inputs have one scale per tensor, from the calibration, weights one per output channel,
from the weights. In the graph this is quantise, dequantise, linear: what TensorRT fuses into one product
of codes, ONNX Runtime runs step by step, and `export.scaled` turns into PyTorch's own product of codes.

Scales are powers of two. In a floating format that costs no precision, only part of the range (measured
on the shipped model: no difference to the exact maximum); in return dividing by them is exact and so is
each scale in float32, bfloat16 and float16 alike, so that every backend makes the same codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import Node

from export.trace import rebuilt

LARGEST = torch.finfo(torch.float8_e4m3fn).max
"""448"""

HEADROOM = 1.1
"""How much larger than on the calibration's rollouts inputs may become before they saturate."""

_LIBRARY = torch.library.Library("vmla", "FRAGMENT")
_LIBRARY.define("quantize(Tensor x, float scale) -> Tensor")
_LIBRARY.define("dequantize(Tensor codes, float scale, ScalarType dtype) -> Tensor")
_LIBRARY.define("dequantize_rows(Tensor codes, Tensor scales) -> Tensor")

QUANTIZE = torch.ops.vmla.quantize.default
DEQUANTIZE = torch.ops.vmla.dequantize.default
DEQUANTIZE_ROWS = torch.ops.vmla.dequantize_rows.default
LINEAR = torch.ops.aten.linear.default


def quantize(x: Tensor, scale: float) -> Tensor:
    """The float8_e4m3fn codes of x / scale, to the nearest even, saturated at 448."""
    # Clamped first: what PyTorch's cast does beyond 448 depends on version and device.
    return (x / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def dequantize(codes: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """What `codes` stand for, in `dtype`."""
    return codes.to(dtype) * scale


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """What `codes` [out, in] stand for with `scales` [out], in the type of the scales."""
    return codes.to(scales.dtype) * scales[:, None]


# Compositions, as in `plugins.operator`: a traced graph keeps them as nodes, a compiler looks inside.
for _name, _composition in (
    ("quantize", quantize),
    ("dequantize", dequantize),
    ("dequantize_rows", dequantize_rows),
):
    _LIBRARY.impl(_name, _composition, "CompositeImplicitAutograd")


def input_scale(largest: float) -> float:
    """The smallest power of two that brings inputs up to `largest` within reach; 1 for zeros."""
    part, exponent = math.frexp(largest / LARGEST)  # part * 2^exponent with 1/2 <= part < 1
    return math.ldexp(1.0, exponent - (part == 0.5))


def row_scales(weight: Tensor) -> Tensor:
    """`input_scale` of each row of `weight` [out, in]: [out] float32."""
    part, exponent = torch.frexp(weight.abs().amax(dim=1).float() / LARGEST)
    return torch.ldexp(torch.ones_like(part), exponent - (part == 0.5).int())


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
        if node.target is LINEAR
        and isinstance(weight := node.args[1], Node)
        and weight.name in parameters
    ]


def quantized(program: ExportedProgram, largest: Mapping[str, float]) -> ExportedProgram:
    """The program with the layers of `largest` in fp8; all others are left alone.

    The given program is used up.

    Args:
        program: traced in float32, as by `export.trace`.
        largest: the largest magnitude of the inputs of each layer, by its name.
    """
    edit = _Edit(program)
    for layer in linear_layers(program):
        if layer.name in largest:
            edit.quantize(layer, input_scale(HEADROOM * largest[layer.name]))
    return edit.done()


class _Edit:
    """A pass that replaces weights by codes and adds parameters."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program, self.graph = program, program.graph
        self.state_dict = dict(program.state_dict)
        self.specs: list[InputSpec] = list(program.graph_signature.input_specs)
        self.codes: dict[tuple[Node, float], Node] = {}
        """What layers share: the codes of one input."""

    def quantize(self, layer: Layer, scale: float) -> None:
        """Put codes in the place of the weight, and quantise and dequantise before the product."""
        weight = self.state_dict[f"{layer.name}.weight"]
        scales = row_scales(weight)
        codes = quantize(weight / scales[:, None], 1.0)
        self.state_dict[f"{layer.name}.weight"] = nn.Parameter(codes, requires_grad=False)
        layer.weight.meta["val"] = layer.weight.meta["val"].to(codes.dtype)
        scales_node = self.parameter(f"{layer.name}.weight_scale", scales, before=layer.weight)
        x, _, *bias = layer.node.args
        with self.graph.inserting_before(layer.node):
            values = self.call(DEQUANTIZE, self.codes_of(x, scale), scale, torch.float32)  # type: ignore[arg-type]
            matrix = self.call(DEQUANTIZE_ROWS, layer.weight, scales_node)
        layer.node.args = (values, matrix, *bias)

    def codes_of(self, x: Node, scale: float) -> Node:
        """The codes of `x`, made once for all who read it with this scale."""
        if (x, scale) not in self.codes:
            with self.graph.inserting_after(x):
                self.codes[x, scale] = self.call(QUANTIZE, x, scale)
        return self.codes[x, scale]

    def parameter(self, name: str, value: Tensor, *, before: Node) -> Node:
        """A new parameter of the program, in front of the one whose placeholder is `before`."""
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
        """The edited program."""
        signature = ExportGraphSignature(self.specs, self.program.graph_signature.output_specs)
        constants = self.program.constants
        return rebuilt(self.program, signature=signature, state_dict=self.state_dict, constants=constants)
