"""What surrounds a transformer in a pipeline folder: codec, text encoder and tokenizer, carried over.

Weights come under the plain names by which a checkpoint is loaded, whatever they are called there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from plugins.errors import UserError
from vmla.weights.files import read_json, write_json, write_tensors
from vmla.weights.formats.locate_files import KINDS, WeightFiles, weights_in
from vmla.weights.formats.open_file import open_file

PARTS = ("vae", "text_encoder", "tokenizer")
STEMS = {"vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Of the weights of each, as diffusers and transformers name them."""
RELEASE = ("models_t5_*.pth", "Wan2.*_VAE.pth")
"""Files of Wan's own release, whose codec and text encoder are of its own code."""
SHARD = 2**30
"""Bytes of a file that is written anew, about."""


def check_pipeline(folder: Path, channels: int) -> None:
    """Refuse a folder that cannot complete a transformer whose latents have `channels`.

    Raises:
        UserError: naming the part that is missing or does not fit.
    """
    if any(any(folder.glob(name)) for name in RELEASE):
        raise UserError(f"{folder} is Wan's own release; give the folder of the same name with -Diffusers")
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"{folder} has no {part}; give a whole pipeline folder, as diffusers saves it")
    values = read_json(folder / "vae" / "config.json")
    has = values.get("z_dim", values.get("latent_channels"))
    if has not in (None, channels):
        raise UserError(f"the codec in {folder} has {has} latent channels, the transformer {channels}")


def carry_over(pipeline: Path, folder: Path) -> None:
    """Put the parts that `pipeline` has into `folder`, by second names where the disk allows.

    Raises:
        UserError: if weights are missing or damaged.
    """
    for part in PARTS:
        if not (pipeline / part).is_dir():
            continue
        if part not in STEMS:
            shutil.copytree(pipeline / part, folder / part, copy_function=_link)
            continue
        (folder / part).mkdir()
        for path in (pipeline / part).glob("*.json"):
            if ".index." not in path.name:
                _link(path, folder / part / path.name)
        _carry_weights(weights_in(pipeline / part), folder / part, STEMS[part] + KINDS[0])


def _carry_weights(found: WeightFiles, folder: Path, name: str) -> None:
    if found.kind == KINDS[0] and found.path.suffix != ".json":
        _link(found.path, folder / name)
    elif found.kind == KINDS[0]:
        for shard in found.files:
            if not shard.is_file():
                raise UserError(f"{shard} is missing; copy the whole checkpoint folder")
            _link(shard, folder / shard.name)
        write_json(folder / f"{name}.index.json", read_json(found.path))
    else:
        files = found.files if found.path.suffix == ".json" else ()
        _write_anew(open_file(found.path, files=files).tensors, folder, name)


def _write_anew(tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
    """Pickled tensors as safetensors, about `SHARD` bytes at a time."""
    weight_map: dict[str, str] = {}
    stem, end = name.split(".")
    for number, group in enumerate(_groups(tensors)):
        shard = f"{stem}-{number:05d}.{end}"
        write_tensors(folder / shard, group, {"format": "pt"})
        weight_map |= dict.fromkeys(group, shard)
    write_json(folder / f"{name}.index.json", {"metadata": {}, "weight_map": weight_map})


def _groups(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Tensors of one file each; one that has two names keeps the first."""
    group: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.numel())
        if place in seen:
            continue
        seen.add(place)
        group[name] = tensor
        if sum(held.nbytes for held in group.values()) >= SHARD:
            yield group
            group = {}
    if group:
        yield group


def _link(source: str | Path, target: str | Path) -> None:
    """A second name for the same file; a copy where the disk has none."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copy2(source, target)
