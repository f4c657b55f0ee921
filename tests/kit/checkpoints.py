"""A tiny checkpoint with weights drawn at random, for everything that needs some model and no good one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kit.models import randomise

from vmla.config import Layout, model_preset
from vmla.scheduler import Sampler
from vmla.text import SmallTextConfig, TextEncoder
from vmla.transformer import VideoMLA
from vmla.vae.tiny import TinyCodec, TinyCodecConfig
from vmla.weights.checkpoint import save_checkpoint


def debug_checkpoint(folder: Path, *, layout: Layout = "mla", seed: int = 0, **sizes: Any) -> Path:
    """Write the `debug` model to `folder`; every weight counts, gates and head included."""
    torch.manual_seed(seed)
    config = replace(model_preset("debug", layout=layout), **sizes)
    text, tokenizer = SmallTextConfig(width=32, head_width=16, heads=2, ffn_width=32, layers=1).build()
    model = randomise(VideoMLA(config), seed)
    codec = TinyCodec(
        TinyCodecConfig(latent_channels=config.in_channels, widths=(8, 8, 8), decoder_blocks=(1, 1, 1))
    )
    save_checkpoint(
        folder,
        transformer=model,
        codec=codec,
        text=TextEncoder(text, tokenizer, tokens=config.text_tokens),
        sampler=Sampler(kind="euler", steps=2, shift=2.0),
    )
    return folder
