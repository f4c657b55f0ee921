"""The denoiser: Wan2.1's causal transformer with its self-attention read from a cache.

`VideoMLA.forward` is the step that everything else exports, compiles, tests and times: a pure
function of tensors with static shapes. Parameter names are those of diffusers' Wan transformer
wherever the parameter is Wan's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import MethodType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from vmla.attention import AnyWindow, HeadAttention, LatentAttention, TextAttention, Window
from vmla.config import ModelConfig
from vmla.packed_sequence import PackedClip
from vmla.rope import Rotary3D


class StepInputs(NamedTuple):
    """The six tensors of one pass, in the order of `VideoMLA.forward` and of every engine's signature."""

    latents: Tensor
    """The noisy chunk [B, z, F, h, w] float32."""
    timestep: Tensor
    """[B, F] float32 in 0 .. 1000; 0 on the clean pass."""
    text_kv: Tensor
    """Keys and values of the prompt for cross-attention [L, 2, B, tokens, D]."""
    cache: Tensor
    """[L, B, T, E], in the order of its slots."""
    slot_index: Tensor
    """Window-relative frame of each slot [T / P] int32; -1 marks an empty one."""
    chunk_index: Tensor
    """Window-relative frames of the chunk itself [F] int32."""


def sinusoids(timestep: Tensor, width: int) -> Tensor:
    """Timesteps [...] in 0 .. 1000 to [..., width] float32: cosines, then sines, base 10000 (Wan)."""
    half = width // 2
    rates = torch.exp(-math.log(10000) / half * torch.arange(half, device=timestep.device))
    angles = timestep.float()[..., None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TwoLayers(nn.Module):
    """A linear layer, an activation and a linear layer, as Wan's embedders have them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, hidden)
        self.activation = activation
        self.linear_2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self.linear_2(self.activation(self.linear_1(x)))


class Conditioning(nn.Module):
    """Embeds timesteps and text in the widths that the blocks read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.inner_dim
        self.freq_dim = config.freq_dim
        self.time_embedder = TwoLayers(config.freq_dim, width, width, nn.SiLU())
        self.time_proj = nn.Linear(width, 6 * width)
        self.text_embedder = TwoLayers(config.text_dim, width, width, nn.GELU(approximate="tanh"))

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """timestep [B, F] to the head's embedding [B, F, D] and the blocks' modulation [B, F, 6, D]."""
        # Sinusoids of 0 .. 1000 need float32; only then are they rounded to the weights' type.
        waves = sinusoids(timestep, self.freq_dim).to(self.time_proj.weight.dtype)
        embedding = self.time_embedder(waves)
        modulation = self.time_proj(nn.functional.silu(embedding))
        return embedding, modulation.unflatten(-1, (6, -1))


class FeedForward(nn.Module):
    """A linear layer, GELU in its tanh form and a linear layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return self.down(nn.functional.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """One layer: x += m2 SA(LN(x)(1 + m1) + m0); x += CA(LN(x)); x += m5 FFN(LN(x)(1 + m4) + m3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.inner_dim
        # norm1 and norm3 have no gains of their own: the timestep's modulation scales and shifts after them.
        self.norm1 = nn.LayerNorm(width, eps=config.eps, elementwise_affine=False)
        self.attn1 = LatentAttention(config) if config.layout == "mla" else HeadAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=config.eps)
        self.attn2 = TextAttention(config)
        self.norm3 = nn.LayerNorm(width, eps=config.eps, elementwise_affine=False)
        self.ffn = FeedForward(width, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(nn.init.normal_(torch.empty(1, 6, width), std=width**-0.5))

    def forward(
        self, x: Tensor, modulation: Tensor, text_kv: Tensor, cached: Tensor, window: AnyWindow,
        absorbed: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """x [B, S, D], modulation [B, F, 6, D], text_kv [2, B, tokens, D], cached [B, T, E].

        Returns:
            The new x and the chunk's entries [B, S, E].
        """
        m = (modulation + self.scale_shift_table).unbind(dim=2)
        attended, entries = self.attn1(modulate(self.norm1(x), m[0], m[1]), cached, window, absorbed=absorbed)
        x = x + gate(attended, m[2])
        x = x + self.attn2(self.norm2(x), text_kv)
        x = x + gate(self.ffn(modulate(self.norm3(x), m[3], m[4])), m[5])
        return x, entries

    def entries(self, x: Tensor, modulation: Tensor) -> Tensor:
        """The entries [B, S, E] that `forward` would give for x [B, S, D], and nothing else."""
        m = (modulation + self.scale_shift_table).unbind(dim=2)
        return self.attn1.entries(modulate(self.norm1(x), m[0], m[1]))


class VideoMLA(nn.Module):
    """The causal video denoiser, in either layout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, cells = config.inner_dim, config.in_channels * config.patch_size**2
        self.patch_embedding = nn.Linear(cells, width)
        self.condition_embedder = Conditioning(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm_out = nn.LayerNorm(width, eps=config.eps, elementwise_affine=False)
        self.proj_out = nn.Linear(width, cells)
        self.scale_shift_table = nn.Parameter(nn.init.normal_(torch.empty(1, 2, width), std=width**-0.5))
        self.position_embedding: nn.Parameter | None = None
        if config.position_table:  # drawn last, so that all else starts as it does without
            table = torch.empty(config.tokens_per_frame, width)
            self.position_embedding = nn.Parameter(nn.init.normal_(table, std=0.02))  # as BERT's and ViT's
        self.rope = self.rotary(config)

    @staticmethod
    def rotary(config: ModelConfig) -> Rotary3D:
        """The positions of a model: the shared rotary key's, or those of Wan's whole heads."""
        rotary = config.qk_rope_head_dim if config.layout == "mla" else config.attention_head_dim
        return Rotary3D(
            attention_head_dim=config.attention_head_dim, qk_rope_head_dim=rotary, grid=config.grid
        )

    def embed(self, latents: Tensor) -> Tensor:
        """Latents [B, z, F, h, w] to the tokens [B, F * P, D] that the first block reads."""
        x = self.patch_embedding(patchify(latents, self.config.patch_size))
        if self.position_embedding is None:
            return x
        framed = x.view(x.shape[0], latents.shape[2], -1, x.shape[2])
        return (framed + self.position_embedding).view(x.shape)

    def encode_text(self, text: Tensor) -> Tensor:
        """Text embeddings [B, tokens, text width] to cross-attention keys and values [L, 2, B, tokens, D]."""
        embedded = self.condition_embedder.text_embedder(text)
        attentions = (cast(Block, block).attn2 for block in self.blocks)
        return torch.stack([attention.keys_values(embedded) for attention in attentions])

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text_kv: Tensor,
        cache: Tensor,
        slot_index: Tensor,
        chunk_index: Tensor,
        *,
        absorbed: bool = False,
        full: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """One pass over one chunk.

        Args:
            latents: [B, z, F, h, w], the noisy chunk.
            timestep: [B, F] float32, 1000 sigma; 0 on the clean pass.
            text_kv: [L, 2, B, text tokens, D] from `encode_text`.
            cache: [L, B, T, E], in the order of its slots.
            slot_index: [T / P] int32, window-relative frame of each slot, -1 where it is empty.
            chunk_index: [F] int32, window-relative frames of the chunk itself.
            absorbed: attend in latent space instead of expanding keys and values.
            full: the caller knows that no slot is empty, so that expanded attention needs no mask.

        Returns:
            Velocity eps - x0 [B, z, F, h, w] and the chunk's entries [L, B, S, E].
        """
        window = self._window(slot_index, chunk_index, full and not absorbed)
        embedding, modulation = self.condition_embedder(timestep)
        x, entries = self._through(self.blocks, latents, modulation, text_kv, cache, window, absorbed)
        return self._velocity(x, embedding, latents.shape), torch.stack(entries)

    def forward_packed(self, latents: Tensor, timestep: Tensor, text_kv: Tensor, clip: PackedClip) -> Tensor:
        """Several chunks in one pass, clean and noisy, each in its own window: for training alone.

        Args:
            latents: [B, z, frames, h, w] of the sequence that `clip` lays out.
            timestep: [B, frames] float32, 1000 sigma.
            text_kv: [L, 2, B, text tokens, D] from `encode_text`.
            clip: which frames see which, and from where.

        Returns:
            Velocity [B, z, frames, h, w]; that of clean frames means nothing.
        """
        window = clip.window(self.rope, latents.device)
        embedding, modulation = self.condition_embedder(timestep)
        nothing = text_kv.new_empty(self.config.num_layers, len(latents), 0, self.config.entry_width)
        x, _ = self._through(self.blocks, latents, modulation, text_kv, nothing, window, False)
        return self._velocity(x, embedding, latents.shape)

    def entries(
        self,
        latents: Tensor,
        timestep: Tensor,
        text_kv: Tensor,
        cache: Tensor,
        slot_index: Tensor,
        chunk_index: Tensor,
        *,
        absorbed: bool = False,
        full: bool = False,
    ) -> Tensor:
        """The second result of `forward` alone: the clean pass stops at the last layer's entries."""
        window = self._window(slot_index, chunk_index, full and not absorbed)
        _, modulation = self.condition_embedder(timestep)
        *blocks, last = self.blocks
        x, entries = self._through(blocks, latents, modulation, text_kv, cache, window, absorbed)
        return torch.stack([*entries, window.gathered(cast(Block, last).entries(x, modulation))])

    def _through(
        self, blocks: Iterable[nn.Module], latents: Tensor, modulation: Tensor, text_kv: Tensor,
        cache: Tensor, window: AnyWindow, absorbed: bool,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Tokens [B, S, D] after the first `blocks`, and the entries [B, S, E] of each of these."""
        x = self.embed(latents)
        entries = []
        for layer, block in enumerate(blocks):
            x, own = block(x, modulation, text_kv[layer], cache[layer], window, absorbed)
            entries.append(own)
        return x, entries

    def _velocity(self, x: Tensor, embedding: Tensor, shape: torch.Size) -> Tensor:
        """Tokens [B, S, D] to latents of `shape` [B, z, F, h, w]."""
        return unpatchify(self.head(x, embedding), self.config.patch_size, shape)

    def head(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Tokens [B, S, D] after the last block to those of the velocity [B, S, z * patch^2]."""
        shift, scale = (embedding[:, :, None] + self.scale_shift_table).unbind(dim=2)
        return self.proj_out(modulate(self.norm_out(x), shift, scale))

    def _window(self, slot_index: Tensor, chunk_index: Tensor, full: bool = False) -> Window:
        """Validity, unless all are valid, and rotations of every token of the window, cached ones first."""
        frames = torch.cat([slot_index, chunk_index])
        # An empty slot's -1 becomes 0: its rotation is computed like any other and then masked.
        cos, sin = self.rope(frames.clamp(min=0))
        valid = None if full else (frames >= 0).repeat_interleave(self.config.tokens_per_frame)
        return Window(valid, cos, sin)


def compile_blocks(*models: VideoMLA) -> None:
    """Compile the block once for all layers of all models; needs a C++ compiler on a CPU."""
    forward = torch.compile(Block.forward, dynamic=False)
    for block in (block for model in models for block in model.blocks):
        block.forward = MethodType(forward, block)  # type: ignore[method-assign]


def gate(x: Tensor, gates: Tensor) -> Tensor:
    """x [B, F * P, D] times the gates [B, F, D] of its frames."""
    framed = x.view(x.shape[0], gates.shape[1], -1, x.shape[2])
    return (framed * gates[:, :, None]).view(x.shape)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift for x [B, F * P, D], with shift and scale [B, F, D] given for each frame."""
    framed = x.view(x.shape[0], shift.shape[1], -1, x.shape[2])
    return (framed * (1 + scale[:, :, None]) + shift[:, :, None]).view(x.shape)


def patchify(latents: Tensor, patch: int) -> Tensor:
    """[B, z, F, h, w] to tokens [B, F * P, z * patch^2], channel-major as a convolution reads them."""
    batch, channels, frames, height, width = latents.shape
    cells = latents.reshape(batch, channels, frames, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, -1, channels * patch**2)


def unpatchify(tokens: Tensor, patch: int, shape: torch.Size) -> Tensor:
    """Tokens [B, F * P, patch^2 * z] to `shape` [B, z, F, h, w], channels last within a patch as in Wan."""
    batch, channels, frames, height, width = shape
    cells = tokens.reshape(batch, frames, height // patch, width // patch, patch, patch, channels)
    return cells.permute(0, 6, 1, 2, 4, 3, 5).reshape(shape)
