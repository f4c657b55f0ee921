"""The attention operators as TensorRT plugins: quickly deployable, compiled ahead of time.

An engine built with them carries the kernels' PTX and needs neither Python nor a plugin library to
run. Names are `vmla::mla_attention`, `vmla::mla_attention_absorbed`, and both with `_fp8` for float8
inputs with scales; inputs are those of the operators, in their order; the absorbed form has the
attribute `scale`. `expand` stays with the network: it is two matrix products.

Tactic 1 is a kernel within 48 KiB of shared memory. Tactic 2, larger tiles, is offered on request
only: whether TensorRT asks the driver for more memory for such a plugin is not known yet.

TensorRT 10.16 and later. The registry belongs to the process: register one architecture, once.
"""

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plugins.aot.objects import Compiled, evaluate, load, ptx_of
from plugins.errors import UserError, missing_extra
from plugins.triton.tiles import Family, Operator

NAMESPACE = "vmla"
COMPACT, FAST = 1, 2
"""Numbers of the tactics that TensorRT may choose from: within 48 KiB of shared memory, or beyond."""


@dataclass(frozen=True, kw_only=True)
class PluginSpec:
    """One plugin: an operator for some dtypes, with the sizes of its tensors."""

    name: str
    operator: Operator
    dtypes: dict[str, str]
    """Maps TensorRT's name of a dtype to the kernels'."""
    inputs: tuple[str, ...]
    attributes: dict[str, type] = field(default_factory=dict)
    sizes: dict[str, tuple[str, int]]
    """The input and the dimension that each letter of a launch expression stands for."""


WIDE = {"BF16": "bf16", "FP16": "fp16"}
NARROW = {"FP8": "fp8"}
HEADS = ("query", "keys", "values", "valid")
LATENT = ("query", "cached", "own", "cos", "sin", "valid")
QUERY_SIZES = {"B": ("query", 0), "N": ("query", 1), "S": ("query", 2)}
HEAD_SIZES = {**QUERY_SIZES, "K": ("valid", 0)}
LATENT_SIZES = {**QUERY_SIZES, "T": ("cached", 1), "O": ("own", 1)}
FIXED_TYPES = {"valid": "BOOL", "cos": "FP32", "sin": "FP32", "scales": "FP32"}

PLUGIN_SPECS = (
    PluginSpec(name="mla_attention", operator="mla_attention", dtypes=WIDE, inputs=HEADS, sizes=HEAD_SIZES),
    PluginSpec(
        name="mla_attention_fp8",
        operator="mla_attention",
        dtypes=NARROW,
        inputs=(*HEADS, "scales"),
        sizes=HEAD_SIZES,
    ),
    PluginSpec(
        name="mla_attention_absorbed",
        operator="mla_attention_absorbed",
        dtypes=WIDE,
        inputs=LATENT,
        attributes={"scale": float},
        sizes=LATENT_SIZES,
    ),
    PluginSpec(
        name="mla_attention_absorbed_fp8",
        operator="mla_attention_absorbed",
        dtypes=NARROW,
        inputs=(*LATENT, "scales"),
        attributes={"scale": float},
        sizes=LATENT_SIZES,
    ),
)


def register(
    folder: Path,
    arch: Family,
    *,
    large: bool = False,
    lazy: bool = False,
    only: Collection[str] | None = None,
) -> list[str]:
    """Register the plugins with TensorRT for one architecture, with the kernels compiled in `folder`.

    Args:
        folder: the folder that `python -m plugins.aot.compile` wrote.
        arch: of the GPU that the engine is built for: 90, 100 or 120.
        large: also offer the kernels that take more than 48 KiB of shared memory.
        lazy: only when a plugin is first used; without it TensorRT's libraries must be loaded.
        only: names of plugins; all of them if not given.

    Returns:
        The names that were registered.

    Raises:
        UserError: if TensorRT or the kernels are missing, or the names are taken already.
    """
    try:
        import tensorrt.plugin as trtp
    except ImportError as error:
        raise missing_extra("tensorrt", "trt") from error
    kernels = [kernel for kernel in load(folder) if kernel.arch == arch and (large or kernel.compact)]
    specs = [spec for spec in PLUGIN_SPECS if only is None or spec.name in only]
    for spec in specs:
        identity = f"{NAMESPACE}::{spec.name}"
        mine = {
            (kernel.dtype, FAST if kernel.size == "fast" else COMPACT): (kernel, ptx_of(folder, kernel))
            for kernel in kernels
            if kernel.operator == spec.operator and kernel.dtype in spec.dtypes.values()
        }
        if not mine:
            mend = "make it with: python -m plugins.aot.compile"
            raise UserError(f"{folder} has no {spec.name} for sm_{arch}; {mend}")
        try:
            trtp.register(identity, lazy_register=lazy)(_describe(trtp, spec))
        except ValueError as error:
            raise UserError(f"{identity} is registered already; one architecture to a process") from error
        trtp.autotune(identity)(_autotune(trtp, spec, mine))
        trtp.aot_impl(identity)(_implement(trtp, spec, mine))
    return [f"{NAMESPACE}::{spec.name}" for spec in specs]


Kernels = dict[tuple[str, int], tuple[Compiled, bytes]]


def _describe(trtp: Any, spec: PluginSpec) -> Callable[..., Any]:
    """Describes the output: [B, N, S, width of a value], in bfloat16 for float8 inputs."""
    import tensorrt as trt

    def describe(*arguments: Any, **attributes: Any) -> Any:
        inputs = dict(zip(spec.inputs, arguments, strict=False))
        out = inputs["query"].like()
        if spec.operator == "mla_attention":
            out.shape_expr[3] = inputs["values"].shape_expr[3]
        else:
            out.shape_expr[3] = inputs["query"].shape_expr[3] - inputs["cos"].shape_expr[1] * 2
        if spec.dtypes is NARROW:
            out.dtype = trt.bfloat16
        return out

    return _signed(describe, trtp, spec, (), trtp.TensorDesc)


def _autotune(trtp: Any, spec: PluginSpec, kernels: Kernels) -> Callable[..., Any]:
    """Lists the dtypes that have kernels, with a tactic for each kernel."""

    def autotune(*arguments: Any) -> list[Any]:
        combinations = []
        for name, dtype in spec.dtypes.items():
            result = "BF16" if name == "FP8" else name
            types = ", ".join([*(FIXED_TYPES.get(each, name) for each in spec.inputs), result])
            tactics = sorted(tactic for known, tactic in kernels if known == dtype)
            combinations.append(trtp.AutoTuneCombination(types, "LINEAR", tactics))
        return combinations

    outputs = ("outputs", tuple[trtp.TensorDesc])
    return _signed(autotune, trtp, spec, (outputs,), list[trtp.AutoTuneCombination])


def _implement(trtp: Any, spec: PluginSpec, kernels: Kernels) -> Callable[..., Any]:
    """Returns the kernel for the chosen dtype and tactic, and its launch as expressions of the shapes."""
    import tensorrt as trt

    known = {"BF16": trt.bfloat16, "FP16": trt.float16, "FP8": trt.fp8}
    types = {known[name]: dtype for name, dtype in spec.dtypes.items()}

    def implement(*arguments: Any) -> tuple[str, bytes, Any, Any]:
        tactic = arguments[-1]
        inputs = dict(zip(spec.inputs, arguments, strict=False))
        attributes = dict(zip(spec.attributes, arguments[len(spec.inputs) :], strict=False))
        kernel, ptx = kernels[types[inputs["query"].dtype], tactic]
        _check_widths(spec, kernel, {name: list(desc.shape) for name, desc in inputs.items()}, attributes)
        sizes = {letter: inputs[name].shape_expr[axis] for letter, (name, axis) in spec.sizes.items()}
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.grid_y, launch.grid_z = (
            evaluate(axis, sizes, trtp.cdiv) for axis in kernel.grid
        )
        launch.block_x, launch.shared_mem = kernel.block, kernel.shared
        scalars = trtp.SymIntExprs(len(kernel.scalars))
        for place, scalar in enumerate(kernel.scalars):
            scalars[place] = trtp.SymInt32(evaluate(scalar, sizes, trtp.cdiv))
        return kernel.name, ptx, launch, scalars

    extra = (("outputs", tuple[trtp.TensorDesc]), ("tactic", int))
    returns = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]
    return _signed(implement, trtp, spec, extra, returns)


def _check_widths(
    spec: PluginSpec, kernel: Compiled, shapes: dict[str, Sequence[int]], attributes: dict[str, float]
) -> None:
    """Refuse widths that the kernel was not compiled for.

    Raises:
        ValueError: naming the plugin, the argument, and the width.
    """
    fixed = kernel.widths
    if spec.operator == "mla_attention":
        expected = {"query": fixed["D"], "keys": fixed["D"], "values": fixed["DV"]}
    else:
        entry = fixed["C"] + fixed["R"]
        expected = {"query": entry, "cached": entry, "own": entry, "cos": fixed["R"] / 2}
    for name, width in expected.items():
        if shapes[name][-1] != width:
            found = shapes[name][-1]
            raise ValueError(f"{NAMESPACE}::{spec.name}: {name} must be {width:g} wide, not {found}")
    scale = attributes.get("scale", fixed.get("scale"))
    if scale is not None and not math.isclose(scale, fixed["scale"], rel_tol=1e-6):
        raise ValueError(f"{NAMESPACE}::{spec.name}: scale must be {fixed['scale']:.8g}, not {scale:.8g}")


def _signed(
    function: Callable[..., Any], trtp: Any, spec: PluginSpec, extra: Sequence[tuple[str, Any]], returns: Any
) -> Callable[..., Any]:
    """`function` with the signature that TensorRT reads: inputs, attributes, then `extra`."""
    kinds = [(name, trtp.TensorDesc) for name in spec.inputs] + list(spec.attributes.items()) + list(extra)
    both = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, both, annotation=kind) for name, kind in kinds]
    signature = inspect.Signature(parameters, return_annotation=returns)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
