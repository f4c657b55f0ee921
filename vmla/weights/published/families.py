"""Relatives of Wan's text-to-video model: refused by their names, with what to use instead.

Wan2.2's TI2V-5B is none of them: its transformer and its codec are of diffusers' classes, with 48 latent
channels of 16 x 16 pixels, and its pictures are of their own size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from plugins.documents.json_file import read_json
from plugins.errors import UserError
from vmla.config import ModelConfig
from vmla.weights.formats.files import INDEX, Shape
from vmla.weights.formats.open_file import PICKLES, SAFETENSORS

INSTEAD = "use a text-to-video model: Wan2.1-T2V-1.3B, Wan2.1-T2V-14B or Wan2.2-TI2V-5B"
EXPERTS = {"transformer_2", "high_noise_model", "low_noise_model"}
"""Folders of a model of two experts, in diffusers' layout and in Wan's own."""
HALVES = ("high_noise", "low_noise")
"""Parts of the names of one expert's files; its tensors alone look like those of Wan2.1's 14B."""
RELATIVES = {
    "image-to-video": ("img_emb.", "condition_embedder.image_embedder.", "k_img.", "add_k_proj."),
    "VACE": ("vace_",),
}
"""Relatives, each with parts of tensor names that only it has."""

PIPELINES = ("ImageToVideo", "VACE", "Animate")
"""Parts of the class names of such relatives' pipelines in diffusers."""
PICTURES = ("image_encoder/", "models_clip_")
"""First parts of file names that only image-to-video models have, in diffusers' layout and in Wan's own."""

TI2V_CELLS = (44, 80)
"""A latent frame of TI2V-5B, in cells of 16 x 16 pixels: 704 x 1280 (LongLive 2, main at 7860ad9:
`image_or_video_shape` in configs/inference.yaml, `vae_stride` in wan_5b/configs/wan_ti2v_5B.py)."""
TI2V_CHANNELS = 48
WAN_CELLS = (60, 104)
"""A latent frame of Wan2.1 at 480 x 832."""


def refuse_two_experts(path: Path) -> None:
    """Refuse Wan2.2's A14B, whole or one half of it.

    Raises:
        UserError: if `path` is one, naming the evidence.
    """
    sign = next((name for name in sorted(EXPERTS) if (path / name).is_dir()), None)
    index = path / INDEX
    if sign is None and index.is_file():
        refuse_pipeline(read_json(index), str(path))
    named = path.name if path.is_dir() else f"{path.parent.name}/{path.name}"
    if sign is None:
        sign = next((half for half in HALVES if half in named), None)
    if sign is not None:
        raise _two_experts(str(path), sign)


def _two_experts(name: str, sign: str) -> UserError:
    return UserError(
        f"{name} is of Wan2.2's two-expert model ({sign}), whose experts share the noise levels; "
        f"one transformer is run here; {INSTEAD}"
    )


def refuse_pipeline(values: Mapping[str, Any], name: str) -> None:
    """Refuse a pipeline by its index: two experts, or one that takes pictures.

    Raises:
        UserError: naming the entry.
    """
    for key in ("boundary_ratio", "transformer_2"):
        if _set(values, key):
            raise _two_experts(name, key)
    kind = str(values.get("_class_name"))
    if any(sign in kind for sign in PIPELINES):
        raise UserError(f"{name} is of another family ({kind}); {INSTEAD}")


def refuse_repository(files: Collection[str], name: str) -> None:
    """Refuse a repository of the hub by the names of its files, before any of them is downloaded.

    Raises:
        UserError: for two experts, for models that are given pictures, and for one that has files of weights
            but no model's folder: naming one of them.
    """
    folders = {file.partition("/")[0] for file in files if "/" in file}
    if experts := sorted(folders & EXPERTS):
        raise _two_experts(name, experts[0])
    if pictures := sorted(file for file in files if file.startswith(PICTURES)):
        raise UserError(f"{name} is of another family, image-to-video (it has {pictures[0]}); {INSTEAD}")
    if not {"transformer/config.json", "config.json", INDEX} & set(files):
        weights = sorted(file for file in files if file.endswith((SAFETENSORS, *PICKLES)))
        told = f"name a file of it: {name}:{weights[0]}" if weights else "it has no file of weights either"
        raise UserError(f"{name} is not the folder of a model; {told}")


def _set(values: Mapping[str, Any], key: str) -> bool:
    """Whether a pipeline names it; diffusers writes [null, null] for a part that is not there."""
    value = values.get(key)
    return value not in (None, [None, None])


def refuse_relatives(names: Iterable[str], path: Path) -> None:
    """Refuse models that have tensors of their own.

    Raises:
        UserError: naming such a tensor.
    """
    for name in names:
        for kind, signs in RELATIVES.items():
            if any(sign in name for sign in signs):
                raise UserError(f"{path} is of another family, {kind} (it has {name}); {INSTEAD}")


def refuse_pictures_beside(patch: Shape, head: Shape, path: Path) -> None:
    """Refuse models whose latents come in with pictures or controls beside them.

    Args:
        patch: shape of the patch embedding's weight [D, channels in, 1, p, p].
        head: shape of the head's weight [p * p * channels out, D].
        path: of the file.

    Raises:
        UserError: if more channels come in than go out.
    """
    taken, given = patch[1], head[0] // (patch[3] * patch[4])
    if taken != given:
        kind = "image-to-video (I2V)" if taken == 36 else "conditioned on more than text"
        raise UserError(
            f"{path} is {kind}: it takes {taken} channels for a latent of {given}, "
            f"the rest are pictures; {INSTEAD}"
        )


def with_own_picture(like: ModelConfig, channels: int) -> ModelConfig:
    """`like`, with TI2V-5B's picture in place of Wan2.1's where latents have its `channels`."""
    if channels != TI2V_CHANNELS or (like.sample_height, like.sample_width) != WAN_CELLS:
        return like
    return replace(like, sample_height=TI2V_CELLS[0], sample_width=TI2V_CELLS[1])
