"""Latent attention as attention per head: the way back, for comparisons from one start.

The reverse of `vmla.weights.conversion.spectral`, in float64, one layer at a time. A head's rotary channels
take the part that all heads shared; its content becomes the slowest pairs of the rest, which turn least:

    A_h = W_uQ,h^T W_uK,h = U S V^T      content of head h: queries S^1/2 U^T, keys S^1/2 V^T
    W_Q,h = (content; W_rQ,h) D_q        W_K,h = (content D_kv; W_rK)        W_V = W_uV D_kv
    D = E[norm(W_d x) x^T] E[x x^T]^-1   the matrix nearest to a latent after its norm

What is lost: keys and queries have one size for all tokens, where a latent's differ, values are linear in the
inputs, and the content turns a little. Training makes up for most of it. Channels that no content needs get
keys drawn at random, which no query asks for yet: nothing changes, and training can use them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vmla.config import ModelConfig
from vmla.rope import Rotary3D
from vmla.weights.conversion.spectral import AttentionInputs, channels, norm_gain, rms


def unfold_attention(
    latent: Mapping[str, Tensor], config: ModelConfig, inputs: Tensor, *, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights of `HeadAttention` from those of `LatentAttention`.

    Args:
        latent: by name within the layer: `down_kv.weight` and so on.
        config: of the latent model.
        inputs: [n, D], of this layer's attention.
        seed: of keys in channels that content leaves free.

    Returns:
        The weights in float32, and the share of the content's energy (squared singular values, mean of
        heads) that a head has channels for.
    """
    latent = {name: tensor.double() for name, tensor in latent.items()}
    seen = AttentionInputs.of(inputs, whiten=False)
    down_kv, down_q = (_normed_latent(latent, part, seen, config) for part in ("kv", "q"))
    content_q, content_k, kept = _content(latent, config)
    content_q, content_k = content_q @ down_q, _filled(content_k @ down_kv, seed)
    rotary_q = latent["rotary_q.weight"].unflatten(0, (config.num_attention_heads, -1)) @ down_q
    rotary_k = latent["rotary_k.weight"].expand(config.num_attention_heads, -1, -1)
    queries, keys = _heads(content_q, rotary_q, config), _heads(content_k, rotary_k, config)
    return {
        "to_v.weight": (latent["up_v.weight"] @ down_kv).float(),
        "to_v.bias": torch.zeros(config.inner_dim),
        **_normed("q", queries, seen.tokens, config),
        **_normed("k", keys, seen.tokens, config),
        "to_out.weight": latent["to_out.weight"].float(),
        "to_out.bias": latent["to_out.bias"].float(),
    }, {"content": kept}


def slowest_first(config: ModelConfig) -> list[int]:
    """The channels of a head that hold content, pair by pair, from the pair that turns least on."""
    whole = Rotary3D(
        attention_head_dim=config.attention_head_dim,
        qk_rope_head_dim=config.attention_head_dim,
        grid=config.grid,
    )
    speeds = torch.cat([whole.frequencies_time, whole.frequencies_height, whole.frequencies_width])
    content = channels(config)[1]
    return sorted(content, key=lambda channel: (float(speeds[channel // 2]), channel))


def _normed_latent(
    latent: Mapping[str, Tensor], part: str, inputs: AttentionInputs, config: ModelConfig
) -> Tensor:
    """D: the matrix whose products with these inputs are nearest to the latent after its norm."""
    plain = inputs.tokens @ latent[f"down_{part}.weight"].T
    wanted = latent[f"norm_{part}.weight"] * plain / rms(plain, config.eps)
    return torch.linalg.solve(inputs.moment, inputs.tokens.T @ wanted / len(plain)).T


def _content(latent: Mapping[str, Tensor], config: ModelConfig) -> tuple[Tensor, Tensor, float]:
    """Content of queries [N, dn, query latent] and of keys [N, dn, C], strongest direction first."""
    up_q, up_k = (latent[f"up_{part}.weight"].unflatten(0, (config.num_attention_heads, -1)) for part in "qk")
    left, values, right = torch.linalg.svd(up_q.transpose(1, 2) @ up_k, full_matrices=False)
    room = min(config.qk_nope_head_dim, values.shape[-1])
    root = values[:, :room, None].sqrt()
    energy = values[:, :room].square().sum(-1) / values.square().sum(-1)
    pad = (0, 0, 0, config.qk_nope_head_dim - room)
    queries = torch.nn.functional.pad(root * left[..., :room].transpose(1, 2), pad)
    keys = torch.nn.functional.pad(root * right[:, :room], pad)
    return queries, keys, float(energy.mean())


def _filled(keys: Tensor, seed: int) -> Tensor:
    """Content of keys [N, dn, D], its rows of zeros drawn at the size of the others."""
    free = keys.abs().sum(-1) == 0
    size = keys[~free].square().mean().sqrt()
    drawn = torch.randn(keys.shape, generator=torch.Generator().manual_seed(seed), dtype=keys.dtype)
    return torch.where(free[..., None], size * drawn, keys)


def _heads(content: Tensor, rotary: Tensor, config: ModelConfig) -> Tensor:
    """Rows [N * head width, D] of content [N, dn, D] and rotary channels [N, R, D] in their places."""
    rows = content.new_zeros(config.num_attention_heads, config.attention_head_dim, config.inner_dim)
    rows[:, slowest_first(config)] = content
    rows[:, channels(config)[0]] = rotary
    return rows.flatten(0, 1)


def _normed(part: str, rows: Tensor, inputs: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """`to_q` or `to_k` with its norm, whose gains bring back the size; 1 where there is nothing."""
    made = inputs @ rows.T
    gain = norm_gain(made, made, config.eps)
    return {f"to_{part}.weight": rows.float(), f"to_{part}.bias": torch.zeros(config.inner_dim),
            f"norm_{part}.weight": gain.nan_to_num(nan=1.0).float()}  # fmt: skip
