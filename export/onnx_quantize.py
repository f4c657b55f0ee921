"""The quantised layers of a program as nodes of ONNX: QuantizeLinear and DequantizeLinear, opset 23.

A scale has the type of what is quantised or of what comes out, as TensorRT demands; a power of two is
the same number in each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from export.quantize import DEQUANTIZE, DEQUANTIZE_ROWS, QUANTIZE


def translation() -> dict[Any, Callable[..., Any]]:
    """What the exporter writes for each operator of `export.quantize`."""
    import onnx_ir
    from onnxscript import opset23 as op

    types = onnx_ir.DataType

    def constant(value: float, dtype: Any) -> Any:
        return op.Constant(value=onnx_ir.tensor(value, dtype=dtype))

    def quantize(x: Any, scale: float) -> Any:
        return op.QuantizeLinear(x, constant(scale, types.FLOAT), constant(0.0, types.FLOAT8E4M3FN))

    def dequantize(codes: Any, scale: float, dtype: Any) -> Any:
        return op.DequantizeLinear(codes, constant(scale, dtype))

    def dequantize_rows(codes: Any, scales: Any) -> Any:
        return op.DequantizeLinear(codes, scales, axis=0)

    return {QUANTIZE: quantize, DEQUANTIZE: dequantize, DEQUANTIZE_ROWS: dequantize_rows}
