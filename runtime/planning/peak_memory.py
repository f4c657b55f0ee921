"""Scratch memory: the most that a pass or a decoding holds at once and frees at its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.vae import Codec


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are still referenced, on any device including meta."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and count storage of its results that no input has."""
        given = {id(storage) for storage in _storages((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for storage in _storages(made):
            if id(storage) not in given and id(storage) not in self._known:
                self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def gone(_: object) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    dense = (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor) and leaf.layout == torch.strided)
    return [tensor.untyped_storage() for tensor in dense]


def peak_live_bytes(function: Callable[[], object]) -> int:
    """The most bytes of new tensors that `function` holds at once, its result included."""
    with torch.inference_mode(), LiveBytes() as living:
        function()
    return living.most


def decoding_scratch(codec: Codec, config: ModelConfig) -> int:
    """Bytes that decoding a chunk of one video takes, with a `codec` on the meta device.

    Workspaces inside convolution libraries are unknown and not counted.
    """
    latents = torch.empty(
        1, config.in_channels, config.chunk, config.sample_height, config.sample_width, device="meta"
    )
    _, state = codec.decode(latents)
    return peak_live_bytes(partial(codec.decode, latents, state))


def pass_scratch(config: ModelConfig, item: int) -> int:
    """An estimate of the bytes that a pass over a chunk of one video takes, with `item` bytes a number.

    It counts the larger of a layer's feed-forward and its attention, whose keys and values of all heads exist
    beside the entries they are expanded from, plus the entries of all layers, which are stacked at the end.
    Scores are not counted: only bfloat16 on a CPU materialises them (`plugins.matmul`), and takes more. Other
    temporary tensors make the estimate up to 17 % too small, or 15 % too large for the layout `mha`.
    """
    spec, width, latent = CacheSpec.of(config), config.inner_dim, config.layout == "mla"
    own = config.chunk * config.tokens_per_frame  # S
    window = spec.slots * config.tokens_per_frame + own  # K
    entries = config.num_layers * own * spec.entry_width
    content = config.num_attention_heads * config.qk_nope_head_dim
    rotary = config.num_attention_heads * config.qk_rope_head_dim
    expanded = spec.entry_width + 2 * content + rotary + width if latent else 5 * width
    attention = 4 * own * width + window * expanded
    feed_forward = 3 * own * width + 2 * own * config.ffn_dim
    return item * max(entries + max(attention, feed_forward), 2 * entries + 2 * own * width)
