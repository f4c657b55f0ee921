"""Wan2.1's own release: its codec and text encoder under the names of diffusers and transformers.

The transformer is read as it lies there (`vmla.weights.source`); the rest are two pickles and a tokenizer.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.documents.json_file import read_json
from plugins.errors import UserError, missing_extra
from vmla.text.byte_tokenizer import ByteTokenizer
from vmla.text.umt5 import UMT5Config, UMT5Encoder
from vmla.weights.formats.files import Shape, check_shapes, write_json
from vmla.weights.formats.pickles import open_pickle
from vmla.weights.published.copying import link, write_shards

VAE, TEXT, TOKENIZER = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl"
VAE_OF_22 = "Wan2.2_VAE.pth"
CHANNELS = 16
VOCABULARIES = ("tokenizer.json", "spiece.model")
"""Files of a tokenizer of transformers, one of which is enough."""
TEXT_OUTER = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
TEXT_INNER = {
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
    "norm2": "layer.1.layer_norm",
}
"""Modules of the text encoder and of one of its blocks, in Wan's release and in transformers."""


def is_release(folder: Path) -> bool:
    """Whether `folder` has the layout of Wan's own release."""
    return any((folder / name).exists() for name in (VAE, VAE_OF_22, TEXT))


def check_release(folder: Path, channels: int) -> None:
    """Refuse a release that cannot complete a transformer whose latents have `channels`.

    Raises:
        UserError: naming the part that is missing or damaged, and for the codec of Wan2.2, whose names
            diffusers does not turn.
    """
    if (folder / VAE_OF_22).exists():
        raise UserError(f"{folder} is Wan2.2's own release; give the folder of the same name with -Diffusers")
    for name in (VAE, TEXT, TOKENIZER):
        if not (folder / name).exists():
            raise UserError(f"{folder} lacks {name}; give the whole folder of Wan's release, or -Diffusers")
    if channels != CHANNELS:
        raise UserError(f"the codec in {folder} has {CHANNELS} latent channels, the transformer {channels}")
    for name in (VAE, TEXT):
        open_pickle(folder / name)  # raises for a file that is cut short
    check_tokenizer(folder / TOKENIZER)


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder that holds no whole tokenizer, without reading its vocabulary.

    Raises:
        UserError: naming the file that is missing.
    """
    settings = folder / "tokenizer_config.json"
    own = read_json(settings).get("tokenizer_class") == ByteTokenizer.kind
    if not own and not any((folder / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{folder} lacks {VOCABULARIES[0]}; copy the whole folder")


def carry_over_release(release: Path, folder: Path) -> None:
    """Write codec, text encoder and tokenizer of `release` as parts of a checkpoint.

    Raises:
        UserError: if a file is damaged, or holds another model.
    """
    _write_codec(release / VAE, folder / "vae")
    _write_text(release / TEXT, folder / "text_encoder")
    shutil.copytree(release / TOKENIZER, folder / "tokenizer", copy_function=link)


def _write_codec(path: Path, folder: Path) -> None:
    try:
        from diffusers import AutoencoderKLWan
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
    except ImportError as error:
        raise missing_extra("diffusers", "wan") from error
    tensors = open_pickle(path)
    first = tensors.get("decoder.head.2.weight")
    if first is None:
        raise UserError(f"{path} is not a codec of Wan2.1; copy it again")
    # All else, statistics of the latents among it, is as in diffusers' defaults, which are Wan2.1's.
    with torch.device("meta"):
        vae = AutoencoderKLWan(base_dim=first.shape[1])
    named: dict[str, Tensor] = convert_wan_vae_to_diffusers(dict(tensors))
    expected = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    check_shapes(expected, _shapes(named), path, "AutoencoderKLWan")
    folder.mkdir()
    write_shards(named, folder, "diffusion_pytorch_model.safetensors")
    write_json(folder / "config.json", {**_plain(vae.config), "_class_name": "AutoencoderKLWan"})


def _write_text(path: Path, folder: Path) -> None:
    named = {_text_name(name): tensor for name, tensor in open_pickle(path).items()}
    config = UMT5Config(**_text_sizes(_shapes(named), path))
    with torch.device("meta"):
        model = UMT5Encoder(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected.pop("encoder.embed_tokens.weight", None)  # another name of shared.weight
    check_shapes(expected, _shapes(named), path, "UMT5")
    folder.mkdir()
    write_shards(named, folder, "model.safetensors")
    write_json(folder / "config.json", config.to_dict())


def _text_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    within = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
    if within is None:
        return f"{TEXT_OUTER.get(module, module)}.{leaf}"
    return f"encoder.block.{within[1]}.{TEXT_INNER.get(within[2], within[2])}.{leaf}"


def _text_sizes(shapes: Mapping[str, Shape], path: Path) -> dict[str, int]:
    """Settings of a UMT5 encoder, from the shapes of its tensors."""
    block = "encoder.block.0."
    try:
        vocabulary, width = shapes["shared.weight"]
        buckets, heads = shapes[block + TEXT_INNER["pos_embedding.embedding"] + ".weight"]
        inner = shapes[block + TEXT_INNER["attn.q"] + ".weight"][0]
        ffn = shapes[block + TEXT_INNER["ffn.fc1"] + ".weight"][0]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not a text encoder of Wan's release; copy it again") from error
    layers = len({name.split(".")[2] for name in shapes if name.startswith("encoder.block.")})
    return {
        "vocab_size": vocabulary, "d_model": width, "d_kv": inner // heads, "num_heads": heads, "d_ff": ffn,
        "num_layers": layers, "relative_attention_num_buckets": buckets,
    }  # fmt: skip


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}
