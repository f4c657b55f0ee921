"""One loading path for every checkpoint: a folder in the layout that diffusers users know.

    model_index.json   transformer/   vae/   text_encoder/   tokenizer/   scheduler/

A published Wan2.1 folder loads its text encoder and autoencoder through the same functions.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plugins.documents.json_file import read_json
from plugins.documents.typed import typed
from plugins.errors import UserError
from vmla.cli.options.names import did_you_mean
from vmla.config import ModelConfig
from vmla.scheduler import Sampler
from vmla.text import PromptTokenizer, TextEncoder
from vmla.text.tokenizer import read_tokenizer
from vmla.text.umt5 import UMT5Config, UMT5Encoder
from vmla.transformer import VideoMLA
from vmla.vae import Codec
from vmla.vae.tiny import TinyCodec, TinyCodecConfig
from vmla.weights.formats.files import (
    INDEX,
    PIPELINE,
    count_elements,
    hash_weights,
    load_exactly,
    read_tensors,
    write_json,
    write_tensors,
)
from vmla.weights.uninitialised import WithoutStorage
from vmla.world.worlds import World, world_named

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""diffusers' file name for the weights of a transformer or an autoencoder."""
SHIPPED = "sprites"
WAN_TEXT_TOKENS = 512
PARTS_FROM = "copy the whole folder, or convert again with a Wan folder for --with"
"""The error's advice for a checkpoint without codec or text encoder."""


@dataclass(frozen=True, kw_only=True)
class AppliedPreset:
    """The fields that we read of the record written by `Preset.record`."""

    name: str
    source: str
    negative_prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Index:
    """The fields that we read of `model_index.json`."""

    trained_on: str | None = None
    """Name of the world of moving shapes that it was trained on, if it was."""
    preset: AppliedPreset | None = None
    """The preset of published weights that it was converted with."""

    def __post_init__(self) -> None:
        if self.trained_on is not None:
            world_named(self.trained_on)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose parts load when asked for."""

    folder: Path
    index: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's own name, or that of the hub's repository that it was downloaded from."""
        folder = self.folder.resolve()
        repository = folder.parents[
            1
        ].name  # a download of the hub lies in models--owner--name/snapshots/commit
        return repository.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name

    def world(self) -> World | None:
        """The world of moving shapes that it was trained on, None for a model of anything else."""
        name = self._told().trained_on
        return None if name is None else world_named(name)

    def preset(self) -> AppliedPreset | None:
        """The preset that it was converted with, None if there was none."""
        return self._told().preset

    def _told(self) -> Index:
        return typed(self.index, Index, str(self.folder / INDEX), others="ignore")

    def model_config(self) -> ModelConfig:
        """The sizes of the transformer, before any weight is read."""
        path = self.folder / "transformer" / "config.json"
        values = read_json(path)
        kind = values.pop("_class_name", None)
        if kind != "VideoMLA":
            raise UserError(
                f"{self.folder / 'transformer'} holds a {kind}, not a VideoMLA transformer; "
                f"{make_one_of(str(self.folder))}"
            )
        return ModelConfig.from_dict(values, str(path))

    def transformer(self) -> VideoMLA:
        """The denoiser in float32, ready to run."""
        config, path = self.model_config(), self.folder / "transformer" / WEIGHTS
        tensors = read_tensors(path)
        with WithoutStorage():
            model = VideoMLA(config)
        load_exactly(model, tensors, path)
        return model.eval().requires_grad_(False)

    def codec(self, *, weights: bool = True) -> Codec:
        """The autoencoder: `TinyCodec`, or diffusers' `AutoencoderKLWan`.

        Without `weights` it lies on the meta device: sizes, and nothing else.
        """
        folder = self.folder / "vae"
        values = read_json(folder / "config.json", mend=PARTS_FROM)
        kind = values.pop("_class_name", None)
        if kind == "AutoencoderKLWan":
            from vmla.vae.wan import WanCodec, WanSizes

            typed(values, WanSizes, str(folder / "config.json"), others="ignore")
            return WanCodec.from_pretrained(folder) if weights else WanCodec.from_config(folder)
        if kind != "TinyCodec":
            raise UserError(f"{folder} holds a {kind}; known are TinyCodec and AutoencoderKLWan")
        config = typed(values, TinyCodecConfig, str(folder / "config.json"))
        with WithoutStorage():
            codec = TinyCodec(config)
        if not weights:
            return codec.to("meta")
        load_exactly(codec, read_tensors(folder / WEIGHTS), folder / WEIGHTS)
        return codec.eval().requires_grad_(False)

    def elements(self, part: str) -> int:
        """How many numbers the weights of `part` (a folder's name) hold; only headers are read."""
        return count_elements(self.weights_path(part))

    def weights_path(self, part: str) -> Path:
        """The weights file of `part`, under the name that diffusers and transformers give it."""
        return self.folder / part / ("model.safetensors" if part == "text_encoder" else WEIGHTS)

    def model_hash(self) -> str:
        """SHA-256 of the transformer's sizes and weights, which a compiled engine is bound to."""
        sizes = json.dumps(self.model_config().identity(), sort_keys=True)
        weights = hash_weights(self.weights_path("transformer"))
        return hashlib.sha256(f"{sizes} {weights}".encode()).hexdigest()

    def text(self) -> TextEncoder:
        """The text encoder with its tokenizer, in float32."""
        return TextEncoder(self._text_model(), read_tokenizer(self.folder / "tokenizer"), **self._reading())

    def prompt_tokenizer(self) -> PromptTokenizer:
        """The tokenizer with the text encoder's limits, to check prompts by; no weights are read."""
        return PromptTokenizer(read_tokenizer(self.folder / "tokenizer"), **self._reading())

    def _reading(self) -> dict[str, Any]:
        return {
            "tokens": self._text_tokens(),
            "lower_case": self.world() is not None,  # captions of the world of moving shapes have no capitals
            "vocabulary": self._text_config().vocab_size,
        }

    def _text_tokens(self) -> int:
        """Text tokens that the denoiser reads: 512 for a Wan pipeline, which no file of it states."""
        path = self.folder / "transformer" / "config.json"
        wan = not path.exists() or read_json(path).get("_class_name") == "WanTransformer3DModel"
        return WAN_TEXT_TOKENS if wan else self.model_config().text_tokens

    def _text_config(self) -> UMT5Config:
        path = self.folder / "text_encoder" / "config.json"
        return UMT5Config.from_dict(read_json(path), str(path))

    def _text_model(self) -> UMT5Encoder:
        config, path = self._text_config(), self.weights_path("text_encoder")
        tensors = read_tensors(path)
        with WithoutStorage():
            model = UMT5Encoder(config)
        # One matrix under two names: files hold either or both.
        embedding = tensors.pop("encoder.embed_tokens.weight", None)
        if embedding is not None:
            tensors.setdefault("shared.weight", embedding)
        if "shared.weight" in tensors:
            tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
        load_exactly(model, tensors, path)
        model.tie()
        return model.eval().requires_grad_(False)

    def sampler(self) -> Sampler:
        """The checkpoint's own sampler, which the commands use by default."""
        path = self.folder / "scheduler" / "scheduler_config.json"
        values = read_json(path)
        kind = values.pop("_class_name", None)
        if kind != "Sampler":
            raise UserError(f"{path} holds a {kind}, not a Sampler")
        return typed(values, Sampler, str(path))


def open_checkpoint(name: str | Path = SHIPPED) -> Checkpoint:
    """A checkpoint folder by path, or the shipped one by its name: `sprites`.

    Raises:
        UserError: if there is none.
    """
    folder = shipped_folder() / str(name) if str(name) in shipped_names() else Path(name)
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a checkpoint folder; {make_one_of(str(folder))}")
    if not str(name) or not folder.is_dir():
        known = " or ".join(shipped_names())
        near = did_you_mean(str(name), shipped_names())
        raise UserError(f"no checkpoint {str(name)!r}; give a folder, or {known} for a shipped model{near}")
    return Checkpoint(folder, read_json(folder / INDEX, mend="is this a checkpoint folder?"))


def make_one_of(source: str) -> str:
    """The command that makes a checkpoint of weights that are none of ours."""
    return f"make one of it: vmla-train convert --from {source} -o FOLDER (see docs/checkpoints.md)"


def shipped_folder() -> Path:
    """The folder of the models that ship with the package."""
    return Path(str(importlib.resources.files("vmla"))) / "checkpoints"


def shipped_names() -> list[str]:
    """The names of the models that ship with the package."""
    return sorted(folder.name for folder in shipped_folder().iterdir() if folder.is_dir())


def save_checkpoint(
    folder: Path,
    *,
    transformer: VideoMLA,
    codec: TinyCodec,
    text: TextEncoder,
    sampler: Sampler,
    trained_on: str | None = None,
    dtype: torch.dtype = torch.float16,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a whole checkpoint folder, `model_index.json` last: without it a folder counts as incomplete."""
    notes = metadata or {}
    _save_part(folder / "transformer", transformer, transformer.config.to_dict(), dtype, notes)
    _save_part(folder / "vae", codec, asdict(codec.config), dtype, notes)
    _save_text(folder / "text_encoder", text.encoder, dtype, notes)
    text.tokenizer.save(folder / "tokenizer")
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    scheduler = {"_class_name": "Sampler", **sampler.settings()}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / INDEX, {
        "_class_name": PIPELINE,
        "transformer": ["vmla", "VideoMLA"],
        "vae": ["vmla", "TinyCodec"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", text.tokenizer.kind],
        "scheduler": ["vmla", "Sampler"],
        **({} if trained_on is None else {"trained_on": trained_on}),
    })  # fmt: skip


def _save_part(
    folder: Path, module: nn.Module, config: dict[str, Any], dtype: torch.dtype, notes: dict[str, str]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(dtype) for name, tensor in module.state_dict().items()}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt", **notes})
    write_json(folder / "config.json", {"_class_name": type(module).__name__, **config})


def _save_text(folder: Path, encoder: Any, dtype: torch.dtype, notes: dict[str, str]) -> None:
    """Save the encoder as transformers does, without a progress bar; the tied embedding is saved once."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", encoder.config.to_dict())
    tensors = {name: tensor.to(dtype) for name, tensor in encoder.state_dict().items()}
    tensors.pop("encoder.embed_tokens.weight", None)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt", **notes})
