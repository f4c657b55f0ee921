"""diffusers' Wan transformer beside ours: a tiny one, and its weights under our names."""

import torch

from vmla.config import ModelConfig

RENAMED = {".to_out.0.": ".to_out.", ".ffn.net.0.proj.": ".ffn.up.", ".ffn.net.2.": ".ffn.down."}
"""All other names are the same in both."""


def wan_transformer(config: ModelConfig):
    """diffusers' `WanTransformer3DModel` of the sizes of `config`."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, config.patch, config.patch),
        num_attention_heads=config.heads,
        attention_head_dim=config.head_width,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        text_dim=config.text_width,
        freq_dim=config.frequency_width,
        ffn_dim=config.ffn_width,
        num_layers=config.layers,
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
