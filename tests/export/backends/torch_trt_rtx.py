"""Has TensorRT-RTX build our programs through the Python code of Torch-TensorRT's flavour for it.

Run with the Python files of `torch-tensorrt-rtx` on the path. Converters, network, profile and builder are
real; a GPU is named, and only loading the plan, which takes one, has a stand-in. PyTorch without CUDA lacks a
few names, which are made up. Prints what the networks have.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

torch._C._CudaDeviceProperties = object
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda device=None: (8, 9)
torch.cuda.get_device_name = lambda device=None: "L4"
torch.cuda.mem_get_info = lambda device=None: (2**34, 2**34)

import tensorrt_rtx as trt  # noqa: E402
from kit.tiny.models import tiny_model  # noqa: E402
from torch_tensorrt.dynamo.conversion import _TRTInterpreter as interpreter  # noqa: E402

from export.backends.torch_tensorrt import OPTIONS, TorchTensorRT  # noqa: E402
from export.engine.signature import contract  # noqa: E402
from export.engine.target import Host  # noqa: E402
from export.lowering.precision import in_precision  # noqa: E402
from export.lowering.trace import trace  # noqa: E402


class Runtime:
    """Gives a plan back where the real one loads it onto a GPU."""

    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, plan):
        return SimpleNamespace(serialize=lambda: bytes(plan))


def watch(networks):
    """Let builds be for a named GPU, and add what each network has to `networks`."""
    kind = interpreter.TRTInterpreter
    configure = kind._populate_trt_builder_config

    def configured(self, *arguments, **options):
        config = configure(self, *arguments, **options)
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        networks.append(described(self.ctx.net, self.optimization_profiles or []))
        return config

    kind._populate_trt_builder_config = configured
    interpreter.trt.Runtime = Runtime


def described(network, profiles):
    """Inputs, outputs, ranges of sizes and attention layers of a network, for JSON."""
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    ranged = [tensor.name for tensor in inputs if -1 in tuple(tensor.shape)]
    return {
        "inputs": {tensor.name: [tensor.dtype.name, *tensor.shape] for tensor in inputs},
        "outputs": [network.get_output(place).name for place in range(network.num_outputs)],
        "profiles": [{name: [list(one) for one in p.get_shape(name)] for name in ranged} for p in profiles],
        "attention": sum(layer.type == trt.LayerType.ATTENTION_INPUT for layer in layers),
        "masked": sum(
            layer.type == trt.LayerType.ATTENTION_INPUT and layer.num_inputs > 3 for layer in layers
        ),
    }


def main(folder):
    model, networks = tiny_model(), []
    watch(networks)
    programs = contract(model.config, batch=1, narrow="bfloat16")
    host = Host(device="cuda", architecture="sm_89", versions={"tensorrt": trt.__version__})
    manifest = SimpleNamespace(
        programs=programs, compiler=OPTIONS, attention="native", window="held", host=host
    )  # fmt: skip
    for name, program in trace(model, batch=1, window="held", joined=True).items():
        specs = (*programs[name].inputs, *programs[name].outputs)
        held = [spec.name for spec in specs if spec.dtype == "bfloat16"]
        TorchTensorRT().compile(
            name, in_precision(program, "bf16", held, between_blocks=True), manifest, Path(folder)
        )
    sys.stdout.write("\n" + json.dumps(dict(zip(programs, networks, strict=True))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
