"""A whole Wan pipeline folder of diffusers' and transformers' own classes, small, and files made of it."""

import json
from dataclasses import replace

import torch
from kit.models import randomise
from kit.wan import wan_transformer

from vmla.config import recipe
from vmla.transformer import VideoMLA
from vmla.weights.source import published

WORDS = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁star", "▁", "s", "t"]


def small_wan(**changes):
    """Sizes of the `debug` model with Wan's attention and its 512 text tokens."""
    return replace(recipe("debug", layout="mha"), text_tokens=512, **changes)


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
