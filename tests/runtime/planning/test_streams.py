"""How many live streams of Wan2.1-1.3B's size a GPU of 24 GiB holds by the memory plan, from sizes alone."""

import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan

from runtime.planning.plan import VideoPlan
from vmla.config import named_config
from vmla.scheduler import Sampler
from vmla.vae.taehv import TAEHV_CONFIGS, Taehv
from vmla.vae.wan import WanCodec
from vmla.weights.source import shapes_of

pytestmark = pytest.mark.cpu

MEMORY = 24 * 2**30
GRAPHS = 1
"""Streams whose room a GPU keeps for the buffers of its graphs (`Session.capacity`)."""
UMT5 = 256_384 * 4096 + 24 * (4 * 4096 * 4096 + 3 * 4096 * 10_240 + 2 * 4096 + 32 * 64) + 4096
"""Numbers in Wan's text encoder, UMT5-XXL: embeddings; attention, feed-forward, norms and biases by position
of each of 24 layers; the last norm."""


@cache
def planned(window, decoder="taehv"):
    """The plan of a stream in bfloat16, with four steps and Wan's text encoder."""
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
    return VideoPlan.of(decoding, chunks=1, dtype=torch.bfloat16, sampler=sampler)


def beside_the_text_encoder(plan):
    """How many streams fit where the text encoder lies elsewhere."""
    return plan.videos_in(MEMORY + plan.shared["text encoder"]) - GRAPHS


@pytest.mark.parametrize(("window", "slots"), [("total-6", 3), ("sink-1-history-6", 7)])
def test_beside_the_text_encoder_64_streams_fit_with_a_tiny_decoder(window, slots):
    plan = planned(window)
    cached = plan.own["latent cache"]
    assert cached == 30 * slots * 1560 * 224 * 2  # 62.9 and 146.8 MB
    assert beside_the_text_encoder(plan) >= 64
    # The cache is not all: the prompt's keys and values, the decoder's memory, noise and latents.
    assert cached + 150e6 < plan.video_bytes < cached + 180e6
    assert plan.own["text keys and values"] == 30 * 2 * 512 * 1536 * 2 > 94e6


def test_wans_text_encoder_in_float32_leaves_room_for_none():
    plan = planned("total-6")
    assert plan.shared["text encoder"] == 4 * UMT5 == 22_723_641_344
    assert plan.videos_in(MEMORY) == 0


def test_wans_own_codec_remembers_more_than_sixty_caches_do():
    plan = planned("total-6", "wan")
    assert plan.own["decoder memory"] > 60 * plan.own["latent cache"]
    assert beside_the_text_encoder(plan) < 4
