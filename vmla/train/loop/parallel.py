"""Several processes as one: sharded weights (FSDP2), micro-batches, and which process draws which clips.

An optimizer step is a group of micro-batches, numbered from step x group on; each is drawn by its
number alone. Process r of W takes every W-th, so that any split of the same group gives the same loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plugins.errors import UserError
from vmla.cli.options.device import choose_device, without_auto
from vmla.packed_sequence import PackedClip
from vmla.train.objectives.packed_clip import Pass, Step
from vmla.transformer import Block, VideoMLA


class Passes(NamedTuple):
    """A model's `forward`, `encode_text` and `forward_packed`, computed in a type."""

    step: Step
    encode_text: Callable[[Tensor], Tensor]
    forward_packed: Pass


Calls = Callable[[VideoMLA, torch.dtype], Passes]


CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """One process of a training run."""

    rank: int = 0
    world: int = 1
    accumulate: int = 1
    """Micro-batches of each process for one optimizer step."""
    device: torch.device = CPU
    sharded: bool = False

    @property
    def group(self) -> int:
        """Micro-batches of an optimizer step, of all processes."""
        return self.world * self.accumulate

    def backward(self, loss: Callable[[int], Tensor], step: int) -> float:
        """Gradients of the mean of `loss` over the micro-batches of `step`; the mean itself."""
        total = torch.zeros((), device=self.device)
        for i in range(self.accumulate):
            value = loss(step * self.group + i * self.world + self.rank) / self.accumulate
            value.backward()
            total += value.detach()
        if self.world > 1:
            torch.distributed.all_reduce(total)
        return float(total / self.world)


ALONE = Parallel()


class Launched(NamedTuple):
    """A process among those that `torchrun` started."""

    rank: int
    world: int
    """Number of processes."""
    local_rank: int
    """Number of this process among those of its machine, which is that of its GPU."""


def launched() -> Launched | None:
    """This process among those that `torchrun` started; None if it did not start it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return Launched(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def processes(accumulate: int, device: str) -> Iterator[Parallel]:
    """This process among those that `torchrun` started; alone where it did not.

    Raises:
        UserError: for a device that is not there.
    """
    if (here := launched()) is None:
        yield Parallel(accumulate=accumulate, device=choose_device(device))
        return
    kind = torch.device(without_auto(device)).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; use --device cpu")
    place = torch.device(kind, here.local_rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        yield Parallel(rank=rank, world=world, accumulate=accumulate, device=place, sharded=True)
        # The first to finish waits for the others: torchrun would take its exit for a failure.
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def shard(model: VideoMLA, dtype: torch.dtype) -> VideoMLA:
    """Spread the float32 weights over all processes, block by block; passes gather them in `dtype`."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # Inputs are not cast: a timestep in bfloat16 would be another timestep.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        # Its keys are made apart from the block's own forward, once for each prompt.
        fully_shard(block.attn2, mp_policy=policy)  # type: ignore[arg-type]
        register_fsdp_forward_method(block.attn2, "keys_values")  # type: ignore[arg-type]
        fully_shard(block, mp_policy=policy)
    # Else the outermost weights would stay gathered until a backward pass: a network that has none, the
    # moving average, would for ever be what it was at its first pass.
    fully_shard(model, mp_policy=policy, reshard_after_forward=True)
    for name in ("encode_text", "forward_packed"):
        register_fsdp_forward_method(model, name)
    return model


def checkpoint_blocks(model: VideoMLA) -> VideoMLA:
    """Store only the blocks' inputs of a pass, and recompute the rest when gradients need it."""
    for block in model.blocks:
        block.forward = MethodType(_checkpointed, block)  # type: ignore[method-assign]
    return model


def _checkpointed(block: Block, *args: Any) -> tuple[Tensor, Tensor]:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(Block.forward, block, *args, use_reentrant=False)  # type: ignore[no-any-return]


def direct(model: VideoMLA, dtype: torch.dtype) -> Passes:
    """The model itself, its inputs in `dtype`: for weights that gather themselves, or that are of `dtype`."""

    def step(latents: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        return model(latents.to(dtype), *others)

    def encode_text(text: Tensor) -> Tensor:
        return model.encode_text(text.to(dtype))

    def forward_packed(latents: Tensor, timestep: Tensor, text_kv: Tensor, clip: PackedClip) -> Tensor:
        return model.forward_packed(latents.to(dtype), timestep, text_kv, clip)

    return Passes(step, encode_text, forward_packed)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors put together from all processes, which must all call this."""
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu()
        for name, tensor in tensors.items()
    }
