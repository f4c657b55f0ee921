"""Wan's per-head attention as latent attention: the algebra, in float64, one layer at a time.

Keys of a head fall into content channels, whose rotation is slow and is left out, and rotary channels,
whose pairs all heads share (`vmla.rope`). Then (arXiv 2605.30351, 3.3; what it leaves open is said):

    [G_K W_K content; W_V] R = U S V^T  W_dKV = S^b V^T R^-1, [W_uK; W_uV] = U S^(1-b), first C directions
    K_p R = u s v^H, p a pair           W_rK rows of p = s v^H R^-1, queries of head h turned by conj(u_h)
    G_Q W_Q R = U S V^T                 W_dQ = U^T G_Q W_Q, [W_uQ; W_rQ] = U, first directions

R is the root of the inputs' second moment, so that the directions kept are those that matter for the outputs;
G_K and G_Q are the gains of Wan's norms. A value's bias passes through attention unchanged and joins W_O's. A
content key's bias adds the same to all scores of a query, as far as keys have one size: it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plugins.errors import UserError
from vmla.config import ModelConfig
from vmla.rope import split_pairs

RIDGE = 1e-3
"""Added to the second moment, as a share of its mean eigenvalue: it stands for inputs that calibration never
saw."""


Init = Literal["spectral", "random"]
"""How the latents' projections begin: decomposed from the source's, or drawn at random."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Choices of the initialisation that the paper leaves open."""

    init: Init = "spectral"
    whiten: bool = True
    """Weigh directions of the input by how much calibration tokens use them."""
    balance: float = 1.0
    """b, the exponent of the singular values in the down-projection. At 1 every channel of the latent has the
    variance of its direction, at 0 all have variance 1; 1 starts better (docs/training.md has the
    figures)."""
    key_weight: float = 1.0
    """Weight of an error in the keys relative to one in the values."""
    stack: Literal["content", "whole"] = "content"
    """Which rows of the keys are decomposed together with the values: those of content, or the rotary ones
    too."""
    gains: Literal["fold", "drop"] = "fold"
    """Gains of Wan's query and key norms: folded into the rows that they multiply, or dropped."""
    rotary: Literal["singular", "mean"] = "singular"
    """The shared rotary key: the leading direction of all heads' pairs, or their mean."""
    biases: Literal["absorb", "drop"] = "absorb"
    """Biases of queries and rotary keys, which latent attention does not have: absorbed into the matrix
    that fits best without one, or dropped."""
    latent_gains: Literal["fit", "one"] = "fit"
    """Gains of the latents' own norms: fitted to restore the latents' size, or all ones."""
    seed: int = 0
    """Seed of `random`, whose normal entries preserve the size of their inputs."""

    def __post_init__(self) -> None:
        if self.init not in ("spectral", "random"):
            raise UserError(f"no such initialisation: {self.init}; use spectral or random")
        if not 0 <= self.balance <= 1 or self.key_weight <= 0:
            raise UserError("the balance lies between 0 and 1, the weight of keys above 0")


@dataclass(frozen=True)
class AttentionInputs:
    """Calibration inputs of one layer's attention, and their moments."""

    tokens: Tensor
    """Inputs of the attention, one row a token [n, D] float64."""
    mean: Tensor
    """Mean of the tokens [D]."""
    moment: Tensor
    """[D, D]: mean of x x^T, with a ridge."""
    root: Tensor
    inverse: Tensor
    """[D, D]: R and R^-1; the identity without whitening."""

    @classmethod
    def of(cls, tokens: Tensor, *, whiten: bool) -> AttentionInputs:
        """Moments of `tokens` [n, D]."""
        tokens = tokens.double()
        moment = tokens.T @ tokens / len(tokens)
        eye = torch.eye(len(moment), dtype=torch.float64)
        moment = moment + RIDGE * moment.diagonal().mean() * eye
        if not whiten:
            return cls(tokens, tokens.mean(0), moment, eye, eye)
        values, vectors = torch.linalg.eigh(moment)
        root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
        return cls(tokens, tokens.mean(0), moment, root, inverse)

    def absorbed(self, weight: Tensor, bias: Tensor, choices: Choices) -> Tensor:
        """The matrix without a bias that is nearest to W x + b on these inputs: W + b mean^T moment^-1."""
        if choices.biases == "drop":
            return weight
        return weight + torch.outer(bias, torch.linalg.solve(self.moment, self.mean))


@dataclass(frozen=True)
class Factored:
    """A low-rank factorisation: the matrix is about `up @ down`."""

    down: Tensor
    """The down-projection [rank, inputs]."""
    up: Tensor
    """The up-projection [outputs, rank]."""
    energy: float
    """Share of the squared singular values that was kept."""


def factor(matrix: Tensor, rank: int, inputs: AttentionInputs, balance: float) -> Factored:
    """The best `rank` directions of `matrix` [outputs, inputs] for these inputs.

    Raises:
        UserError: if the matrix has fewer directions.
    """
    if rank > min(matrix.shape):
        raise UserError(f"a rank of {rank} is more than a matrix of {list(matrix.shape)} has")
    left, values, right = torch.linalg.svd(matrix @ inputs.root, full_matrices=False)
    kept = values[:rank]
    down = kept[:, None] ** balance * (right[:rank] @ inputs.inverse)
    energy = float(kept.square().sum() / values.square().sum())
    return Factored(down, left[:, :rank] * kept ** (1 - balance), energy)


def rms(x: Tensor, eps: float) -> Tensor:
    """Root mean square of the last axis, kept as an axis of 1."""
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


def norm_gain(latent: Tensor, wanted: Tensor, eps: float) -> Tensor:
    """Gains [channels] with which RMSNorm of `latent` [n, channels] comes nearest to `wanted`."""
    unit = latent / rms(latent, eps)
    return (unit * wanted).sum(0) / unit.square().sum(0)


def _latent_gain(latent: Tensor, wanted: Tensor, config: ModelConfig, choices: Choices) -> Tensor:
    """The gain of the latent's norm: from `norm_gain`, or ones where those are chosen."""
    if choices.latent_gains == "one":
        return torch.ones_like(latent[0])
    return norm_gain(latent, wanted, config.eps)


def channels(config: ModelConfig) -> tuple[list[int], list[int]]:
    """Channels of a Wan head that the shared rotary key keeps, and those that become content."""
    spatial = 2 * (config.attention_head_dim // 6)
    starts = (0, config.attention_head_dim - 2 * spatial, config.attention_head_dim - spatial)
    pairs = zip(starts, split_pairs(config.qk_rope_head_dim // 2), strict=True)
    rotary = [start + i for start, kept in pairs for i in range(2 * kept)]
    return rotary, [i for i in range(config.attention_head_dim) if i not in rotary]


def convert_attention(
    wan: Mapping[str, Tensor], config: ModelConfig, inputs: AttentionInputs, choices: Choices
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights of `LatentAttention` from those of `HeadAttention`.

    Args:
        wan: by name within the layer: `to_q.weight` and so on.
        config: of the latent model.
        inputs: of this layer's attention.
        choices: those that the paper leaves open.

    Returns:
        The weights in float32, and the energy kept of keys with values, rotary keys and queries.
    """
    wan = {name: tensor.double() for name, tensor in wan.items()}
    if choices.init == "random":
        return _finish(_random(config, choices), wan, absorb_values=False), {}
    if choices.gains == "drop":
        wan |= {name: torch.ones_like(wan[name]) for name in ("norm_q.weight", "norm_k.weight")}
    # Wan divides a key by its size; here one number does, the best for these tokens.
    keys = inputs.tokens @ wan["to_k.weight"].T + wan["to_k.bias"]
    size = rms(keys, config.eps)
    gain = wan["norm_k.weight"] * size.sum() / size.square().sum()
    content, kept = _content(wan, gain, config, inputs, choices)
    rotary, turns, shared = _rotary(wan, gain, config, inputs, choices)
    queries, used = _queries(wan, turns, config, inputs, choices)
    energy = {"keys and values": kept, "rotary keys": shared, "queries": used}
    return _finish({**content, **rotary, **queries}, wan, absorb_values=True), energy


def _content(
    wan: Mapping[str, Tensor], gain: Tensor, config: ModelConfig, inputs: AttentionInputs, choices: Choices
) -> tuple[dict[str, Tensor], float]:
    """W_dKV, its norm, W_uK and W_uV: content keys and values decomposed together."""
    content = channels(config)[1]
    keys = gain[:, None] * wan["to_k.weight"]
    if choices.stack == "content":
        keys = _of_heads(keys, content, config)
    stack = torch.cat([choices.key_weight * keys, wan["to_v.weight"]])
    parts = factor(stack, config.kv_lora_rank, inputs, choices.balance)
    latent = inputs.tokens @ parts.down.T
    up_k, up_v = parts.up.split([len(keys), config.inner_dim])
    if choices.stack == "whole":
        up_k = _of_heads(up_k, content, config)
    return {
        "down_kv.weight": parts.down,
        "norm_kv.weight": _latent_gain(latent, latent, config, choices),
        "up_k.weight": up_k / choices.key_weight,
        "up_v.weight": up_v,
    }, parts.energy


def _rotary(
    wan: Mapping[str, Tensor], gain: Tensor, config: ModelConfig, inputs: AttentionInputs, choices: Choices
) -> tuple[dict[str, Tensor], Tensor, float]:
    """W_rK, the factor [N, pairs] (complex) of each head for each shared pair, and the energy kept.

    Two channels of a pair are one complex number, and rotation multiplies it: what multiplies a key
    by u multiplies the score as a query times conj(u) does.
    """
    weight = inputs.absorbed(gain[:, None] * wan["to_k.weight"], gain * wan["to_k.bias"], choices)
    rows = _of_heads(weight, channels(config)[0], config).unflatten(0, (config.num_attention_heads, -1, 2))
    pairs = torch.complex(rows[:, :, 0], rows[:, :, 1]).transpose(0, 1)  # [pairs, N, D]
    root, inverse = (matrix.to(pairs.dtype) for matrix in (inputs.root, inputs.inverse))
    if choices.rotary == "mean":
        turns = torch.ones(config.num_attention_heads, len(pairs), dtype=pairs.dtype)
        shared = pairs.mean(1)
    else:
        left, values, right = torch.linalg.svd(pairs @ root, full_matrices=False)
        even = config.num_attention_heads**0.5  # normalised so that each head's factor is about 1
        turns = left[:, :, 0].T * even
        shared = values[:, :1] * (right[:, 0] @ inverse) / even
    fitted = turns.T[:, :, None] * shared[:, None]
    lost = ((pairs - fitted) @ root).abs().square().sum() / (pairs @ root).abs().square().sum()
    weight = torch.stack([shared.real, shared.imag], dim=1).flatten(0, 1)
    return {"rotary_k.weight": weight}, turns, float(1 - lost)


def _queries(
    wan: Mapping[str, Tensor], turns: Tensor, config: ModelConfig, inputs: AttentionInputs, choices: Choices
) -> tuple[dict[str, Tensor], float]:
    """W_dQ, its norm, W_uQ and W_rQ. Up is orthonormal: the latent is as large as the query itself."""
    plain = inputs.absorbed(wan["to_q.weight"], wan["to_q.bias"], choices)
    gained = wan["norm_q.weight"][:, None] * plain
    parts = factor(gained, config.q_lora_rank, inputs, 1.0)
    down = parts.up.T @ gained
    latent = inputs.tokens @ down.T
    wanted = latent / rms(inputs.tokens @ wan["to_q.weight"].T + wan["to_q.bias"], config.eps)
    rotary, content = channels(config)
    rows = _of_heads(parts.up, rotary, config).unflatten(0, (config.num_attention_heads, -1, 2))
    turned = turns.conj()[..., None] * torch.complex(rows[:, :, 0], rows[:, :, 1])
    return {
        "down_q.weight": down,
        "norm_q.weight": _latent_gain(latent, wanted, config, choices),
        "up_q.weight": _of_heads(parts.up, content, config),
        "rotary_q.weight": torch.stack([turned.real, turned.imag], dim=2).flatten(0, 2),
    }, parts.energy


def _of_heads(rows: Tensor, kept: list[int], config: ModelConfig) -> Tensor:
    """The `kept` channels of each head among rows [N * head width, n]: [N * kept, n]."""
    return rows.unflatten(0, (config.num_attention_heads, -1))[:, kept].flatten(0, 1)


def _random(config: ModelConfig, choices: Choices) -> dict[str, Tensor]:
    """Projections drawn anew, scaled to preserve the size of their inputs; gains of one."""
    content, latent, heads = config.kv_lora_rank, config.q_lora_rank, config.num_attention_heads
    shapes = {
        "down_kv": (content, config.inner_dim), "up_k": (heads * config.qk_nope_head_dim, content),
        "up_v": (config.inner_dim, content), "rotary_k": (config.qk_rope_head_dim, config.inner_dim),
        "down_q": (latent, config.inner_dim), "up_q": (heads * config.qk_nope_head_dim, latent),
        "rotary_q": (heads * config.qk_rope_head_dim, latent),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(choices.seed)
    drawn = {
        f"{name}.weight": torch.randn(shape, generator=generator, dtype=torch.float64) * shape[1] ** -0.5
        for name, shape in shapes.items()
    }
    return {**drawn, "norm_kv.weight": torch.ones(content), "norm_q.weight": torch.ones(latent)}


def _finish(
    weights: dict[str, Tensor], wan: Mapping[str, Tensor], *, absorb_values: bool
) -> dict[str, Tensor]:
    """Add W_O, which is Wan's own, with the values' bias passed through it."""
    bias = wan["to_out.bias"] + (wan["to_out.weight"] @ wan["to_v.bias"] if absorb_values else 0)
    whole = {**weights, "to_out.weight": wan["to_out.weight"], "to_out.bias": bias}
    return {name: tensor.float().contiguous() for name, tensor in whole.items()}
