"""Linear layers and joined products with weights laid out for oneDNN once: float32 inference on a CPU.

PyTorch's own float32 `linear` calls MKL, which uses no more than AVX2 on AMD processors; oneDNN uses whatever
the processor has. At the sizes of `sprites` (48 rows, 256 x 1024) that is twice as fast on a Zen 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmla.fused_attention import JoinedProduct, replaced

READ_BY_WEIGHT = ("up_k", "up_v")
"""Layers that attention never calls: it reads their weights (`vmla.attention.LatentAttention`).

Where products are joined (`vmla.fused_attention`) there are none of these.
"""


class PackedLinear(nn.Module):
    """Replaces the given layer or joined product, without gradients."""

    def __init__(self, linear: nn.Linear | JoinedProduct, rows: int) -> None:
        """Pack the weights of `linear` in the memory format that oneDNN picks for inputs of `rows` rows."""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self._bias, "none", [], "")
        return made


def packable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packing helps: in float32 on a CPU, where PyTorch was built with oneDNN."""
    return device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available()


def packed(module: nn.Module, rows: int) -> nn.Module:
    """A shallow copy of `module`, sharing its parameters, whose linear layers and joined products are packed.

    `rows` is the number of a chunk's tokens, which most layers read; others are right and as fast.
    """

    def replace(name: str, part: nn.Module) -> nn.Module | None:
        if not isinstance(part, nn.Linear | JoinedProduct):
            return None
        return part if name.rpartition(".")[2] in READ_BY_WEIGHT else PackedLinear(part, rows)

    return replaced(module, replace)
