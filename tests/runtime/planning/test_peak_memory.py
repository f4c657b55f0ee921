"""The memory that comes and goes is as the plan says: of a pass about, of decoding exactly."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKLWan
from kit.references.taehv import random_taehv
from kit.tiny.engines import Words

from runtime.engines.base import EagerEngine
from runtime.outputs import NullSink
from runtime.planning.peak_memory import LiveBytes, decoding_scratch, pass_scratch, peak_live_bytes
from runtime.planning.request import prepare
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.rollout import ChunkPasses, Rollout
from runtime.session.session import Session
from vmla.cache import CacheSpec
from vmla.config import MODEL_CONFIGS
from vmla.scheduler import Sampler
from vmla.transformer import VideoMLA
from vmla.vae.wan import WanCodec
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
RED = "a red star bouncing on a navy background"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_most_that_lives_at_once_is_counted(device):
    given = torch.zeros(1000, device=device)

    def work():
        first = given + 1  # 4,000 bytes
        first.mul_(2)
        view = first[:10].view(2, 5)
        second = torch.cat([first, first])  # 12,000
        del first  # its view still holds it
        third = second[:1000] * view.sum()  # 16,004
        del view, second
        return third + 1

    assert peak_live_bytes(work) == 16004
    with LiveBytes() as living:
        kept = work()
    assert living.now == kept.nbytes == 4000


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"layout": "mha"},
        {"num_layers": 2, "history": 36}, {"num_layers": 2, "history": 36, "layout": "mha"},
        {"num_layers": 3, "num_attention_heads": 8, "sample_height": 16}, {"num_layers": 2, "ffn_dim": 8192},
        {"history": 4},
    ],
)  # fmt: skip
def test_a_pass_takes_about_what_the_plan_says(changes):
    config = replace(MODEL_CONFIGS["sprites"], **changes)
    torch.manual_seed(0)
    words = Words(config)
    engine = EagerEngine(VideoMLA(config), words, device=CPU, dtype=torch.float32, as_it_is=True)
    sampler = Sampler(kind="euler", steps=2)
    videos = Rollout(engine, FixedPrompts(RED), sampler, seeds=[0])
    for _ in range(2 + CacheSpec.of(config).slots // config.chunk):  # until nothing is left out as empty
        videos.denoise()
        videos.update_cache()
    taken, planned = (
        peak_live_bytes(partial(ChunkPasses(engine).denoise, videos.buffers)),
        pass_scratch(config, 4),
    )
    assert 0.83 * taken < planned < 1.17 * taken


def codecs(checkpoint):
    yield open_checkpoint(checkpoint).codec(), lambda: open_checkpoint(checkpoint).codec(weights=False)
    for dtype in (torch.float32, torch.bfloat16):
        yield random_taehv().to(dtype), lambda dtype=dtype: random_taehv().to("meta", dtype)


def test_decoding_takes_what_the_plan_says(checkpoint):
    config = open_checkpoint(checkpoint).model_config()
    torch.manual_seed(0)
    for codec, empty in codecs(checkpoint):
        latents = torch.randn(1, config.in_channels, config.chunk, config.sample_height, config.sample_width)
        _, memory = codec.decode(latents)
        taken = peak_live_bytes(partial(codec.decode, latents, memory))
        assert taken == decoding_scratch(empty(), config) > 0


def test_wan_s_decoder_takes_what_the_plan_says():
    sizes = {"base_dim": 16, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1, "z_dim": 4}
    more = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    torch.manual_seed(0)
    codec, config = WanCodec(AutoencoderKLWan(**sizes, **more)), MODEL_CONFIGS["debug"]
    with torch.device("meta"):
        empty = WanCodec(AutoencoderKLWan(**sizes, **more))
    latents = torch.randn(1, config.in_channels, config.chunk, config.sample_height, config.sample_width)
    _, memory = codec.decode(latents)
    assert peak_live_bytes(partial(codec.decode, latents, memory)) == decoding_scratch(empty, config) > 0


def test_streams_decode_one_at_a_time(checkpoint, monkeypatch):
    """So that the plan, which counts the scratch memory of one decoding, is right."""
    job, inside, most = prepare(RED, checkpoint, chunks=6)[0], [], []
    lock = threading.Lock()
    with Session(job, memory=1 << 40) as session:
        decode = session._decoder.args[0].decode

        def watched(*inputs):
            with lock:
                inside.append(1)
                most.append(len(inside))
            time.sleep(0.01)
            made = decode(*inputs)
            with lock:
                inside.pop()
            return made

        monkeypatch.setattr(session._decoder.args[0], "decode", watched)
        for seed in range(3):
            session.admit(replace(job, seed=seed), NullSink(), frames=72)
        session.run()
    assert len(most) == 18
    assert set(most) == {1}


def test_a_video_begins_without_a_plan(checkpoint):
    """The plan loads a compiler, which takes a second; what is asked for needs none."""
    code = (
        "import sys; from runtime.session.replay import new; "
        f"order = new({RED!r}, {str(checkpoint)!r}, scale=None, seconds=3); assert order.scale == 4; "
        "assert 'torch._dynamo' not in sys.modules; "
        "order.job.plan(); assert 'torch._dynamo' in sys.modules"  # else this test would mean nothing
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
