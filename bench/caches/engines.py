"""One model behind caches of several forms: engines that differ only in the cached tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from runtime.engines.base import EagerEngine
from runtime.engines.layers.cache_formats import Format
from runtime.engines.optimizations import Optimizations
from vmla.attention import AnyWindow, LatentAttention
from vmla.config import ModelConfig
from vmla.rope import rotate
from vmla.transformer import Block, StepInputs, VideoMLA
from vmla.weights.checkpoint import Checkpoint


class PerHeadCache(LatentAttention):
    """Latent attention that caches its expanded latents: a key and a value for each head.

    Weights and results are the same; the cache is that of attention without latents.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.turning, self.values = config.qk_rope_head_dim, config.inner_dim

    def entries(self, x: Tensor) -> Tensor:
        """Cache entries of x [B, S, D]: [B, S, N (dn + R) + N dv], unrotated keys and then values."""
        content = self.norm_kv(self.down_kv(x))
        keys = self.up_k(content).unflatten(-1, (self.heads, -1))
        rotary = self.rotary_k(x)[..., None, :].expand(*keys.shape[:-1], -1)
        return torch.cat([torch.cat([keys, rotary], dim=-1).flatten(-2), self.up_v(content)], dim=-1)

    def forward(
        self, x: Tensor, cached: Tensor, window: AnyWindow, *, absorbed: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Attend as `LatentAttention.forward` does, with the stored entries.

        Raises:
            ValueError: if the absorbed form is asked for, which needs latents.
        """
        if absorbed:
            raise ValueError("a cache per head has no absorbed form")
        own = self.entries(x)
        query = torch.cat(self.queries(x, window), dim=-1)
        held = torch.cat([window.before(cached, own), own], dim=1)
        keys, values_of = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in held.split([held.shape[-1] - self.values, self.values], dim=-1)
        )
        still, turned = keys.split([keys.shape[-1] - self.turning, self.turning], dim=-1)
        keys = torch.cat([still, rotate(turned, window.cos, window.sin)], dim=-1)
        out = window.attend(query, keys, values_of)
        return self.to_out(out.transpose(1, 2).flatten(2)), own


def latent_engine(checkpoint: Checkpoint) -> EagerEngine:
    """The engine of the model with its own latent cache, in float32 on a CPU."""
    return _engine(checkpoint, checkpoint.transformer())


def per_head_engine(checkpoint: Checkpoint) -> EagerEngine:
    """The model with `PerHeadCache` in every layer."""
    model = checkpoint.transformer()
    for block in model.blocks:
        plain, made = cast(Block, block).attn1, PerHeadCache(model.config)
        made.load_state_dict(plain.state_dict())
        block.attn1 = made
    engine = _engine(checkpoint, model)
    config = model.config
    keys = config.num_attention_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    engine.cache_spec = replace(engine.cache_spec, entry_width=keys + config.inner_dim)
    return engine


def _engine(checkpoint: Checkpoint, model: VideoMLA) -> EagerEngine:
    model.eval().requires_grad_(False)
    apart = Optimizations(joined=False)  # as per-head entries require, so that caches alone differ
    return EagerEngine(
        model, checkpoint.text(), device=torch.device("cpu"), dtype=torch.float32, optimizations=apart
    )


class StoredCache:
    """An engine that stores its cache in a `Format`, and unpacks all of it before every pass.

    It serves one rollout of `batch` videos under one prompt, whose own cache it does not read. A kernel that
    reads the packed form would save the unpacking; there is none.
    """

    def __init__(self, engine: EagerEngine, form: Format, *, batch: int) -> None:
        self.config, self.cache_spec = engine.config, engine.cache_spec
        self.device, self.dtype, self.cache_dtype = engine.device, engine.dtype, engine.dtype
        self._engine, self._form = engine, form
        empty = self.cache_spec.allocate(batch, dtype=engine.dtype, device=engine.device)
        self.packed = form.pack(empty)
        """The cache: tensors [L, B, T, n]."""
        self._frame = 0

    @property
    def bytes(self) -> int:
        """Bytes of the packed cache."""
        return sum(part.numel() * part.element_size() for part in self.packed)

    def encode_prompt(self, prompts: Sequence[str | None]) -> Tensor:
        """See `Engine.encode_prompt`; the wrapped engine does it."""
        return self._engine.encode_prompt(prompts)

    def step(self, inputs: StepInputs, *, held: int | None = None) -> tuple[Tensor, Tensor]:
        """See `Engine.step`; the cache is unpacked first."""
        return self._engine.step(self._read(inputs), held=held)

    def entries(self, inputs: StepInputs, *, held: int | None = None) -> Tensor:
        """See `Engine.entries`; they are also committed to the packed cache."""
        made = self._engine.entries(self._read(inputs), held=held)
        frames = inputs.latents.shape[2]
        source, target = self.cache_spec.token_indices(self._frame, frames)
        for stored, new in zip(self.packed, self._form.pack(made), strict=True):
            stored.index_copy_(2, target, new.index_select(2, source))
        self._frame += frames
        return made

    def computation(self, held: int) -> int:
        """See `Engine.computation`; the wrapped engine decides."""
        return self._engine.computation(held)

    def close(self) -> None:
        """Close the wrapped engine."""
        self._engine.close()

    def _read(self, inputs: StepInputs) -> StepInputs:
        return inputs._replace(cache=self._form.unpack(self.packed, self.dtype))
