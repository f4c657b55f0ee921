"""Quantised layers as ONNX nodes: QuantizeLinear and DequantizeLinear of opset 23.

TensorRT requires a scale to have the dtype of the node's unquantised side; a power of two is the same number
in each. Inputs of nvfp4 layers go through a node that only TensorRT has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from export.lowering import nvfp4
from export.lowering.fp8 import DEQUANTIZE, DEQUANTIZE_ROWS, QUANTIZE


def translation() -> dict[Any, Callable[..., Any]]:
    """A translation table for the exporter, with the operators of `export.lowering.fp8`."""
    import onnx_ir
    from onnxscript import opset23 as op

    types = onnx_ir.DataType

    def constant(value: float, dtype: Any) -> Any:
        return op.Constant(value=onnx_ir.tensor(value, dtype=dtype))

    def quantize(x: Any, scale: float) -> Any:
        codes = constant(0.0, types.FLOAT8E4M3FN)
        return op.QuantizeLinear(x, constant(scale, types.FLOAT), codes, saturate=1)

    def dequantize(codes: Any, scale: float, dtype: Any) -> Any:
        return op.DequantizeLinear(codes, constant(scale, dtype))

    def dequantize_rows(codes: Any, scales: Any) -> Any:
        return op.DequantizeLinear(codes, scales, axis=0)

    def of_blocks(codes: Any, scales: Any, scale: Any) -> Any:
        wide: Any = op.DequantizeLinear(scales, scale)
        return op.DequantizeLinear(codes, wide, axis=-1, block_size=nvfp4.BLOCK)

    def nvfp4_round(x: Any, scale: float) -> Any:
        of_all = constant(scale, types.FLOAT)
        codes, scales = _dynamic_quantize()(
            x, of_all, axis=-1, block_size=nvfp4.BLOCK, scale_type=int(types.FLOAT8E4M3FN)
        )
        return of_blocks(codes, scales, of_all)

    def nvfp4_dequantize(codes: Any, scales: Any, scale: float) -> Any:
        return of_blocks(codes, scales, constant(scale, types.FLOAT))

    return {
        QUANTIZE: quantize,
        DEQUANTIZE: dequantize,
        DEQUANTIZE_ROWS: dequantize_rows,
        nvfp4.ROUND: nvfp4_round,
        nvfp4.DEQUANTIZE: nvfp4_dequantize,
    }


def _dynamic_quantize() -> Any:
    """The schema of TensorRT's node that computes codes and block scales; the exporter requires one."""
    from onnx import defs
    from onnxscript import values

    formal, attribute = defs.OpSchema.FormalParameter, defs.OpSchema.Attribute
    whole = defs.OpSchema.AttrType.INT
    name, domain = "TRT_FP4DynamicQuantize", "trt"
    schema = defs.OpSchema(
        name,
        domain,
        1,
        inputs=[formal("x", "T"), formal("scale", "tensor(float)")],
        outputs=[formal("codes", "tensor(float4e2m1)"), formal("scales", "tensor(float8e4m3fn)")],
        type_constraints=[("T", ["tensor(float)", "tensor(bfloat16)", "tensor(float16)"], "")],
        attributes=[attribute(key, whole) for key in ("axis", "block_size", "scale_type")],
    )
    return values.Op(values.Opset(domain, 1), name, schema)
