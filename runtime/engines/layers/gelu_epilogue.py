"""A feed-forward whose first product adds its bias and applies GELU, for the eager model on a GPU.

The plain form, `vmla.transformer.FeedForward`, is the reference; in it GELU reads and writes all of
[B, S, hidden] once more. `torch._addmm_activation` hands bias and GELU to cuBLASLt as the product's epilogue,
which works on float32 sums, so the result is rounded once where the plain form rounds twice. Its GELU is the
tanh form on CUDA, which the model has, and the erf form on a CPU, where the operator computes the plain form.
Inductor takes that function apart into a product and a kernel again; an operator of our own stays one call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmla.fused_attention import replaced
from vmla.transformer import FeedForward

_LIBRARY = torch.library.Library("vmla", "FRAGMENT")
_LIBRARY.define("linear_gelu(Tensor x, Tensor weight, Tensor bias) -> Tensor")


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU in its tanh form of a linear layer: x [..., K], weight [N, K] and bias [N] to [..., N]."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def epilogue(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `reference`, in one call of a library; in the tanh form on CUDA alone."""
    made = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return made.unflatten(0, x.shape[:-1])


def _shape(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_LIBRARY.impl("linear_gelu", epilogue, "CUDA")
_LIBRARY.impl("linear_gelu", reference, "CPU")
torch.library.register_fake("vmla::linear_gelu", _shape, lib=_LIBRARY)


class GeluInProduct(nn.Module):
    """Replaces the given `FeedForward`, without gradients."""

    def __init__(self, plain: FeedForward) -> None:
        """Share both layers with `plain`; the first is an `nn.Linear`, the second may be any module."""
        super().__init__()
        self.up, self.down = plain.up, plain.down

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        made: Tensor = self.down(torch.ops.vmla.linear_gelu(x, self.up.weight, self.up.bias))
        return made


def gelu_in_products(module: nn.Module) -> nn.Module:
    """A shallow copy of `module`, sharing all else, whose feed-forwards are `GeluInProduct`.

    One whose first layer is no longer an `nn.Linear`, as in float8, stays as it is: there a compiler joins
    GELU with the quantisation that follows.
    """

    def replace(_: str, part: nn.Module) -> nn.Module | None:
        if isinstance(part, FeedForward) and type(part.up) is nn.Linear:
            return GeluInProduct(part)
        return None

    return replaced(module, replace)
