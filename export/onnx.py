"""ONNX graphs of the two programs: opset 23, names of the contract, weights beside the graph when large."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from export import onnx_quantize
from export.manifest import Signature
from export.plain import plain
from vmla.errors import UserError

OPSET = 23
"""The first in which attention and RMS norm are one node each."""

LARGEST = 2**31 - 2**20
"""Bytes of weights that a graph may carry itself: protobuf ends at 2 GiB, and the graph needs some room."""


def save(program: ExportedProgram, signature: Signature, path: Path) -> None:
    """Write `program` to `path` as ONNX, and check it.

    The weights keep their names: nothing is folded into them, so that they may be replaced.

    Raises:
        UserError: if the checker refuses the graph.
    """
    import onnx

    with _quiet():
        made = torch.onnx.export(
            plain(program),
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            opset_version=OPSET,
            custom_translation_table=onnx_quantize.translation(),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert made is not None
    _forget_sources(made.model)
    made.save(path, external_data=weight_bytes(program) > LARGEST)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"the ONNX checker refuses {path.name}: {str(error).splitlines()[0]}") from error


def weight_bytes(program: ExportedProgram) -> int:
    """Bytes of all parameters."""
    return sum(value.nbytes for value in program.state_dict.values())


def _forget_sources(model: Any) -> None:
    """Take out the stack trace of every node: most of the file's bytes, and paths of the machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own deprecations, and its word on packages that it looked for in vain."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
