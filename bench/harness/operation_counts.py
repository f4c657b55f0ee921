"""Counts the work of a pass from the operations that PyTorch dispatches, independent of formulas."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.transformer import StepInputs, VideoMLA

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal"}
"""Operations that make the host wait for a value of the device."""
IDLE = {
    "aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty", "aten::_unsafe_view",
    "prim::device",
}  # fmt: skip
"""Operations that launch nothing: allocations, views and moves of metadata."""
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
"""Calls by which the host gives a GPU work, by the beginning of their names."""


class Operations(TorchDispatchMode):
    """Counts operations that compute, each a launch on a GPU, and those that read a value back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.reads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count one operation and run it."""
        name = func._schema.name
        looks = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.reads += name in READS
        self.launches += not looks and name not in READS | IDLE
        return func(*args, **(kwargs or {}))


def pass_inputs(config: ModelConfig, batch: int = 1) -> StepInputs:
    """Random inputs of `VideoMLA.forward` with a full window."""
    spec = CacheSpec.of(config)
    picture = (batch, config.in_channels, config.chunk, config.sample_height, config.sample_width)
    return StepInputs(
        latents=torch.randn(picture),
        timestep=torch.full((batch, config.chunk), 500.0),
        text_kv=torch.randn(config.num_layers, 2, batch, config.text_tokens, config.inner_dim),
        cache=torch.randn(spec.shape(batch)),
        slot_index=spec.slot_index(spec.slots),
        chunk_index=spec.chunk_index(spec.slots, config.chunk),
    )


def flops_by_dispatch(model: VideoMLA, *, batch: int = 1, absorbed: bool = False) -> int:
    """Operations of the matrix products of one pass, as PyTorch's own counter sees them run."""
    inputs = pass_inputs(model.config, batch)
    # PyTorch's counter has no formula for a CPU's fused attention, but counts plain products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs, absorbed=absorbed)
    return counter.get_total_flops()


def operations(config: ModelConfig, *, absorbed: bool = False) -> Operations:
    """Operations that one eager pass dispatches on tensors whose values cannot be read, as on a GPU."""
    with FakeTensorMode(), torch.no_grad(), Operations() as counter:
        model = VideoMLA(config).eval()
        inputs = pass_inputs(config)
        counter.launches = counter.reads = 0
        model(*inputs, absorbed=absorbed)
    return counter


def launches(call: Callable[[], object], device: torch.device) -> int | None:
    """How often `call` launches work on a GPU; None on other devices."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize(device)
    return sum(event.count for event in seen.key_averages() if event.key.startswith(LAUNCHES))


def host_reads(call: Callable[[], object], device: torch.device) -> int | None:
    """How often `call` makes the host wait for a GPU; None on other devices."""
    if device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(warning.message) for warning in said)
