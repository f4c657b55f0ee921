"""Drives the plugins through TensorRT's own Python code, as its builder would; prints what comes out.

Run with the real bindings on the path and the empty libraries of `null_tensorrt.cpp` loaded. Only
the symbolic expressions, which live in NVIDIA's library, are replaced: here they are trees. What
this shows is that the plugins speak the interface; no engine is built.
"""

import json
import operator
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import tensorrt as trt
from tensorrt.plugin import _lib, _plugin_class, _tensor

from plugins.aot import tensorrt_plugin
from plugins.errors import UserError


class Expression(trt.IDimensionExpr):
    """A value of TensorRT's type that holds a tree: a number, a name, or (operation, left, right)."""

    @classmethod
    def of(cls, tree):
        made = cls.__new__(cls)
        made.tree = tree
        return made

    def is_constant(self):
        return isinstance(self.tree, int)

    def get_constant_value(self):
        return self.tree


class Builder:
    def constant(self, value):
        return Expression.of(value)

    def operation(self, operation, left, right):
        return Expression.of((str(operation).rpartition(".")[2], left.tree, right.tree))


class Setter(dict):
    """Takes the scalars as TensorRT's own setter does: their number, then each by its place."""

    nbSymExprs = 0  # noqa: N815


# The base class stores an expression where only the library can read it.
_tensor.SymExprImpl.expr = None
trt.DimsExprs = lambda length: [None] * length


OPERATIONS = {
    "SUM": operator.add,
    "SUB": operator.sub,
    "PROD": operator.mul,
    "CEIL_DIV": lambda left, right: -(-left // right),
}


def value(tree, sizes):
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return sizes[tree]
    operation, left, right = tree
    return OPERATIONS[operation](value(left, sizes), value(right, sizes))


def described(shape, dtype):
    outer = trt.DynamicPluginTensorDesc()
    inner = trt.PluginTensorDesc()
    inner.dims, inner.type, inner.format = trt.Dims(shape), dtype, trt.TensorFormat.LINEAR
    outer.desc = inner
    return outer


def build(name, inputs, attributes):
    """All that a builder asks of one plugin layer; `inputs` are named (shape, type)."""
    definition = _lib.QDP_REGISTRY[f"vmla::{name}"]
    layer = _plugin_class._TemplateAOTPlugin(name, "vmla", definition.num_outputs)
    layer.init(
        definition.register_func,
        attributes,
        definition.aot_impl_attr_names,
        definition.aot_impl_func,
        definition.autotune_attr_names,
        definition.autotune_func,
    )
    types = [dtype for _, dtype in inputs.values()]
    [out_type] = layer.get_output_data_types(types, [len(shape) for shape, _ in inputs.values()])
    sizes = {f"{key}.{axis}": size for key, (shape, _) in inputs.items() for axis, size in enumerate(shape)}
    symbols = [
        [Expression.of(f"{key}.{axis}") for axis in range(len(shape))] for key, (shape, _) in inputs.items()
    ]
    [dimensions] = layer.get_output_shapes(symbols, [], Builder())
    out_shape = [value(dimension.tree, sizes) for dimension in dimensions]
    tensors = [described(shape, dtype) for shape, dtype in inputs.values()] + [described(out_shape, out_type)]
    found = layer.get_supported_format_combinations(tensors, len(inputs))
    names = [str(desc.type).rpartition(".")[2] for desc in found]
    combinations = [names[i : i + len(tensors)] for i in range(0, len(names), len(tensors))]
    layer.configure_plugin(tensors[:-1], tensors[-1:])
    launches = [launched(layer, tactic, tensors, sizes, symbols) for tactic in layer.get_valid_tactics()]
    return {
        "shape": out_shape,
        "type": str(out_type).rpartition(".")[2],
        "combinations": combinations,
        "launches": launches,
    }


def launched(layer, tactic, tensors, sizes, symbols):
    layer.set_tactic(tactic)
    launch, scalars = SimpleNamespace(), Setter()
    layer.get_launch_params(symbols, tensors, len(tensors) - 1, launch, scalars, Builder())
    descriptions = [tensor.desc for tensor in tensors]
    name, code = layer.get_kernel(descriptions[:-1], descriptions[-1:])
    assert scalars.nbSymExprs == len(scalars)
    read = {
        key: value(getattr(launch, key).expr.tree, sizes)
        for key in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
    }
    return {
        "tactic": tactic,
        "name": name,
        "entry": f".entry {name}(".encode() in code,
        "scalars": [value(scalars[i].expr.tree, sizes) for i in range(len(scalars))],
        "launch": read,
    }


def interface(identity):
    """What TensorRT's own creator of a plugin says that a node must bring: its inputs and its fields."""
    definition = _lib.QDP_REGISTRY[identity]
    namespace, _, name = identity.partition("::")
    attributes = {key: (True, kind) for key, kind in definition.input_attrs.items()}  # all of built-in types
    creator = _lib._TemplatePluginCreator(name, namespace, attributes)
    return {
        "names": [creator.name, creator.plugin_namespace, creator.plugin_version],
        "inputs": list(definition.input_tensor_names),
        "fields": {field.name: str(field.type).rpartition(".")[2] for field in creator.field_names},
    }


def refusal(call):
    try:
        call()
    except (ValueError, UserError) as error:
        return str(error)
    return None


def main(folder, shapes):
    names = tensorrt_plugin.register(Path(folder), 90, large=True, lazy=True)
    kinds = {"bf16": trt.bfloat16, "fp16": trt.float16, "fp8": trt.fp8, "fp32": trt.float32, "bool": trt.bool}
    results = {"version": trt.__version__, "names": names, "layers": {}, "refusals": {}}
    results["plugins"] = {name: interface(name) for name in names}
    for label, request in shapes.items():
        inputs = {key: (tuple(shape), kinds[dtype]) for key, (shape, dtype) in request["inputs"].items()}
        call = partial(build, request["name"], inputs, request["attributes"])
        if request["refused"]:
            results["refusals"][label] = refusal(call)
        else:
            results["layers"][label] = call()
    results["refusals"]["twice"] = refusal(lambda: tensorrt_plugin.register(Path(folder), 90, lazy=True))
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
