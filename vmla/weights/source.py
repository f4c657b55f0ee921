"""A Wan or VideoMLA transformer in whatever form it was published, under our names, tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.documents.json_file import read_json
from plugins.errors import UserError
from vmla.config import MODEL_CONFIGS, Layout, ModelConfig
from vmla.transformer import VideoMLA
from vmla.weights.formats.files import Shape, check_shapes, load_exactly, refuse_not_finite
from vmla.weights.formats.lazy_tensors import LazyTensors, shape_of
from vmla.weights.formats.locate_files import weights_in
from vmla.weights.formats.open_file import OpenFile, open_file, refuse_lora
from vmla.weights.formats.prefixes import ANCHORS, names_of
from vmla.weights.formats.scaled import ScaledTensors
from vmla.weights.inspection.mapped_tensors import MappedTensors
from vmla.weights.inspection.mapping import LatentMap
from vmla.weights.key_mapping import LATENT, read_mapping, to_diffusers, to_wan
from vmla.weights.lora import Lora, open_lora
from vmla.weights.published.families import (
    refuse_pictures_beside,
    refuse_relatives,
    refuse_two_experts,
    with_own_picture,
)
from vmla.weights.uninitialised import WithoutStorage

OURS = "VideoMLA"
"""`_class_name` in the configuration of a transformer of ours."""
WAN_HEAD = 128
"""Width of a head in every Wan model."""
BLOCK = re.compile(r"blocks\.(\d{1,9})\.")


@dataclass(frozen=True)
class Source:
    """Tensors under our names, read when asked for."""

    path: Path
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    """Names of the tensors in `tensors`, by our names."""
    config: ModelConfig
    beside: tuple[str, ...] = ()
    """Names in the file that are clearly not the transformer's."""
    lora: Lora | None = None
    """A LoRA whose changes are added to weights when they are read."""

    def tensor(self, name: str) -> Tensor:
        """One tensor in float32, in our shape.

        Raises:
            UserError: if it holds codes in place of numbers, or is not finite.
        """
        tensor = self.tensors[self.names[name]]
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{self.path}: {self.names[name]} holds codes ({kind}); give weights in 16 bits")
        tensor = tensor.to(torch.float32)
        refuse_not_finite(self.names[name], tensor, self.path)
        # A patch embedding is a convolution in a Wan file.
        tensor = tensor.flatten(1) if name == "patch_embedding.weight" else tensor
        return tensor if self.lora is None else self.lora(name, tensor)

    def with_lora(self, path: Path, strength: float = 1.0) -> Source:
        """This source with the changes of a LoRA file applied.

        Raises:
            UserError: if it is for another model.
        """
        shapes = shapes_of(self.config)
        weights = [name for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2]
        return replace(self, lora=open_lora(path, weights, strength))

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {
            name.removeprefix(prefix): self.tensor(name) for name in self.names if name.startswith(prefix)
        }

    def outer(self) -> dict[str, Tensor]:
        """The tensors that belong to no block."""
        return {name: self.tensor(name) for name in self.names if not name.startswith("blocks.")}

    def model(self) -> VideoMLA:
        """The whole transformer in float32, ready to run."""
        with WithoutStorage():
            model = VideoMLA(self.config)
        load_exactly(model, {name: self.tensor(name) for name in self.names}, self.path)
        return model.eval().requires_grad_(False)


def open_source(
    path: Path,
    *,
    like: ModelConfig = MODEL_CONFIGS["wan-1.3b"],
    part: str | None = None,
    mapping: Path | None = None,
    variant: str | None = None,
    cuts: LatentMap | None = None,
) -> Source:
    """Open a transformer's weights.

    Args:
        path: a checkpoint of ours, a diffusers pipeline or `WanTransformer3DModel` folder, a folder of
            Wan's release, or a file: safetensors, or one of `torch.save`.
        like: gives the sizes that weights do not tell: picture, text tokens, chunk and window.
        part: of a training checkpoint, one of `vmla.weights.formats.pickles.PARTS`.
        mapping: a JSON file that names the latent projections of a VideoMLA file.
        variant: of a folder's weights, `fp16` say.
        cuts: how the latent attention of a VideoMLA file of another convention becomes ours.

    Raises:
        UserError: for a file of another model, or tensors that do not fit; at most ten are listed.
    """
    refuse_two_experts(path)
    weights, opened, values = _open(path, part, variant)
    if values.get("_class_name") == OURS:
        return _open_ours(weights, opened.tensors, values)
    refuse_lora(opened.tensors, weights)
    found = names_of(opened.tensors, weights, part)
    refuse_relatives(found.own, weights)
    tensors: Mapping[str, Tensor] = ScaledTensors(opened.tensors, found.own)
    if cuts is None:
        translate = _naming(tensors, weights, LATENT if mapping is None else read_mapping(mapping))
        if mapping is not None and translate.layout == "mha":
            raise UserError(f"{weights} has no latent projections that {mapping} could name; leave it out")
    else:
        translate = _Naming("mla", ANCHORS[0] in tensors, LATENT)
        tensors = MappedTensors(tensors, cuts, translate, weights)
        values = {**values, "num_attention_heads": cuts.heads}
    shapes = {name: shape_of(tensors, name) for name in tensors}
    config = _sizes(shapes, values, like, translate, weights)
    expected = _file_shapes(config)
    check_shapes({translate(name): shape for name, shape in expected.items()}, shapes, weights, "model")
    names = {name: translate(name) for name in expected}
    return Source(weights, tensors, names, config, (*found.beside, *opened.beside))


def is_ours(path: Path) -> bool:
    """Whether `path` holds a transformer whose sizes and names are known, as our checkpoints do."""
    beside = _config_of(path)
    return beside.is_file() and read_json(beside).get("_class_name") == OURS


def _config_of(path: Path) -> Path:
    """Where the configuration of the weights at `path` would be."""
    if path.is_file():
        return path.with_name("config.json")
    return (path / "transformer" if (path / "transformer").is_dir() else path) / "config.json"


def _open(path: Path, part: str | None, variant: str | None) -> tuple[Path, OpenFile, dict[str, Any]]:
    """The weights file (or its index), its tensors, and the values of the configuration beside it."""
    beside = _config_of(path)
    if path.is_file():
        if variant is not None:
            raise UserError(f"{path} is one file, and variant {variant} would be of a folder's; leave it out")
        weights, opened = path, open_file(path, part)
    else:
        if not beside.is_file():
            raise UserError(f"{path} has no transformer: neither transformer/config.json nor config.json")
        found = weights_in(beside.parent, variant)
        shards = found.files if found.path.suffix == ".json" else ()
        weights, opened = found.path, open_file(found.path, part, shards)
    if part is not None and not _has_part(opened, part):
        raise UserError(f"{weights} has no part {part}; leave it out")
    return weights, opened, read_json(beside) if beside.exists() else {}


def _has_part(opened: OpenFile, part: str) -> bool:
    """Whether names in a safetensors file hold `part`; a pickle was opened at it."""
    names = opened.tensors
    return not isinstance(names, LazyTensors) or any(part in name.split(".") for name in names)


def _open_ours(weights: Path, tensors: Mapping[str, Tensor], values: dict[str, Any]) -> Source:
    config = ModelConfig.from_dict({key: value for key, value in values.items() if key != "_class_name"})
    expected = shapes_of(config)
    check_shapes(expected, {name: shape_of(tensors, name) for name in tensors}, weights)
    return Source(weights, tensors, {name: name for name in expected}, config)


class _Naming:
    """Our names in a file's convention."""

    def __init__(self, layout: Layout, wan: bool, latent: Mapping[str, str]) -> None:
        self.layout, self._wan, self._latent = layout, wan, latent

    def __call__(self, name: str) -> str:
        """The file's name of the tensor that we call `name`."""
        latent = self._latent if self.layout == "mla" else None
        return to_wan(name, latent) if self._wan else to_diffusers(name)


def _naming(names: Collection[str], path: Path, latent: Mapping[str, str]) -> _Naming:
    """Wan's own convention or diffusers', with latent attention or without."""
    if "condition_embedder.time_proj.weight" in names:
        return _Naming("mha", False, latent)
    if "time_projection.1.weight" in names:
        mla = f"blocks.0.self_attn.{latent['down_kv']}.weight" in names
        if not mla and "blocks.0.self_attn.q.weight" not in names:
            raise UserError(
                f"{path} has attention of its own names; vmla-train inspect {path} -o map.yaml proposes a "
                f"mapping for --map"
            )
        return _Naming("mla" if mla else "mha", True, latent)
    held = f"its first tensor is {next(iter(names))}" if names else "it has no tensors"
    raise UserError(f"{path} holds no Wan transformer ({held}); give a Wan2.1 model")


def _sizes(
    shapes: Mapping[str, Shape], values: Mapping[str, Any], like: ModelConfig, translate: _Naming, path: Path
) -> ModelConfig:
    """Sizes read off the tensors' shapes; the others, from its config.json or from `like`."""

    def shape(name: str, dimensions: int = 2) -> Shape:
        found = shapes.get(translate(name))
        if found is None:
            raise UserError(f"{path} lacks the tensor {translate(name)}: no size can be read off it")
        if len(found) != dimensions or 0 in found:
            wrong = f"tensor {translate(name)} has shape {list(found)}, which no Wan model has"
            raise UserError(f"{path}: {wrong}")
        return found

    patch, down = shape("patch_embedding.weight", 5), "blocks.0.attn1.{}.weight"
    if patch[2] != 1 or patch[3] != patch[4]:
        raise UserError(f"{path} embeds patches of shape {list(patch[2:])}; Wan's are flat and square")
    refuse_pictures_beside(patch, shape("proj_out.weight"), path)
    like = with_own_picture(like, patch[1])
    heads = _heads(patch[0], values, like, path)
    latent: dict[str, Any] = {} if translate.layout == "mha" else {
        "kv_lora_rank": shape(down.format("down_kv"))[0],
        "qk_rope_head_dim": shape(down.format("rotary_k"))[0],
        "q_lora_rank": shape(down.format("down_q"))[0],
    }  # fmt: skip
    sizes: dict[str, Any] = {
        "layout": translate.layout,
        "num_attention_heads": heads,
        "attention_head_dim": patch[0] // heads,
        "ffn_dim": shape("blocks.0.ffn.up.weight")[0],
        "num_layers": 1 + max(int(found[1]) for name in shapes if (found := BLOCK.match(name))),
        "in_channels": patch[1],
        "patch_size": patch[3],
        "freq_dim": shape("condition_embedder.time_embedder.linear_1.weight")[1],
        "text_dim": shape("condition_embedder.text_embedder.linear_1.weight")[1],
        "eps": values.get("eps", like.eps),
        "position_table": translate("position_embedding") in shapes,
    }
    try:
        return replace(like, **sizes, **latent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _heads(width: int, values: Mapping[str, Any], like: ModelConfig, path: Path) -> int:
    """The number of heads: of `config.json`, or `like` if as wide, or as many as are as wide as Wan's."""
    given = values.get("num_attention_heads", values.get("num_heads"))
    heads = given or (like.num_attention_heads if width == like.inner_dim else width // WAN_HEAD)
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(
            f"{path}: width {width} is not a whole number of heads of {WAN_HEAD}; give config.json beside it"
        )
    return heads


def shapes_of(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor of a model and its shape; nothing is allocated."""
    with torch.device("meta"):
        model = VideoMLA(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _file_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shapes of a Wan file's tensors: those of `shapes_of`, but the patch embedding is a convolution."""
    convolution = (config.inner_dim, config.in_channels, 1, config.patch_size, config.patch_size)
    return {**shapes_of(config), "patch_embedding.weight": convolution}


def published(model: VideoMLA, *, wan: bool, latent: Mapping[str, str] = LATENT) -> dict[str, Tensor]:
    """The weights of `model` under Wan's own names, or diffusers', as `open_source` reads them back.

    Raises:
        UserError: for latent attention under diffusers' names, which has none.
    """
    config = model.config
    if config.layout == "mla" and not wan:
        raise UserError("diffusers' Wan transformer has no latent attention; use Wan's own names")
    return dict(_published(model, _Naming(config.layout, wan, latent)))


def _published(model: VideoMLA, translate: _Naming) -> Iterator[tuple[str, Tensor]]:
    shapes = _file_shapes(model.config)
    for name, tensor in model.state_dict().items():
        yield translate(name), tensor.reshape(shapes[name])
