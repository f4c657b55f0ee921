"""How many live streams of Wan2.1-1.3B's size a GPU of 24 GiB holds by the memory plan, from sizes alone."""

import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan

from plugins.errors import UserError
from runtime.planning.plan import VideoPlan
from runtime.session.generate import check_room
from vmla.config import named_config
from vmla.scheduler import Sampler
from vmla.vae.taehv import TAEHV_CONFIGS, Taehv
from vmla.vae.wan import WanCodec
from vmla.weights.source import shapes_of

pytestmark = pytest.mark.cpu

MEMORY = 24 * 2**30
GPU, CPU = torch.device("cuda"), torch.device("cpu")
UMT5 = 256_384 * 4096 + 24 * (4 * 4096 * 4096 + 3 * 4096 * 10_240 + 2 * 4096 + 32 * 64) + 4096
"""Numbers in Wan's text encoder, UMT5-XXL: embeddings; attention, feed-forward, norms and biases by position
of each of 24 layers; the last norm."""


@cache
def planned(window, decoder="taehv", *, device=GPU, text_device=CPU):
    """The plan of a stream in bfloat16, with four steps, and Wan's text encoder on `text_device`."""
    config = named_config("wan-1.3b", window=window)
    with torch.device("meta"):
        codec = WanCodec(AutoencoderKLWan()) if decoder == "wan" else Taehv(TAEHV_CONFIGS["taew2_1"])
    weights = codec.vae if decoder == "wan" else codec.to(torch.bfloat16)
    elements = {
        "transformer": sum(math.prod(shape) for shape in shapes_of(config).values()), "text_encoder": UMT5
    }  # fmt: skip
    decoding = SimpleNamespace(
        checkpoint=SimpleNamespace(model_config=lambda: config, elements=elements.get),
        sizes=lambda: codec, silent=False,
        codec_bytes=lambda: sum(parameter.nbytes for parameter in weights.parameters()),
    )  # fmt: skip
    sampler = Sampler(kind="renoise", steps=4, shift=5.0)
    return VideoPlan.of(
        decoding, chunks=1, dtype=torch.bfloat16, sampler=sampler, device=device, text_device=text_device
    )


@pytest.mark.parametrize(("window", "slots"), [("total-6", 3), ("sink-1-history-6", 7)])
def test_64_streams_fit_with_a_tiny_decoder_and_the_text_encoder_on_the_cpu(window, slots):
    plan = planned(window)
    cached = plan.own["latent cache"]
    assert cached == 30 * slots * 1560 * 224 * 2  # 62.9 and 146.8 MB
    check_room(plan, 64, MEMORY)
    assert plan.videos_in(MEMORY) >= 64
    assert plan.bytes_for(plan.videos_in(MEMORY)) <= MEMORY < plan.bytes_for(plan.videos_in(MEMORY) + 1)
    assert plan.elsewhere == {"text encoder on cpu": 4 * UMT5} and "text encoder" not in plan.shared
    assert f"text encoder on cpu: {4 * UMT5:,} bytes (21.16 GiB), not counted above" in plan.lines()
    # The cache is not all: the prompt's keys and values, the decoder's memory, noise and latents.
    assert cached + 150e6 < plan.video_bytes < cached + 180e6
    assert plan.own["text keys and values"] == 30 * 2 * 512 * 1536 * 2 > 94e6


def test_wans_text_encoder_in_float32_leaves_room_for_none():
    plan = planned("total-6", text_device=GPU)
    assert plan.shared["text encoder"] == 4 * UMT5 == 22_723_641_344
    assert plan.videos_in(MEMORY) == 0 and plan.elsewhere == {}
    with pytest.raises(UserError, match=r"hold 0.*, or keep the text encoder .* --text-device cpu$"):
        check_room(plan, 64, MEMORY)


@pytest.mark.parametrize(("device", "text_device", "videos"), [
    (GPU, GPU, 1000),  # too many even without it
    (GPU, CPU, 1000),  # it is there already
    (CPU, CPU, 64),  # one memory, which it would not leave
])  # fmt: skip
def test_a_remedy_that_would_not_do_is_not_named(device, text_device, videos):
    plan = planned("total-6", device=device, text_device=text_device)
    with pytest.raises(UserError, match="make fewer at once, or raise --memory if there is more$"):
        check_room(plan, videos, MEMORY)


def test_on_a_cpu_the_text_encoder_counts_as_ever():
    here, there = (planned("total-6", device=one, text_device=one) for one in (CPU, GPU))
    assert (here.shared, here.own) == (there.shared, there.own)
    assert here.bytes_for(3) == there.bytes_for(2)  # a GPU's graphs have the buffers of one more


def test_wans_own_codec_remembers_more_than_sixty_caches_do():
    plan = planned("total-6", "wan")
    assert plan.own["decoder memory"] > 60 * plan.own["latent cache"]
    assert plan.videos_in(MEMORY) < 4
