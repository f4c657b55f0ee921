"""Wan's autoencoder from diffusers, decoded as a stream instead of a whole video at a time.

`AutoencoderKLWan.decode` clears its causal-convolution features before and after every call, so
it can only decode a video from its start. Here the decoder itself is called, one latent frame at
a time, and the features stay with the caller between two calls.

The arithmetic is that of `AutoencoderKLWan._decode`, which has not changed from diffusers 0.36 to
0.42. Beyond the public interface this relies on four of its habits:

- `vae.decoder(x, feat_cache=list, feat_idx=[0], first_chunk=bool)` with one latent frame in x
  replaces entries of the list, counts them in `feat_idx`, and never writes into a tensor in it;
- each entry belongs to one 3-D convolution (a few have none);
- `vae.post_quant_conv` sees one frame at a time;
- `unpatchify` lies beside the class (Wan 2.2 only).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from plugins.documents.typed import Between
from plugins.errors import UserError, missing_extra

MOST = 2**12
"""Upper bound of channels: a damaged file must not ask for more."""

Features = list[Tensor | str]
"""The last inputs of the decoder's convolutions. The string marks a temporal upsampling that has seen
nothing yet, and occurs only after a single latent frame."""


@dataclass(frozen=True, kw_only=True)
class WanSizes:
    """Settings of an `AutoencoderKLWan` that are checked for their bounds; the defaults are Wan2.1's."""

    base_dim: Annotated[int, Between(1, MOST)] = 96
    decoder_base_dim: Annotated[int, Between(1, MOST)] | None = None
    z_dim: Annotated[int, Between(1, MOST)] = 16
    dim_mult: tuple[Annotated[int, Between(1, 64)], ...] = (1, 2, 4, 4)
    num_res_blocks: Annotated[int, Between(1, 64)] = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()
    patch_size: Annotated[int, Between(1, 64)] | None = None

    def __post_init__(self) -> None:
        if len(self.dim_mult) > 8 or len(self.dim_mult) != len(self.temperal_downsample) + 1:
            raise UserError("dim_mult has one entry more than temperal_downsample, and at most 8")


class WanCodec:
    """An `AutoencoderKLWan` as a `vmla.vae.Codec`, for inference only: no gradients pass.

    Not a module, so that a cast of the weights leaves the latents' statistics in float32.
    """

    first_frames = 1

    def __init__(self, vae: nn.Module) -> None:
        """Wrap an `AutoencoderKLWan`; the codec's device and dtype are those of its weights."""
        # diffusers is optional and untyped, so the module's own attributes are unknown here.
        self.vae: Any = vae
        self.vae.eval()
        config: Any = vae.config
        self._mean = _per_channel(config.latents_mean)
        self._std = _per_channel(config.latents_std)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> WanCodec:
        """Load the codec that `AutoencoderKLWan.save_pretrained` wrote; nothing is downloaded.

        Raises:
            UserError: if diffusers is missing, or the folder does not hold exactly such a codec.
        """
        try:
            from diffusers import AutoencoderKLWan
        except ImportError as error:
            raise missing_extra("diffusers", "wan") from error
        _check_class(AutoencoderKLWan, Path(folder))
        try:
            vae, found = AutoencoderKLWan.from_pretrained(
                folder,
                torch_dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:  # noqa: BLE001 - each setting is read in a place and a way of its own
            raise _unreadable(folder, " ".join(str(error).split(". ")[0].split())[:200]) from error
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if found[kind]:
                raise _unreadable(folder, f"{kind.replace('_', ' ')}: {found[kind][0]} and perhaps others")
        return cls(vae)

    @classmethod
    def from_config(cls, folder: str | Path) -> WanCodec:
        """The codec without its weights, on the meta device.

        Raises:
            UserError: if diffusers is missing, or the folder does not describe such a codec.
        """
        try:
            from diffusers import AutoencoderKLWan
        except ImportError as error:
            raise missing_extra("diffusers", "wan") from error
        _check_class(AutoencoderKLWan, Path(folder))
        try:
            with torch.device("meta"):
                values = AutoencoderKLWan.load_config(folder, local_files_only=True)
                return cls(AutoencoderKLWan.from_config(values))
        except Exception as error:  # noqa: BLE001 - as above
            raise _unreadable(folder, " ".join(str(error).split(". ")[0].split())[:200]) from error

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [z, 1, 1, 1] of the latents before they are normalised, float32."""
        return self._mean, self._std

    @property
    def latent_channels(self) -> int:
        """Channels of a latent frame."""
        return int(self.vae.config.z_dim)

    @property
    def spatial_ratio(self) -> int:
        """Pixels to one latent cell, in each direction."""
        return int(2 ** (len(self.vae.config.dim_mult) - 1) * (self.vae.config.patch_size or 1))

    @property
    def temporal_ratio(self) -> int:
        """Pixel frames to one latent frame."""
        return int(2 ** sum(self.vae.config.temperal_downsample))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> WanCodec:
        """Move the weights, cast them, or both; the latents' statistics stay float32. Returns itself."""
        # Both are passed only where given: diffusers warns about any dtype, the present one included.
        self.vae.to(*(wish for wish in (device, dtype) if wish is not None))
        return self

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """[B, frames, 3, H, W] in [0, 1] to normalised latents [B, z, F, h, w] float32.

        The latents are the mode of the posterior: nothing is drawn.

        Raises:
            ValueError: if the frames do not fill whole latent frames, or the picture whole cells.
        """
        self._check_whole(video)
        pixels = (2 * video.transpose(1, 2) - 1).to(self.vae.dtype)
        raw: Tensor = self.vae.encode(pixels).latent_dist.mode()
        return (raw.float() - self._mean.to(raw.device)) / self._std.to(raw.device)

    @torch.no_grad()
    def decode(self, latents: Tensor, state: Features | None = None) -> tuple[Tensor, Features]:
        """Normalised latents [B, z, F, h, w] to frames [B, n, 3, H, W] float32 in [0, 1].

        A video's first latent frame gives one frame, every other one `temporal_ratio`. `state`
        is not changed in place: the same state may be decoded from again.
        """
        raw = latents.float() * self._std.to(latents.device) + self._mean.to(latents.device)
        pieces = []
        for frame in raw.to(self.vae.dtype).unbind(2):
            piece, state = self._decode_frame(frame.unsqueeze(2), state)
            pieces.append(piece)
        if state is None:
            raise ValueError("there is no latent frame to decode")
        video = torch.cat(pieces, dim=2).transpose(1, 2)
        return (video.float() / 2 + 0.5).clamp(0, 1), state

    def stream_bytes(self, height: int, width: int) -> int:
        """Bytes of one video's decoder state for latent frames of `height` x `width` cells.

        Measured on the meta device, where nothing is computed; two frames fill every feature.
        """
        config, kind = self.vae.config, type(self.vae)
        with torch.device("meta"):
            empty = WanCodec(kind.from_config(config)).to(dtype=self.vae.dtype)
            _, state = empty.decode(torch.empty(1, self.latent_channels, 2, height, width))
        return state_bytes(state)

    def _decode_frame(self, z: Tensor, state: Features | None) -> tuple[Tensor, Features]:
        """z [B, z, 1, h, w], not normalised, to pixels [B, 3, n, H, W] in about [-1, 1]."""
        features: list[Any] = [None] * _convolutions(self.vae.decoder) if state is None else list(state)
        used = [0]
        x = self.vae.decoder(
            self.vae.post_quant_conv(z), feat_cache=features, feat_idx=used, first_chunk=state is None
        )
        # The rest belongs to convolutions over a single frame, which remember nothing.
        return self._unpatchify(x), features[: used[0]]

    def _unpatchify(self, x: Tensor) -> Tensor:
        """Undo Wan 2.2's folding of small squares of pixels into channels."""
        patch = self.vae.config.patch_size
        if patch is None:
            return x
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        pixels: Tensor = unpatchify(x, patch_size=patch)
        return pixels

    def _check_whole(self, video: Tensor) -> None:
        frames, (height, width) = video.shape[1], video.shape[-2:]
        if (frames - self.first_frames) % self.temporal_ratio:
            raise ValueError(f"{frames} frames do not fill whole latent frames")
        if height % self.spatial_ratio or width % self.spatial_ratio:
            raise ValueError(f"{height} x {width} pixels do not fill cells of {self.spatial_ratio}")


def state_bytes(state: Features | None) -> int:
    """Bytes of a decoder state, as it is held between two calls of `decode`."""
    return sum(item.nbytes for item in state or () if isinstance(item, Tensor))


def _convolutions(decoder: nn.Module) -> int:
    """How many features the decoder may keep, at most: those of its 3-D convolutions."""
    return sum(isinstance(module, nn.Conv3d) for module in decoder.modules())


def _check_class(expected: Any, folder: Path) -> None:
    """Refuse a folder that holds something else, before diffusers takes its name for a hub's."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; name the folder of an AutoencoderKLWan")
    try:
        name = expected.load_config(folder, local_files_only=True).get("_class_name")
    except (OSError, ValueError) as error:
        raise _unreadable(folder, "config.json is broken") from error
    if name != expected.__name__:
        raise UserError(f"{folder} holds {name}; name the folder of an {expected.__name__}")


def _unreadable(folder: str | Path, reason: str) -> UserError:
    return UserError(f"cannot load the codec in {folder} ({reason}); save or download it again")


def _per_channel(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]
