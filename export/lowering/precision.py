"""Decides which operations of a program run in which precision, in one pass over its graph.

The policy: matrix products and attention run in the precision asked for. Everything else is float32: the
residual stream, norms, modulation, rotation and activations. Precision inside attention is up to its
operator. The products at the edges (`FLOAT32_PREFIXES`) stay float32 as in Wan: they read or produce the
latents themselves, or the modulation of every layer, and are a thousandth of the cost. Cache and text keys
and values are narrow, latents and velocity float32. On a GPU in bf16 the residual stream is narrow too where
one block hands it to the next (`narrow_between_blocks`).

fp8 and nvfp4 are for linear layers only (`export.lowering.fp8`), and not for all of them
(`export.lowering.exclusions`); everything else runs in a base precision (`base_of`).

The pass fixes where rounding happens: each product reads narrowed arguments, and its result is widened at
once. `_Narrowing.narrowed` then looks back through operations that only move numbers, so that a value which
was narrow before is not widened and narrowed again.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

from export.lowering.fp8 import DEQUANTIZE, DEQUANTIZE_BY, DEQUANTIZE_ROWS
from export.lowering.trace import rebuilt
from plugins.errors import UserError
from vmla.cli.options.names import unknown_name

Precision = Literal["fp32", "bf16", "fp16", "fp8", "nvfp4"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

QUANTIZED = {"fp8": 89, "nvfp4": 100}
"""Precisions with codes and scales, and the first GPU architecture whose tensor cores support them."""

PRODUCTS = {
    "aten.linear.default": 3,
    "aten.matmul.default": 2,
    "aten.scaled_dot_product_attention.default": 3,
    "vmla.expand.default": 4,
    "vmla.mla_attention.default": 3,
}
"""Operations that run in the narrow type, with the number of leading arguments to narrow."""

_TO = torch.ops.aten.to.dtype

FLOAT32_PREFIXES = ("patch_embedding.", "condition_embedder.time_", "proj_out.")
"""Prefixes of the names of weights whose products stay float32."""

_FIRST_NORM = re.compile(r"(blocks\.\d+\.norm1|norm_out)")
"""Names of the norms that read the residual stream as a block, or the head after the last one, takes it."""

MOVES = {
    "aten.cat.default", "aten.chunk.default", "aten.expand.default", "aten.flatten.using_ints",
    "aten.numpy_T.default", "aten.permute.default", "aten.reshape.default", "aten.select.int",
    "aten.slice.Tensor",
    "aten.split_with_sizes.default", "aten.stack.default", "aten.transpose.int", "aten.unbind.int",
    "aten.unflatten.int", "aten.unsqueeze.default", "aten.view.default", "aten.where.ScalarOther",
}  # fmt: skip
"""Operations that only move or select numbers, and so commute with a change of type."""


def check_precision(name: str) -> Precision:
    """Return `name` if it is a known precision.

    Raises:
        UserError: if there is none, listing those there are.
    """
    for known in get_args(Precision):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise unknown_name("precision", name, get_args(Precision))


def check_hardware(precision: Precision, architectures: str) -> None:
    """Refuse GPUs, such as `sm_90` or `sm_89,sm_120`, whose tensor cores lack `precision`.

    Raises:
        UserError: naming the first architecture that has it.
    """
    first = QUANTIZED.get(precision, 0)
    for name in architectures.split(","):
        number = re.fullmatch(r"sm_(\d+)", name)
        if number is not None and int(number[1]) < first:
            raise UserError(f"{name} does not multiply {precision}, sm_{first} and newer do; use bf16")


def base_of(precision: Precision, *, gpu: bool) -> Precision:
    """The precision of everything not quantised; fp32 on a CPU, where ONNX Runtime has no bfloat16."""
    if precision not in QUANTIZED:
        return precision
    return "bf16" if gpu else "fp32"


def narrow_between_blocks(base: Precision, *, gpu: bool) -> bool:
    """Whether one block hands the residual stream to the next in `base`: in bf16 on a GPU.

    There a kernel that reads or writes the stream waits for memory. Within a block its sums are float32. Of
    the three, Inductor never stores the first; to round the second too would save half as much again, and
    make the velocity's error 1.5 times that of a float32 stream, where it is 1.3 times now (shipped model).
    The eager bf16 model, at 2.2 times, rounds all three, and every norm and modulation. In float16 the
    stream, which nothing bounds, could overflow.
    """
    return gpu and base == "bf16"


def in_precision(
    program: ExportedProgram, precision: Precision, held: Collection[str], *, between_blocks: bool = False
) -> ExportedProgram:
    """Lower the program to `precision`; weights that only products read are stored in it.

    Args:
        program: traced in float32, as by `export.lowering.trace`; it is consumed.
        precision: of matrix products; `fp32` changes nothing.
        held: inputs and outputs that have this precision too: cache, entries, text keys and values.
        between_blocks: whether the residual stream has it too from one block to the next.
    """
    if precision == "fp32":
        return program
    pass_ = _Narrowing(program, DTYPES[precision])
    pass_.narrow_inputs(held)
    if between_blocks:
        pass_.narrow_stream()
    for node in list(program.graph.nodes):
        if str(node.target) in PRODUCTS and not pass_.kept_wide(node):
            pass_.narrow_product(node)
    pass_.narrow_outputs(held)
    # Casts that nothing reads any more: a weight whose every reader takes it narrow needs no wide form.
    program.graph.eliminate_dead_code()
    narrow_weights = {pass_.weights[node] for node in pass_.stored if node in pass_.weights}
    state_dict = {
        name: nn.Parameter(value.to(pass_.dtype), requires_grad=False) if name in narrow_weights else value
        for name, value in program.state_dict.items()
    }
    signature, constants = program.graph_signature, program.constants
    return rebuilt(program, signature=signature, state_dict=state_dict, constants=constants)


class _Narrowing:
    """The state of the pass: which nodes are the widened form of which narrow ones."""

    def __init__(self, program: ExportedProgram, dtype: torch.dtype) -> None:
        self.program, self.graph, self.dtype = program, program.graph, dtype
        placeholders = {node.name: node for node in self.graph.nodes if node.op == "placeholder"}
        self.last_placeholder = list(placeholders.values())[-1]
        self.weights = {
            placeholders[spec.arg.name]: str(spec.target)
            for spec in program.graph_signature.input_specs
            if spec.kind is InputKind.PARAMETER
        }
        self.stored: set[Node] = set()
        """Placeholders that have become narrow."""
        self.narrow_of: dict[Node, Node] = {}

    def kept_wide(self, product: Node) -> bool:
        """Whether the policy keeps this product in float32, by the name of its weight."""
        weight = product.args[1]
        return isinstance(weight, Node) and self.weights.get(weight, "").startswith(FLOAT32_PREFIXES)

    def narrow_inputs(self, names: Collection[str]) -> None:
        """Make the inputs called `names` narrow."""
        for node in list(self.graph.nodes):
            if node.op == "placeholder" and node.name in names:
                self._store_narrow(node)

    def narrow_stream(self) -> None:
        """Make the residual stream narrow where a block, or the head, takes it."""
        for norm in list(self.graph.nodes):
            if not _is_first_norm(norm) or norm.args[0] in self.narrow_of:  # an input may be narrow already
                continue
            stream = norm.args[0]
            readers = list(stream.users)
            with self.graph.inserting_after(stream):
                narrow = self._call(_TO, (stream, self.dtype), {})
            # Each reader widens for itself: Inductor would store one wide form that all of them read.
            for reader in readers:
                with self.graph.inserting_before(reader):
                    wide = self._call(_TO, (narrow, torch.float32), {})
                reader.replace_input_with(stream, wide)
                self.narrow_of[wide] = narrow

    def narrow_product(self, node: Node) -> None:
        """Narrow the arguments of `node` and widen its results."""
        count = PRODUCTS[str(node.target)]
        with self.graph.inserting_before(node):
            read = tuple(self.narrowed(a) if isinstance(a, Node) else a for a in node.args[:count])
        node.args = (*read, *node.args[count:])
        node.meta["val"] = _value(node)
        if isinstance(node.meta["val"], Tensor):
            return self._widen(node, after=node)
        for part in list(node.users):  # several results: each is picked by a `getitem`
            part.meta["val"] = _value(part)
            self._widen(part, after=part)
        return None

    def narrow_outputs(self, names: Collection[str]) -> None:
        """Make the outputs called `names` narrow."""
        end = self.graph.output_node()
        outputs = list(end.args[0])  # type: ignore[arg-type]
        for place, spec in enumerate(self.program.graph_signature.output_specs):
            if spec.arg.name in names:
                with self.graph.inserting_before(end):
                    outputs[place] = self.narrowed(outputs[place])  # type: ignore[arg-type]
                wide = end.args[0][place]  # type: ignore[index]
                wide.name, outputs[place].name = f"{spec.arg.name}_wide", spec.arg.name  # type: ignore[union-attr]
        end.args = (tuple(outputs),)

    def narrowed(self, node: Node) -> Node:
        """The narrow form of a float32 `node`, inserted at the graph's insertion point if there is none."""
        if node in self.narrow_of:
            return self.narrow_of[node]
        if node in self.weights:
            return self._store_narrow(node)
        target: Any = node.target
        if target in (DEQUANTIZE, DEQUANTIZE_BY):
            narrow = self._call(target, (*node.args[:2], self.dtype), {})  # exact: see fp8
        elif target is DEQUANTIZE_ROWS:
            narrow = self._call(DEQUANTIZE_ROWS, (node.args[0], self.narrowed(node.args[1])), {})  # type: ignore[arg-type]
        elif _moves(node):
            moved = map_arg(node.args, lambda a: self.narrowed(a) if _is_wide(a) else a)
            narrow = self._call(target, moved, node.kwargs)
        else:
            narrow = self._call(_TO, (node, self.dtype), {})
        self.narrow_of[node] = narrow
        return narrow

    def _store_narrow(self, placeholder: Node) -> Node:
        """Make an input or a weight narrow, and widen it for users that still read float32."""
        self.stored.add(placeholder)
        placeholder.meta["val"] = placeholder.meta["val"].to(self.dtype)
        # A graph's placeholders come first, so the cast goes behind the last of them.
        self._widen(placeholder, after=self.last_placeholder)
        return placeholder

    def _widen(self, node: Node, *, after: Node) -> None:
        """Replace the narrow `node` by its float32 form for all its users."""
        with self.graph.inserting_after(after):
            wide = self._call(_TO, (node, torch.float32), {})
        node.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
        self.narrow_of[wide] = node

    def _call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        node: Node = self.graph.call_function(target, args, kwargs)
        node.meta["val"] = _value(node)
        return node


def _is_first_norm(node: Node) -> bool:
    """Whether `node` is a norm called as in `_FIRST_NORM`."""
    modules = list(node.meta.get("nn_module_stack", {"": ("",)}).values())
    return str(node.target) == "aten.layer_norm.default" and bool(_FIRST_NORM.fullmatch(modules[-1][0]))


def _moves(node: Node) -> bool:
    """Whether `node` only moves numbers; selecting one of several results does if their producer does."""
    source = node.args[0] if node.target is operator.getitem else node
    return isinstance(source, Node) and str(source.target) in MOVES


def _is_wide(node: Node) -> bool:
    """Whether a node's result is float32; a tuple is judged by its first tensor."""
    value = node.meta["val"]
    first = value[0] if isinstance(value, tuple | list) else value
    return isinstance(first, Tensor) and first.dtype is torch.float32


def _value(node: Node) -> Any:
    """The fake tensor that `node` returns, computed from those of its arguments."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda a: a.meta["val"])
    # A composite operator's C++ cannot read a symbolic size before PyTorch 2.13; its Python form always can.
    with enable_python_dispatcher():
        return node.target(*args, **kwargs)  # type: ignore[operator]
