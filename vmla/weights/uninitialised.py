"""Makes modules whose weights a checkpoint is about to fill, without drawing or even allocating them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Uninitialised(TorchFunctionMode):
    """While it is active, the weights of new layers are left uninitialised.

    The meta device would do as well, but starting it loads a compiler, which takes seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave out `torch.nn.init`, do everything else."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


class WithoutStorage(Uninitialised):
    """An `Uninitialised` under which each weight is one number that stands for all of its elements.

    A shape that a configuration asks for is compared with the file's before anything of that size is made.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Make every empty tensor of one number, and let nothing be written into such."""
        kwargs = kwargs or {}
        if func is torch.empty:
            size = args[0] if args and not isinstance(args[0], int) else args
            return torch.empty((), **kwargs).expand(tuple(size))
        name, target = getattr(func, "__name__", ""), args[0] if args else kwargs.get("tensor")
        if name.endswith("_") and not name.endswith("__") and _stands_for_many(target):
            return target
        return super().__torch_function__(func, types, args, kwargs)


def _stands_for_many(value: Any) -> bool:
    return isinstance(value, Tensor) and math.prod(value.shape) > 1 and not any(value.stride())
