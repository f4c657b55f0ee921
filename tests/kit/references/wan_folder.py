"""A whole Wan pipeline folder of diffusers' and transformers' own classes, small, and files made of it."""

import json
from dataclasses import replace

import torch
from kit.references.wan import wan_transformer
from kit.tiny.models import randomise

from vmla.config import named_config
from vmla.transformer import VideoMLA
from vmla.weights.source import published

WORDS = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁star", "▁", "s", "t"]


def small_wan(**changes):
    """Sizes of the `debug` model with Wan's attention and its 512 text tokens."""
    return replace(named_config("debug", layout="mha"), text_tokens=512, **changes)


def wan_folder(folder, *, variant=None, safe=True, transformer=True, config=None, residual=False):
    """Write the folder; with `residual` its codec is of Wan2.2's TI2V kind, with cells of 16 x 16 pixels."""
    from diffusers import UniPCMultistepScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    config = config or small_wan()
    how = {"variant": variant, "safe_serialization": safe}
    if transformer:
        randomise(wan_transformer(config)).save_pretrained(folder / "transformer", **how)
    small_vae(config.in_channels, residual).save_pretrained(folder / "vae", **how)
    sizes = {"vocab_size": len(WORDS), "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 2}
    text = randomise(UMT5EncoderModel(UMT5Config(d_model=config.text_dim, **sizes)))
    text.save_pretrained(folder / "text_encoder", variant=variant)
    small_tokenizer().save_pretrained(folder / "tokenizer")
    UniPCMultistepScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    return folder


def small_vae(channels, residual=False):
    """diffusers' `AutoencoderKLWan`."""
    from diffusers import AutoencoderKLWan

    kind = {"is_residual": True, "patch_size": 2, "decoder_base_dim": 8, "in_channels": 12,
            "out_channels": 12, "scale_factor_spatial": 16} if residual else {}  # fmt: skip
    statistics = {"latents_mean": [0.1] * channels, "latents_std": [1.5] * channels}
    sizes = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_dim": channels}
    return randomise(AutoencoderKLWan(**sizes, **statistics, **kind))


def small_tokenizer():
    """A T5 tokenizer of nine pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5TokenizerFast

    inner = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(WORDS)], unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=inner, extra_ids=0)


def small_denoiser(seed=0, **changes):
    """A random model of `small_wan`."""
    return randomise(VideoMLA(small_wan(**changes)), seed)


def distilled(path, model, *, part="generator_ema", wrap="model.{}", **beside):
    """A `.pt` of the Self-Forcing family."""
    held = {wrap.format(name): tensor for name, tensor in published(model, wan=True).items()}
    torch.save({part: held, **beside}, path)
    return path


def release_folder(folder, seed=0):
    """Wan2.1's own release without its transformer, small; gives the codec and the text encoder in it."""
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    vae = randomise(AutoencoderKLWan(base_dim=8), seed)
    folder.mkdir()
    state = vae.state_dict()
    torch.save(
        {theirs: state[ours] for ours, theirs in codec_names(state).items()}, folder / "Wan2.1_VAE.pth"
    )
    sizes = {"vocab_size": len(WORDS), "d_kv": 8, "num_heads": 2, "d_ff": 16, "num_layers": 2}
    text = randomise(UMT5EncoderModel(UMT5Config(d_model=small_wan().text_dim, **sizes)), seed)
    held = {
        text_name(name): tensor for name, tensor in text.state_dict().items() if "embed_tokens" not in name
    }
    torch.save(held, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    small_tokenizer().save_pretrained(folder / "google" / "umt5-xxl")
    return vae, text.eval()


def codec_names(wanted):
    """Names of diffusers' codec, each with that of Wan's release that diffusers' own table turns into it."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    ends = [f"residual.{n}" for n in ("0.gamma", "2.weight", "2.bias", "3.gamma", "6.weight", "6.bias")]
    ends += [f"{n}.{leaf}" for n in ("shortcut", "resample.1", "time_conv") for leaf in ("weight", "bias")]
    rows = [f"{half}.{n}.{end}" for half in ("encoder.downsamples", "decoder.upsamples")
            for n in range(15) for end in ends]  # fmt: skip
    for half in ("encoder", "decoder"):
        rows += [f"{half}.middle.{n}.{end}" for n in (0, 2) for end in ends]
        rows += [f"{half}.middle.1.{end}" for end in ("norm.gamma", "to_qkv.weight", "to_qkv.bias",
                                                      "proj.weight", "proj.bias")]  # fmt: skip
        rows += [f"{half}.{end}" for end in ("head.0.gamma", "head.2.weight", "head.2.bias",
                                             "conv1.weight", "conv1.bias")]  # fmt: skip
    rows += ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"]
    found = {ours: row for row in rows for ours in convert_wan_vae_to_diffusers({row: row})}
    return {name: found[name] for name in wanted}


def text_name(name):
    """A name of transformers' UMT5 as Wan's release writes it, spelt out from its code."""
    for theirs, wan in (
        ("encoder.final_layer_norm", "norm"), ("encoder.block.", "blocks."), ("shared", "token_embedding"),
        ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
        ("layer.0.SelfAttention", "attn"), ("layer.0.layer_norm", "norm1"), ("layer.1.layer_norm", "norm2"),
        ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"), ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
        ("layer.1.DenseReluDense.wo", "ffn.fc2"),
    ):  # fmt: skip
        name = name.replace(theirs, wan)
    return name
