"""TAEHV's architecture against a plain formulation of it, its published names, and files that are wrong."""

import re

import pytest
import torch
import torch.nn.functional as F
from kit.measure import assert_close
from kit.references.taehv import random_taehv
from kit.references.wan_folder import small_vae
from kit.tiny.models import draw
from safetensors.torch import save_file

from plugins.errors import UserError
from vmla.vae.taehv import TAEHV_CONFIGS, Taehv
from vmla.vae.wan import WanCodec
from vmla.weights.taehv import load_taehv, scaled_if_light

pytestmark = pytest.mark.cpu

BATCH, FRAMES, CELLS = 2, 5, (3, 2)


# The same computation on whole videos: x is [B, time, channels, H, W], `w` a raw state dict.


class Plain:
    """Layer by layer, from the description of the architecture and the published names alone."""

    def __init__(self, weights):
        self.w = weights

    def conv(self, x, name, **options):
        weight, bias = self.w[f"{name}.weight"], self.w.get(f"{name}.bias")
        padding = weight.shape[-1] // 2
        return torch.stack([F.conv2d(f, weight, bias, padding=padding, **options) for f in x.unbind(1)], 1)

    def memory(self, x, name):
        earlier = torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)[:, :-1]
        h = self.conv(torch.cat([x, earlier], dim=2), f"{name}.conv.0").relu()
        h = self.conv(h.clone(), f"{name}.conv.2").relu()
        return (x + self.conv(h, f"{name}.conv.4")).relu()

    def memories(self, x, first, part):
        for number in range(first, first + 3):
            x = self.memory(x, f"{part}.{number}")
        return x

    def grow(self, x, name, times):
        y = self.conv(x, f"{name}.conv")
        return torch.stack([part for frame in y.unbind(1) for part in frame.chunk(times, dim=1)], dim=1)

    def pool(self, x, name, times):
        groups = [torch.cat(list(group.unbind(1)), dim=1) for group in x.split(times, dim=1)]
        return self.conv(torch.stack(groups, dim=1), f"{name}.conv")

    def decode(self, z):
        x = self.conv(torch.tanh(z.transpose(1, 2) / 3) * 3, "decoder.1").relu()
        for first, times in ((3, 1), (9, 2), (15, 2)):
            x = self.memories(x, first, "decoder")
            x = x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
            x = self.conv(self.grow(x, f"decoder.{first + 4}", times), f"decoder.{first + 5}")
        return self.conv(x.relu(), "decoder.22").clamp(0, 1)[:, 3:]

    def encode(self, video):
        x = torch.cat([video, *[video[:, -1:]] * 3], dim=1)
        x = self.conv(x, "encoder.0").relu()
        for first, times in ((2, 2), (7, 2), (12, 1)):
            x = self.conv(self.pool(x, f"encoder.{first}", times), f"encoder.{first + 1}", stride=2)
            x = self.memories(x, first + 2, "encoder")
        return self.conv(x, "encoder.17").transpose(1, 2)


def test_decoding_is_the_plain_formulation():
    codec, latents = random_taehv(), 2 * draw(BATCH, 4, FRAMES, *CELLS)  # some beyond the bound of 3
    expected = Plain(codec.state_dict()).decode(latents)
    assert expected.shape == (BATCH, 4 * FRAMES - 3, 3, 24, 16)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.9
    assert_close(codec.decode(latents)[0], expected, rtol=0, atol=1e-5)
    memory, pieces = None, []
    for chunk in latents.split((3, 2), dim=2):
        frames, memory = codec.decode(chunk, memory)
        pieces.append(frames)
    assert_close(torch.cat(pieces, dim=1), expected, rtol=0, atol=1e-5)


def test_encoding_is_the_plain_formulation():
    codec = random_taehv(seed=1)
    video = torch.rand(BATCH, 9, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    expected = Plain(codec.state_dict()).encode(video)
    assert expected.std() > 0.1
    assert_close(codec.encode(video), expected, rtol=1e-5, atol=1e-5)


def published_shapes():
    """Names and shapes of `taew2_1.pth`, read off the model that its repository loads it into."""
    bare = {"weight"}
    shapes = {}

    def conv(name, outputs, inputs, size=3, parts=("weight", "bias")):
        sizes = {"weight": (outputs, inputs, size, size), "bias": (outputs,)}
        shapes.update({f"{name}.{part}": sizes[part] for part in parts})

    def memories(part, first, width):
        for number in range(first, first + 3):
            for inner, inputs in ((0, 2 * width), (2, width), (4, width)):
                conv(f"{part}.{number}.conv.{inner}", width, inputs)

    conv("encoder.0", 64, 3)
    for first, times in ((2, 2), (7, 2), (12, 1)):
        conv(f"encoder.{first}.conv", 64, 64 * times, 1, bare)
        conv(f"encoder.{first + 1}", 64, 64, 3, bare)
        memories("encoder", first + 2, 64)
    conv("encoder.17", 16, 64)
    conv("decoder.1", 256, 16)
    for first, width, following, times in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        memories("decoder", first, width)
        conv(f"decoder.{first + 4}.conv", width * times, width, 1, bare)
        conv(f"decoder.{first + 5}", following, width, 3, bare)
    conv("decoder.22", 3, 64)
    return shapes


def test_names_and_shapes_are_those_of_the_published_file():
    codec = Taehv(TAEHV_CONFIGS["taew2_1"])
    ours = {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}
    assert ours == published_shapes()
    # What the published model counts, by the same source.
    assert (len(ours), sum(torch.Size(shape).numel() for shape in ours.values())) == (128, 11_315_539)


@pytest.mark.parametrize("kind", ["pth", "pt", "safetensors"])
def test_a_file_loads_as_it_is(tmp_path, kind):
    codec, latents = random_taehv(seed=2), draw(1, 4, 2, *CELLS)
    saved = write(tmp_path / f"tiny.{kind}", {k: v.half() for k, v in codec.state_dict().items()})
    loaded = load_taehv(saved)
    codec.load_state_dict({name: tensor.half().float() for name, tensor in codec.state_dict().items()})
    assert torch.equal(loaded.decode(latents)[0], codec.decode(latents)[0])
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    sizes = load_taehv(saved, weights=False)
    assert {parameter.device.type for parameter in sizes.parameters()} == {"meta"}
    assert sizes.stream_bytes(*CELLS) == loaded.stream_bytes(*CELLS)


def write(path, tensors):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


FAULTS = {
    "missing": (lambda t: t.pop("decoder.9.conv.2.bias"), "lacks the tensor decoder.9.conv.2.bias [8]"),
    "unknown": (lambda t: t.update(extra=torch.ones(2)), "has an unknown tensor extra [2]"),
    "misshapen": (
        lambda t: t.update({"encoder.0.bias": torch.ones(3)}),
        "encoder.0.bias has shape [3], debug asks for [8]",
    ),
    "no first": (lambda t: t.pop("decoder.1.weight"), "lacks the tensor decoder.1.weight [256, 16, 3, 3]"),
    "other latents": (
        lambda t: t.update({"decoder.1.weight": torch.ones(16, 12, 3, 3)}),
        "decodes latents of 12 channels; name a file for 16 (taew2_1) or 48 (taew2_2) or 4 (debug)",
    ),
}


def test_the_layout_of_wan_2_2_folds_squares_into_channels(tmp_path):
    """`taew2_2.pth` and `lighttaew2_2.safetensors`: as the other, but for the first and the last layer."""
    codec = random_taehv("taew2_2")
    ours = {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}
    theirs = published_shapes() | {
        "encoder.0.weight": (64, 12, 3, 3), "encoder.17.weight": (48, 64, 3, 3), "encoder.17.bias": (48,),
        "decoder.1.weight": (256, 48, 3, 3), "decoder.22.weight": (12, 64, 3, 3), "decoder.22.bias": (12,),
    }  # fmt: skip
    assert ours == theirs
    loaded, latents = load_taehv(write(tmp_path / "x.pth", codec.state_dict())), draw(1, 48, 2, 2, 2)
    frames, _ = loaded.decode(latents)
    cells, _ = codec.decoder.run(latents.transpose(1, 2).flatten(0, 1), 1, None)
    assert frames.shape == (1, 5, 3, 32, 32)
    corner = cells[3:, : 3 * 4].unflatten(1, (3, 2, 2))[:, :, 1, 0]  # row 1, column 0 of each square
    assert_close(frames[0, :, :, 1::2, ::2], corner.clamp(0, 1), rtol=0, atol=1e-6)
    assert loaded.encode(frames).shape == latents.shape


def test_lighttae_takes_latents_as_wans_own_autoencoder_has_them(tmp_path):
    wan = WanCodec(small_vae(4))
    codec, latents = random_taehv(), draw(1, 4, 2, *CELLS)
    for name in ("lighttaew2_1.pth", "taew2_1.pth"):
        write(tmp_path / name, codec.state_dict())
    light, plain = (
        scaled_if_light(load_taehv(tmp_path / name), tmp_path / name, wan)
        for name in ("lighttaew2_1.pth", "taew2_1.pth")
    )
    assert torch.equal(plain.decode(latents)[0], codec.decode(latents)[0])
    assert torch.equal(light.decode(latents)[0], codec.decode(1.5 * latents + 0.1)[0])
    frames = torch.rand(1, 5, 3, 24, 16)
    assert_close(light.encode(frames), (codec.encode(frames) - 0.1) / 1.5, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="for the latents of Wan's autoencoder"):
        scaled_if_light(codec, tmp_path / "lighttaew2_1.pth", codec)


def assert_refused(path, fragment):
    for weights in (True, False):
        with pytest.raises(UserError, match=re.escape(fragment)) as caught:
            load_taehv(path, weights=weights)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_tensors_are_named(tmp_path, kind, fault):
    change, fragment = FAULTS[fault]
    tensors = dict(random_taehv().state_dict())
    change(tensors)
    assert_refused(write(tmp_path / f"wrong.{kind}", tensors), fragment)


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    assert_refused(tmp_path / "nothing.pth", "there is no file")
    assert_refused(tmp_path / "tiny.onnx", "name one that ends in .pth, .pt or .safetensors")
    for kind, fragment in (("pth", "cannot be read as a file of tensors"), ("safetensors", "is damaged")):
        path = write(tmp_path / f"cut.{kind}", dict(random_taehv().state_dict()))
        path.write_bytes(path.read_bytes()[:-3000])
        assert_refused(path, fragment)
    torch.save({"decoder.1.weight": torch.ones(1), "step": 3}, tmp_path / "more.pth")
    assert_refused(tmp_path / "more.pth", "step is not a tensor")


def test_in_a_narrow_type_memory_halves_and_frames_stay():
    codec, latents = random_taehv(), draw(1, 4, 3, *CELLS)
    exact, whole = codec.decode(latents)[0], codec.stream_bytes(*CELLS)
    narrow = codec.to(torch.bfloat16)
    frames, memory = narrow.decode(latents)
    assert frames.dtype == torch.float32
    assert sum(item.nbytes for item in memory) == narrow.stream_bytes(*CELLS) == whole // 2
    assert (frames - exact).abs().mean() < 0.01  # bfloat16 keeps 8 bits, of which twenty layers cost some
