"""What surrounds a transformer in a pipeline folder: codec, text encoder and tokenizer, carried over.

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
from vmla.weights.published.copying import link, write_anew
from vmla.weights.published.wan_release import carry_over_release, check_release, is_release

PARTS = ("vae", "text_encoder", "tokenizer")
STEMS = {"vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Of the weights of each, as diffusers and transformers name them."""


def check_pipeline(folder: Path, config: ModelConfig) -> None:
    """Refuse a folder that cannot complete a transformer of the sizes of `config`.

    Raises:
        UserError: naming the part that is missing or does not fit.
    """
    if is_release(folder):
        check_release(folder, config.in_channels)
        return
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"{folder} has no {part}; give a whole pipeline folder, as diffusers saves it")
    codec, text = (read_json(folder / part / "config.json") for part in ("vae", "text_encoder"))
    channels = codec.get("z_dim", codec.get("latent_channels"))
    if channels not in (None, config.in_channels):
        raise UserError(
            f"the codec in {folder} has {channels} latent channels, the transformer {config.in_channels}"
        )
    if (width := text.get("d_model")) not in (None, config.text_dim):
        raise UserError(
            f"the text encoder in {folder} is {width} wide, the transformer reads {config.text_dim}"
        )


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
        write_anew(open_file(found.path, files=files).tensors, folder, name)
