"""Published weights of TAEHV's architecture, from the file that they come in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from plugins.errors import UserError
from vmla.vae import Codec
from vmla.vae.taehv import TAEHV_CONFIGS, Taehv
from vmla.weights.formats.files import Shape, check_shapes, load_exactly
from vmla.weights.formats.lazy_tensors import LazyTensors, shape_of
from vmla.weights.formats.pickles import open_pickle
from vmla.weights.uninitialised import WithoutStorage

PICKLES, SAFETENSORS = (".pth", ".pt"), ".safetensors"
PUBLISHED = "taew2_1"
LIGHT = "lighttae"
"""Prefix of LightTAE's file names. Its tensors are TAEHV's, so that nothing else tells them apart."""
FIRST = "decoder.1.weight"
"""The decoder's first convolution [width, latent channels, 3, 3], whose shape tells the architecture."""


def load_taehv(path: Path, *, weights: bool = True) -> Taehv:
    """The autoencoder in `path`, a `.pth`, `.pt` or `.safetensors` file, in float32, ready to run.

    No code in a pickle is ever run. Without `weights` it lies on the meta device: names and shapes are
    checked, and nothing else is read.

    Raises:
        UserError: for a file that cannot be read, or whose tensors are not those of a known architecture.
    """
    tensors = _open(path)
    shapes = {name: shape_of(tensors, name) for name in tensors}
    name = _architecture(shapes, path)
    with WithoutStorage():
        codec = Taehv(TAEHV_CONFIGS[name])
    expected = {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}
    check_shapes(expected, shapes, path, name)
    if not weights:
        return codec.to("meta")
    load_exactly(codec, tensors, path)
    return codec.eval().requires_grad_(False)


def is_light(path: Path) -> bool:
    """Whether `path` has a name of LightTAE's files."""
    return path.name.lower().startswith(LIGHT)


def scaled_if_light(codec: Taehv, path: Path, large: Codec) -> Taehv:
    """`codec`, read from `path`, with the statistics of the `large` autoencoder if it is LightTAE.

    Raises:
        UserError: if it is, and `large` is not Wan's.
    """
    if not is_light(path):
        return codec
    from vmla.vae.wan import WanCodec

    if not isinstance(large, WanCodec):
        raise UserError(f"{path} is LightTAE, for the latents of Wan's autoencoder; this model has another")
    codec.statistics = large.statistics
    return codec


def architecture_of(codec: Taehv) -> str:
    """The name in `TAEHV_CONFIGS` of the sizes that `codec` has."""
    return next(name for name, config in TAEHV_CONFIGS.items() if config == codec.config)


def _open(path: Path) -> Mapping[str, Tensor]:
    if path.suffix not in (*PICKLES, SAFETENSORS):
        kinds = ", ".join(PICKLES)
        raise UserError(f"{path} is not a file of weights; name one that ends in {kinds} or {SAFETENSORS}")
    if not path.is_file():
        raise UserError(f"there is no file {path}; name one that holds weights of TAEHV")
    return LazyTensors(path) if path.suffix == SAFETENSORS else open_pickle(path)


def _architecture(shapes: Mapping[str, Shape], path: Path) -> str:
    """Name of the architecture whose latents have as many channels as the first convolution reads."""
    first = shapes.get(FIRST, ())
    if len(first) < 2:
        return PUBLISHED  # the tensor is missing or odd: the comparison of all tensors will say so
    fitting = [name for name, config in TAEHV_CONFIGS.items() if config.latent_channels == first[1]]
    if not fitting:
        known = " or ".join(f"{c.latent_channels} ({name})" for name, c in TAEHV_CONFIGS.items())
        raise UserError(f"{path} decodes latents of {first[1]} channels; name a file for {known}")
    return fitting[0]
