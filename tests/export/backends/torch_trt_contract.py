"""Drives our converter through Torch-TensorRT's real Python code; prints what comes out.

Run with the package's Python files and TensorRT's real bindings on the path, on the empty libraries of
`null_tensorrt.cpp`. PyTorch without CUDA lacks a few names, which are made up. Nothing is built.
"""

import json
import sys
from types import SimpleNamespace

import torch

torch._C._CudaDeviceProperties = object
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda device=None: (9, 0)
torch.cuda.get_device_name = lambda device=None: "H100"

import tensorrt as trt  # noqa: E402
from kit.tiny.models import tiny_model  # noqa: E402
from tensorrt import plugin  # noqa: E402
from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_CONVERTERS  # noqa: E402
from torch_tensorrt.dynamo.lowering import get_decompositions  # noqa: E402

from export.backends.torch_tensorrt import ATTENTION, convert_attention, decomposed_attention  # noqa: E402
from export.lowering.precision import in_precision  # noqa: E402
from export.lowering.trace import trace_step  # noqa: E402


class Network:
    """Remembers the plugin layers that are added."""

    def __init__(self):
        self.layers = []

    def add_plugin(self, made, *, aot):
        layer = SimpleNamespace(made=made, aot=aot, name=None, get_output=lambda place: f"output {place}")
        self.layers.append(layer)
        return layer


def main():
    program = in_precision(
        trace_step(tiny_model(), batch=1), "bf16", ("text_kv", "cache", "entries"), between_blocks=True
    )
    lowered = decomposed_attention(program, whole=True).run_decompositions(get_decompositions())
    ours = [node for node in lowered.graph.nodes if str(node.target).startswith("vmla.")]
    converted, network, given = [], Network(), []
    convert_attention(converted)
    vmla = SimpleNamespace(mla_attention=lambda *tensors: given.append(tensors) or "plugin")
    plugin.op = SimpleNamespace(vmla=vmla)
    for node in ours:
        convert = DYNAMO_CONVERTERS[node][0]
        tensors = tuple(trt.ITensor.__new__(trt.ITensor) for _ in node.args)
        context = SimpleNamespace(net=network)
        assert convert(context, node.target, tensors, node.kwargs, node.name) == "output 0"
        assert given[-1] == tensors
    told = {
        "only attention": all(str(node.target) == ATTENTION for node in ours),
        "tensors": [len(tensors) for tensors in given],
        "names": [layer.name for layer in network.layers] == converted == [node.name for node in ours],
        "aot": [layer.aot for layer in network.layers],
    }
    sys.stdout.write(f"\n{json.dumps(told)}\n")


if __name__ == "__main__":
    main()
