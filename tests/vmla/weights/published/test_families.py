"""Wan's relatives: two experts and pictures are refused by name, TI2V-5B's geometry is taken as it is."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from kit.measure import assert_close
from kit.references.wan import wan_transformer
from kit.refusals import refusal
from kit.tiny.models import draw, randomise, tiny_config, tiny_model
from safetensors.torch import save_file

from vmla.cache import CacheSpec
from vmla.config import MODEL_CONFIGS
from vmla.vae.wan import WanCodec
from vmla.weights.source import open_source, published

pytestmark = pytest.mark.cpu

INSTEAD = "use a text-to-video model: Wan2.1-T2V-1.3B, Wan2.1-T2V-14B or Wan2.2-TI2V-5B"


def index(folder, **values):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", **values}))


def test_two_experts_are_refused_in_every_layout(tmp_path):
    config = tiny_config(layout="mha")
    folder = tmp_path / "wan"
    randomise(wan_transformer(config)).save_pretrained(folder / "transformer")
    index(folder, boundary_ratio=None, transformer_2=[None, None])
    assert open_source(folder, like=config).config == config
    index(folder, boundary_ratio=0.875)
    said = refusal(lambda: open_source(folder, like=config))
    assert "is of Wan2.2's two-expert model (boundary_ratio)" in said
    assert INSTEAD in said
    index(folder)
    (folder / "transformer_2").mkdir()
    assert "two-expert model (transformer_2)" in refusal(lambda: open_source(folder, like=config))
    release = tmp_path / "release"
    (release / "high_noise_model").mkdir(parents=True)
    assert "two-expert model (high_noise_model)" in refusal(lambda: open_source(release))
    assert "two-expert model (high_noise)" in refusal(lambda: open_source(release / "high_noise_model"))
    file = tmp_path / "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
    save_file({"x": torch.ones(1)}, file)
    assert "two-expert model (low_noise)" in refusal(lambda: open_source(file))


def test_pictures_beside_the_latent_are_refused(tmp_path):
    model = tiny_model(layout="mha", in_channels=16)
    tensors = {name: tensor.contiguous() for name, tensor in published(model, wan=True).items()}
    for channels, kind in ((36, "image-to-video (I2V)"), (52, "conditioned on more than text")):
        name = "patch_embedding.weight"
        save_file({**tensors, name: draw(32, channels, 1, 2, 2)}, tmp_path / "x.safetensors")
        said = refusal(lambda: open_source(tmp_path / "x.safetensors", like=tiny_config()))
        assert f"is {kind}: it takes {channels} channels for a latent of 16" in said
        assert INSTEAD in said


def test_ti2v_has_a_picture_of_its_own_unless_another_is_named(tmp_path):
    model = tiny_model(layout="mha", in_channels=48)
    tensors = {name: tensor.contiguous() for name, tensor in published(model, wan=True).items()}
    save_file(tensors, tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    like = replace(MODEL_CONFIGS["wan-1.3b"], qk_rope_head_dim=8)
    config = open_source(tmp_path / "x.safetensors", like=like).config
    assert (config.in_channels, config.sample_height, config.sample_width) == (48, 44, 80)
    small = open_source(tmp_path / "x.safetensors", like=tiny_config()).config
    assert (small.sample_height, small.sample_width) == (4, 6)


def test_ti2vs_transformer_and_codec_are_diffusers(tmp_path):
    """With a timestep for each token, as its pipeline gives it, and the codec of 16 x 16 pixels."""
    config = tiny_config(layout="mha", in_channels=6, chunk=4)
    wan = randomise(wan_transformer(config))
    wan.save_pretrained(tmp_path / "transformer")
    model = open_source(tmp_path, like=config).model()
    latents = draw(1, 6, 4, config.sample_height, config.sample_width, seed=1)
    text, timestep = draw(1, config.text_tokens, config.text_dim, seed=2), torch.tensor([[640.0] * 4])
    spec = CacheSpec.of(config)
    velocity = model(
        latents, timestep, model.encode_text(text), spec.allocate(1, dtype=torch.float32),
        spec.slot_index(0), spec.chunk_index(0, config.chunk),
    )[0]  # fmt: skip
    of_tokens = timestep.repeat_interleave(config.tokens_per_frame, dim=1)
    assert_close(velocity, wan(latents, of_tokens, text, return_dict=False)[0], rtol=1e-5, atol=1e-5)
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=6, dim_mult=[1, 1, 1, 1], num_res_blocks=1, is_residual=True,
        patch_size=2, in_channels=12, out_channels=12, latents_mean=[0.1] * 6, latents_std=[1.5] * 6,
        temperal_downsample=[False, True, True], scale_factor_spatial=16,
    )  # fmt: skip
    randomise(vae).save_pretrained(tmp_path / "vae")
    codec = WanCodec.from_pretrained(tmp_path / "vae")
    assert (codec.spatial_ratio, codec.temporal_ratio, codec.latent_channels) == (16, 4, 6)
    video, _ = codec.decode(latents)
    raw = latents * 1.5 + 0.1
    expected = vae.decode(raw, return_dict=False)[0].transpose(1, 2) / 2 + 0.5
    assert video.shape == (1, 13, 3, 64, 96)
    assert_close(video, expected.clamp(0, 1), rtol=1e-5, atol=1e-5)
