"""All codecs keep the promises of `vmla.vae.Codec`, and Wan's decodes as diffusers does."""

import json
import sys

import pytest
import torch
from diffusers import AutoencoderKLWan
from kit.measure import assert_close
from kit.references.taehv import random_taehv
from safetensors.torch import load_file

from plugins.errors import UserError
from vmla.vae.taehv import Taehv
from vmla.vae.tiny import TinyCodec, TinyCodecConfig
from vmla.vae.wan import WanCodec, state_bytes
from vmla.weights.formats.files import write_tensors

pytestmark = pytest.mark.cpu

BATCH, CHANNELS, FRAMES, CELLS = 2, 4, 7, (2, 3)
SPLITS = [(3, 3, 1), (1,) * FRAMES, (2, 1, 4), (1, 6)]
MEAN, STD = (0.3, -1.2, 0.0, 0.8), (2.5, 0.7, 1.0, 1.4)


def tiny(first_frames=4):
    torch.manual_seed(1)
    return TinyCodec(
        TinyCodecConfig(
            latent_channels=CHANNELS,
            widths=(12, 8, 8),
            decoder_blocks=(1, 2, 1),
            first_frames=first_frames,
            latents_mean=MEAN,
            latents_std=STD,
        )
    ).requires_grad_(False)


def wan(**changes):
    torch.manual_seed(2)
    sizes = {"base_dim": 16, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1, "z_dim": CHANNELS}
    vae = AutoencoderKLWan(**sizes, latents_mean=list(MEAN), latents_std=list(STD), **changes)
    # As drawn, the decoder's output hardly leaves grey, and errors would hide there.
    torch.nn.init.normal_(vae.decoder.conv_out.weight, std=0.1)
    return WanCodec(vae)


def wan_2_2():
    """The variant of Wan 2.2: residual resampling, and squares of pixels folded into channels."""
    return wan(is_residual=True, patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16)


CODECS = {
    "tiny": tiny,
    "tiny from 1": lambda: tiny(first_frames=1),
    "taehv": random_taehv,
    "wan": wan,
    "wan 2.2": wan_2_2,
}


@pytest.fixture(scope="module", params=CODECS, ids=str)
def codec(request):
    return CODECS[request.param]()


def draw_latents(seed=0, frames=FRAMES):
    return torch.randn(BATCH, CHANNELS, frames, *CELLS, generator=torch.Generator().manual_seed(seed))


def draw_video(codec, latent_frames=3, seed=0):
    frames = codec.first_frames + codec.temporal_ratio * (latent_frames - 1)
    height, width = (codec.spatial_ratio * cells for cells in CELLS)
    return torch.rand(BATCH, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def decode_whole(vae, latents):
    """Frames by way of `AutoencoderKLWan.decode`, normalised and scaled as `WanPipeline` does."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        video = vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0]
    return (video.transpose(1, 2) * 0.5 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_stream_equals_decoding_at_once(codec, split):
    latents = draw_latents()
    whole, last = codec.decode(latents)
    memory, pieces = None, []
    for chunk in latents.split(split, dim=2):
        frames, memory = codec.decode(chunk, memory)
        pieces.append(frames)
    assert whole.std() > 0.03
    assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-5)
    assert state_bytes(memory) == state_bytes(last) > 0


@pytest.mark.parametrize("make", [wan, wan_2_2])
def test_wan_equals_diffusers(make):
    codec, latents = make(), draw_latents(seed=3)
    frames, _ = codec.decode(latents)
    assert_close(frames, decode_whole(codec.vae, latents), rtol=0, atol=1e-5)


def test_frames_of_the_first_and_of_later_chunks(codec):
    height, width = (codec.spatial_ratio * cells for cells in CELLS)
    first, memory = codec.decode(draw_latents(frames=3))
    later, _ = codec.decode(draw_latents(frames=2), memory)
    assert first.shape == (BATCH, codec.first_frames + 8, 3, height, width)
    assert later.shape == (BATCH, 8, 3, height, width)
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1


def test_frame_counts_are_those_of_the_formats():
    counts = {name: make().decode(draw_latents())[0].shape[1] for name, make in CODECS.items()}
    assert counts == {"tiny": 28, "tiny from 1": 25, "taehv": 25, "wan": 25, "wan 2.2": 25}


def test_an_old_memory_is_left_as_it_was(codec):
    """Also right after a single latent frame, where Wan's temporal upsampling has seen nothing yet."""
    for frames in (1, 3):
        _, memory = codec.decode(draw_latents(seed=1, frames=frames))
        before = [item.clone() if isinstance(item, torch.Tensor) else item for item in memory]
        once, _ = codec.decode(draw_latents(seed=2), memory)
        again, _ = codec.decode(draw_latents(seed=2), memory)
        assert torch.equal(once, again)
        assert len(memory) == len(before)
        for now, then in zip(memory, before, strict=True):
            assert torch.equal(now, then) if isinstance(then, torch.Tensor) else now == then


def test_memory_matters_and_streams_do_not_mix(codec):
    """A chunk after another history looks different, also while a second stream runs in between."""
    _, one = codec.decode(draw_latents(seed=1, frames=3))
    _, other = codec.decode(draw_latents(seed=2, frames=3))
    chunk = draw_latents(seed=3, frames=3)
    after_other = codec.decode(chunk, other)[0]
    after_one = codec.decode(chunk, one)[0]
    assert (after_one - after_other).abs().max() > 1e-3
    joined = torch.cat([draw_latents(seed=1, frames=3), chunk], dim=2)
    assert_close(after_one, codec.decode(joined)[0][:, -12:], rtol=0, atol=1e-5)


def test_memory_does_not_grow(codec):
    memory, sizes = None, []
    for seed in range(4):
        _, memory = codec.decode(draw_latents(seed, frames=3), memory)
        sizes.append(state_bytes(memory))
    assert len(set(sizes)) == 1


def test_the_size_of_the_memory_is_known_before(codec):
    _, memory = codec.decode(draw_latents(frames=5))
    assert BATCH * codec.stream_bytes(*CELLS) == state_bytes(memory)


def test_encoding_is_causal(codec):
    """All but TAEHV's, which looks three frames ahead."""
    video = draw_video(codec)
    changed = video.clone()
    later = codec.first_frames + codec.temporal_ratio + (3 if isinstance(codec, Taehv) else 0)
    changed[:, later:] = 1 - changed[:, later:]
    latents, others = codec.encode(video), codec.encode(changed)
    assert_close(others[:, :, :2], latents[:, :, :2], rtol=0, atol=1e-5)
    assert (others[:, :, 2] - latents[:, :, 2]).abs().max() > 1e-3


def test_decoding_is_causal(codec):
    latents = draw_latents()
    changed = latents.clone()
    changed[:, :, 4:] = -changed[:, :, 4:]
    frames, others = codec.decode(latents)[0], codec.decode(changed)[0]
    kept = codec.first_frames + 3 * codec.temporal_ratio
    assert_close(others[:, :kept], frames[:, :kept], rtol=0, atol=1e-5)
    assert (others[:, kept:] - frames[:, kept:]).abs().max() > 1e-3


def test_each_video_of_a_batch_is_coded_alone(codec):
    video, latents = draw_video(codec), draw_latents()
    alone = codec.encode(video[1:])
    assert_close(alone, codec.encode(video)[1:], rtol=0, atol=1e-5)
    assert_close(codec.decode(latents[1:])[0], codec.decode(latents)[0][1:], rtol=0, atol=1e-5)


def test_encoding_gives_the_latents_that_decoding_takes(codec):
    video = draw_video(codec)
    latents = codec.encode(video)
    assert latents.shape == (BATCH, codec.latent_channels, 3, *CELLS)
    assert torch.equal(latents, codec.encode(video))
    assert codec.decode(latents)[0].shape == video.shape


@pytest.mark.parametrize("make", [tiny, random_taehv, wan], ids=["tiny", "taehv", "wan"])
def test_encode_refuses_a_part_of_a_latent_frame(make):
    codec = make()
    video = draw_video(codec)
    with pytest.raises(ValueError, match="whole latent frames"):
        codec.encode(video[:, :-1])


@pytest.mark.parametrize("make", [random_taehv, wan], ids=["taehv", "wan"])
def test_encode_refuses_pictures_that_do_not_fill_cells(make):
    codec = make()
    with pytest.raises(ValueError, match="cells of 8"):
        codec.encode(draw_video(codec)[..., :-1])


def test_wan_refuses_to_decode_nothing():
    codec = wan()
    with pytest.raises(ValueError, match="no latent frame"):
        codec.decode(draw_latents(frames=0))


def test_wan_normalises_as_its_configuration_says():
    codec = wan()
    video = draw_video(codec)
    with torch.no_grad():
        raw = codec.vae.encode(2 * video.transpose(1, 2) - 1).latent_dist.mode()
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (MEAN, STD))
    assert_close(codec.encode(video) * std + mean, raw, rtol=0, atol=1e-5)


def test_tiny_normalises_as_its_configuration_says():
    codec, raw_codec = tiny(), tiny()
    raw_codec.mean.zero_()
    raw_codec.std.fill_(1)
    video = draw_video(codec)
    mean, std = (torch.tensor(v)[:, None, None, None] for v in (MEAN, STD))
    assert_close(codec.encode(video) * std + mean, raw_codec.encode(video), rtol=0, atol=1e-5)


def test_wan_keeps_no_graph_and_survives_a_cast():
    codec, latents = wan(), draw_latents(frames=2)
    exact, memory = codec.decode(latents)
    assert not any(item.requires_grad for item in memory)
    frames, memory = codec.to(dtype=torch.bfloat16).decode(latents)
    assert frames.dtype == torch.float32
    assert {item.dtype for item in memory} == {torch.bfloat16}
    # bfloat16 keeps 8 bits; over a dozen layers a few of them go.
    assert_close(frames, exact, rtol=0, atol=0.1)
    assert torch.equal(codec._std.flatten(), torch.tensor(STD))


def test_a_saved_wan_codec_is_loaded_as_it_was(tmp_path):
    codec, latents = wan(), draw_latents()
    codec.vae.save_pretrained(tmp_path)
    loaded = WanCodec.from_pretrained(tmp_path)
    video = draw_video(codec)
    assert torch.equal(loaded.decode(latents)[0], codec.decode(latents)[0])
    assert torch.equal(loaded.encode(video), codec.encode(video))
    assert WanCodec.from_pretrained(tmp_path, torch.bfloat16).vae.dtype == torch.bfloat16


def test_a_folder_that_is_no_wan_codec_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no config.json"):
        WanCodec.from_pretrained(tmp_path)
    wan().vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, complaint in [
        ({"_class_name": "AutoencoderKL"}, "holds AutoencoderKL;"),
        ({"base_dim": 8}, "expected shape"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=complaint):
            WanCodec.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="broken"):
        WanCodec.from_pretrained(tmp_path)


def test_without_all_its_weights_a_folder_is_refused(tmp_path):
    wan().vae.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    without = {key: value for key, value in weights.items() if not key.startswith("post_quant")}
    for changed, complaint in [({**weights, "more": torch.ones(1)}, "unexpected"), (without, "missing")]:
        write_tensors(file, changed, {"format": "pt"})
        with pytest.raises(UserError, match=f"{complaint} keys"):
            WanCodec.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match="cannot load"):
        WanCodec.from_pretrained(tmp_path)


def test_without_diffusers_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"videomla\[wan\]"):
        WanCodec.from_pretrained(tmp_path)
