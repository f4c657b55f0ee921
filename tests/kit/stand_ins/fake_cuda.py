"""Inductor's code for an H100 that is not there: nothing is compiled to machine code, and nothing runs.

A function is traced on fake tensors of the CPU, which PyTorch without CUDA can index and write to, and the
graph then moves to the GPU: nothing between the two reads a device.
"""

import contextlib
import re
from types import SimpleNamespace
from unittest import mock

import torch
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import CodeGen
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map_only

HOPPER = {
    "major": 9, "multi_processor_count": 132, "warp_size": 32, "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
}  # fmt: skip


@contextlib.contextmanager
def hopper():
    """Inside, PyTorch without CUDA and Inductor believe in an H100; yields the mode for its tensors."""
    described = DeviceProperties(type="cuda", index=0, cc=90, **HOPPER)
    properties = SimpleNamespace(minor=0, name="H100", gcnArchName="", total_memory=80 << 30, **HOPPER)
    answers = {
        "torch.cuda.get_device_properties": properties, "torch.cuda.get_device_capability": (9, 0),
        "torch.cuda.current_device": 0, "torch.cuda.device_count": 1,
        "torch.utils._triton.triton_hash_with_backend": "none", "torch.utils._triton.has_triton": True,
        "torch._inductor.scheduler.has_triton": True,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, lambda *_, answer=answer, **__: answer))
        stack.enter_context(mock.patch.object(DeviceProperties, "create", lambda device: described))
        yield FakeTensorMode(allow_non_fake_inputs=True)


def on_gpu(tensor):
    """A fake tensor like `tensor`, on the GPU."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def lowered(mode, function, *arguments):
    """Inductor's graph and the Python module that it would run on the GPU for `function` of fake tensors."""
    with mode, torch.no_grad():
        traced = make_fx(function, decomposition_table=select_decomp_table())(*arguments)
        traced.graph.set_codegen(CodeGen())  # flat arguments and results, as Inductor expects
        for node in traced.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cuda")}
            node.meta["val"] = tree_map_only(torch.Tensor, on_gpu, node.meta.get("val"))
        flat = [on_gpu(tensor) for tensor in tree_leaves(arguments)]
    graph = GraphLowering(traced)
    with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        graph.run(*flat)
        code, _ = graph.codegen()
    return graph, code.value


def generated(mode, function, *arguments):
    """The Python module that Inductor would run on the GPU for `function` of fake tensors on the CPU."""
    return lowered(mode, function, *arguments)[1]


def moved(mode, function, *arguments):
    """Bytes that all kernels of `generated` read and write, as Inductor counts them."""
    graph, _ = lowered(mode, function, *arguments)
    with V.set_graph_handler(graph), V.set_fake_mode(mode):
        return graph.count_bytes()[0]


def launches(code):
    """How often the module launches a Triton kernel, a library's product, and anything else of a library."""
    body = code[code.index("def call(") :].partition("def get_args")[0]
    return {
        "triton": len(re.findall(r"\.run\(", body)),
        "products": len(re.findall(r"extern_kernels\.\w+\(", body)),
        "other": len(re.findall(r"torch\.ops\.\S+\(", body)),
    }
