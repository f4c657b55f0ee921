"""diffusers' Wan transformer beside ours: a tiny one, and its weights under our names."""

import torch

from vmla.config import ModelConfig

RENAMED = {".to_out.0.": ".to_out.", ".ffn.net.0.proj.": ".ffn.up.", ".ffn.net.2.": ".ffn.down."}
"""All other names are the same in both."""


def wan_transformer(config: ModelConfig):
    """diffusers' `WanTransformer3DModel` of the sizes of `config`."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, config.patch_size, config.patch_size),
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        eps=config.eps,
        rope_max_seq_len=64,
    ).eval()


def from_diffusers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A diffusers state dict for the `mha` layout."""
    ours = {}
    for name, tensor in weights.items():
        for theirs, our in RENAMED.items():
            name = name.replace(theirs, our)
        ours[name] = tensor.flatten(1) if name == "patch_embedding.weight" else tensor
    return ours
