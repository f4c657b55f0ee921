"""Exports the programs as ONNX: opset 23, the contract's names, large weights beside the graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from export.engine.manifest import Signature
from export.onnx import attention_node as onnx_attention
from export.onnx import quantize_nodes as onnx_quantize
from export.onnx.decompositions import decomposed, decomposed_with_attention
from export.onnx.external_weights import Source, put_beside
from plugins.errors import UserError

OPSET = 23
"""The first opset in which attention and RMS norm are one node each."""

LARGEST = 2**31 - 2**20
"""Bytes of weights that a graph may hold itself; protobuf is limited to 2 GiB, of which 1 MiB is for the
nodes."""


def save(
    program: ExportedProgram,
    signature: Signature,
    path: Path,
    *,
    attention_nodes: bool = True,
    weights: Source | None = None,
) -> None:
    """Write `program` to `path` as ONNX, and check it.

    The weights keep their names: nothing is folded into them, so that they may be replaced.

    Args:
        program: both layers' attention as operators, as by `export.lowering.trace`.
        signature: what it takes and gives.
        path: of the graph; large weights go into a file beside it.
        attention_nodes: one node for each self-attention (`export.onnx.attention_node`), instead of what it
            is made of.
        weights: the numbers of a program that was traced without any.

    Raises:
        UserError: if the checker refuses the graph.
    """
    import onnx
    import onnx_ir

    names = [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs]
    model = _graph(decomposed(program) if attention_nodes else decomposed_with_attention(program), *names)
    if attention_nodes and (example := onnx_attention.example(program)) is not None:
        onnx_attention.attach(model, _function(example))
    if weights is not None:
        put_beside(model, path, weights)
    large = weights is None and weight_bytes(program) > LARGEST
    onnx_ir.save(model, path, external_data=f"{path.name}.data" if large else None)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"the ONNX checker refuses {path.name}: {str(error).splitlines()[0]}") from error


def weight_bytes(program: ExportedProgram) -> int:
    """Bytes of all parameters of `program`."""
    return sum(value.nbytes for value in program.state_dict.values())


def _function(example: Sequence[Tensor]) -> Any:
    """The graph of what an attention node computes."""
    program = torch.export.export(onnx_attention.Composition(), tuple(example), strict=False)
    return _graph(decomposed(program), list(onnx_attention.INPUTS), ["out"])


def _graph(program: ExportedProgram, inputs: list[str], outputs: list[str]) -> Any:
    """The exporter's graph of a program in decomposed operations."""
    table = {**onnx_attention.translation(), **onnx_quantize.translation()}
    with _quiet():
        made = torch.onnx.export(
            program,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            custom_translation_table=table,
            dynamo=True,
            optimize=False,  # it would fold weights, which must keep their names
            verbose=False,
        )
    assert made is not None
    _forget_sources(made.model)
    _name_types(made.model)
    return made.model


def _name_types(model: Any) -> None:
    """Let casts name their type: ONNX Runtime folds no cast to the type of another tensor."""
    import onnx_ir
    from onnx_ir.convenience import get_const_tensor

    for node in model.graph.all_nodes():
        if node.op_type != "CastLike":
            continue
        like = node.inputs[1]
        kind = like.dtype or getattr(get_const_tensor(like), "dtype", None)
        if kind is not None:
            node.op_type, node.attributes["to"] = "Cast", onnx_ir.AttrInt64("to", int(kind))
            node.resize_inputs(1)


def _forget_sources(model: Any) -> None:
    """Remove the stack traces of nodes, which are most of the file's bytes and hold local paths."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the exporter's own deprecation warnings and its notes on missing packages are silenced."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
