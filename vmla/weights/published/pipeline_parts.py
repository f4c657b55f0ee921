"""Carries a pipeline's codec, text encoder and tokenizer over into a checkpoint.

Weights come under the plain names by which a checkpoint is loaded, whatever they are called there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from plugins.documents.json_file import read_json
from plugins.errors import UserError
from vmla.config import ModelConfig
from vmla.weights.formats.files import write_json
from vmla.weights.formats.locate_files import KINDS, WeightFiles, weights_in
from vmla.weights.formats.open_file import open_file
from vmla.weights.published.copying import link, write_shards
from vmla.weights.published.wan_release import (
    carry_over_release,
    check_release,
    check_tokenizer,
    is_release,
)

PARTS = ("vae", "text_encoder", "tokenizer")
STEMS = {"vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Stem of each part's weight files, as diffusers and transformers name them."""


def missing_parts(folder: Path) -> tuple[str, ...]:
    """The parts of a pipeline that `folder` does not have."""
    return () if is_release(folder) else tuple(part for part in PARTS if not (folder / part).is_dir())


def check_pipeline(folder: Path, config: ModelConfig) -> None:
    """Refuse a folder that cannot complete a transformer of the sizes of `config`.

    Raises:
        UserError: naming the part that is missing, only half there, or does not fit.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; give a whole pipeline folder, as diffusers saves it")
    if missing := missing_parts(folder):
        raise UserError(f"{folder} has no {missing[0]}; give a whole pipeline folder, as diffusers saves it")
    check_parts(folder, config)


def check_parts(folder: Path, config: ModelConfig) -> None:
    """Refuse parts of a pipeline that are only half there, or do not fit a transformer of these sizes.

    Headers of weights are read and no tensor, so that a download that was broken off is found before hours
    of conversion. Parts that `folder` lacks altogether are not required.

    Raises:
        UserError: naming the file, or both sizes.
    """
    if is_release(folder):
        check_release(folder, config.in_channels)
        return
    there = set(PARTS) - set(missing_parts(folder))
    for part in sorted(there & STEMS.keys()):
        _check_whole(weights_in(folder / part))
    if "tokenizer" in there:
        check_tokenizer(folder / "tokenizer")
    if "vae" in there:
        codec = read_json(folder / "vae" / "config.json")
        channels = codec.get("z_dim", codec.get("latent_channels"))
        if channels not in (None, config.in_channels):
            raise UserError(
                f"the codec in {folder} has {channels} latent channels, the transformer {config.in_channels}"
            )
    if "text_encoder" in there:
        width = read_json(folder / "text_encoder" / "config.json").get("d_model")
        if width not in (None, config.text_dim):
            raise UserError(
                f"the text encoder in {folder} is {width} wide, the transformer reads {config.text_dim}"
            )


def _check_whole(found: WeightFiles) -> None:
    """Read the headers of all files of a part."""
    open_file(found.path, files=found.files if found.path.suffix == ".json" else ())


def carry_over(pipeline: Path, folder: Path) -> None:
    """Put the parts that `pipeline` has into `folder`, by second names where the disk allows.

    Raises:
        UserError: if weights are missing or damaged.
    """
    if is_release(pipeline):
        carry_over_release(pipeline, folder)
        return
    for part in PARTS:
        if not (pipeline / part).is_dir():
            continue
        if part not in STEMS:
            shutil.copytree(pipeline / part, folder / part, copy_function=link)
            continue
        (folder / part).mkdir()
        for path in (pipeline / part).glob("*.json"):
            if ".index." not in path.name:
                link(path, folder / part / path.name)
        _carry_weights(weights_in(pipeline / part), folder / part, STEMS[part] + KINDS[0])


def _carry_weights(found: WeightFiles, folder: Path, name: str) -> None:
    if found.kind == KINDS[0] and found.path.suffix != ".json":
        link(found.path, folder / name)
    elif found.kind == KINDS[0]:
        for shard in found.files:
            if not shard.is_file():
                raise UserError(f"{shard} is missing; copy the whole checkpoint folder")
            link(shard, folder / shard.name)
        write_json(folder / f"{name}.index.json", read_json(found.path))
    else:
        files = found.files if found.path.suffix == ".json" else ()
        write_shards(open_file(found.path, files=files).tensors, folder, name)
