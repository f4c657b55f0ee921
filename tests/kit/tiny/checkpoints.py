"""A tiny checkpoint with weights drawn at random, for everything that needs some model and no good one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kit.tiny.models import randomise
from safetensors.torch import load_file, save_file

from vmla.config import Layout, named_config
from vmla.scheduler import Sampler
from vmla.text import SmallTextConfig, TextEncoder
from vmla.transformer import VideoMLA
from vmla.vae.tiny import TinyCodec, TinyCodecConfig
from vmla.weights.checkpoint import SHIPPED, WEIGHTS, save_checkpoint, shipped_folder
from vmla.weights.formats.files import INDEX


def debug_checkpoint(
    folder: Path, *, layout: Layout = "mla", seed: int = 0, words: tuple[str, ...] = (),
    trained_on: str | None = None, **sizes: Any,
) -> Path:  # fmt: skip
    """Write the `debug` model to `folder`; every weight counts, gates and head included.

    With `words` it has a tokenizer of these, otherwise one of bytes.
    """
    torch.manual_seed(seed)
    config = replace(named_config("debug", layout=layout), **sizes)
    reader = SmallTextConfig(width=32, head_width=16, heads=2, ffn_width=32, layers=1, words=words)
    text, tokenizer = reader.build()
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
        trained_on=trained_on,
    )
    return folder


def first_layers(folder: Path, layers: int) -> Path:
    """The shipped model with its first `layers` alone, which the others are like, in the new `folder`."""
    shutil.copytree(shipped_folder() / SHIPPED, folder)
    place = folder / "transformer"
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "num_layers": layers}))
    left = tuple(f"blocks.{number}." for number in range(layers, config["num_layers"]))
    weights = load_file(place / WEIGHTS)
    save_file({name: each for name, each in weights.items() if not name.startswith(left)}, place / WEIGHTS)
    return folder


def as_trained_on(world: str, checkpoint: Path, folder: Path) -> Path:
    """In the new `folder`, the parts of `checkpoint` with an index that says it was trained on `world`."""
    folder.mkdir()
    for part in checkpoint.iterdir():
        if part.name != INDEX:
            (folder / part.name).symlink_to(part)
    index = json.loads((checkpoint / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "trained_on": world}))
    return folder
