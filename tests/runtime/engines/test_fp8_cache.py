"""A cache in float8: the bytes that are cached, and rollouts that equal a cache quantised from outside."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from kit.tiny.models import draw

from bench.caches.engines import StoredCache
from bench.harness.subject import RandomText, random_model
from plugins.errors import UserError
from runtime.cli.run import main
from runtime.engines.base import EagerEngine
from runtime.engines.layers.cache_formats import Scaled
from runtime.engines.layers.fp8_cache import PackedEntries, choose_fp8_cache
from runtime.planning.request import prepare
from runtime.prompts.sources import FixedPrompts
from runtime.resume.sidecar import describe_model, sidecar_path
from runtime.rollout.rollout import Rollout
from vmla.config import MODEL_CONFIGS, named_config
from vmla.scheduler import Sampler

pytestmark = pytest.mark.cpu

CPU = torch.device("cpu")
CONFIG = MODEL_CONFIGS["debug"]


@pytest.mark.parametrize("name, width", [("debug", 16 + 2 + 16), ("wan-1.3b", 192 + 12 + 64)])
def test_an_entry_s_bytes_are_its_codes_its_scales_and_its_rotary_key(name, width):
    config = named_config(name)
    entry, form = PackedEntries(config), Scaled("fp8", bits=8, rotary=config.qk_rope_head_dim)
    entries = draw(2, 1, 5, config.entry_width, seed=3)
    entries[0, 0, 0] = 0
    packed = entry.pack(entries)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 1, 5, width)
    assert entry.width == width == form.bytes_per_token(config.entry_width)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(entry.unpack(packed, dtype), form.unpack(form.pack(entries), dtype))
        assert torch.equal(entry.unpack(packed[:, :, 1:2], dtype), entry.unpack(packed, dtype)[:, :, 1:2])
    error = (entry.unpack(packed, torch.float32) - entries).norm() / entries.norm()
    assert error < 0.04  # e4m3: 2^-4 at most
    assert not entry.unpack(torch.zeros_like(packed), torch.float32).any()


def engine(model, **options):
    return EagerEngine(model, RandomText(CONFIG), device=CPU, dtype=torch.float32, **options)


def chunks_of(one, count=4):
    made = Rollout(one, FixedPrompts("a star"), Sampler(kind="renoise", steps=2), seeds=[1])
    found = []
    for _ in range(count):
        found.append(made.denoise())
        made.update_cache()
    return torch.stack(found), made.buffers.cache


def test_a_rollout_equals_one_whose_cache_is_quantised_from_outside():
    model = random_model(CONFIG)
    form = Scaled("fp8", bits=8, rotary=CONFIG.qk_rope_head_dim)
    made, cache = chunks_of(engine(model, fp8_cache=True))
    outside, _ = chunks_of(StoredCache(engine(model), form, batch=1))
    plain, wide = chunks_of(engine(model))
    assert torch.equal(made, outside)
    assert cache.nbytes == wide.nbytes * PackedEntries(CONFIG).width // (4 * CONFIG.entry_width)
    assert torch.equal(made[0], plain[0])  # whose window is empty
    error = (made[1:] - plain[1:]).norm() / plain[1:].norm()
    assert 1e-5 < error < 0.2


def test_it_is_recorded_repeated_and_not_mistaken_for_another(checkpoint, tmp_path):
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    asked = ["--prompt", "a star", "--checkpoint", str(checkpoint), "--chunks", "3", "--scale", "1"]
    done = CliRunner().invoke(main, [*asked, "--cache", "fp8", "-o", str(first)])
    assert done.exit_code == 0, done.output
    assert "cache: fp8" in done.output
    done = CliRunner().invoke(main, ["--repeat", str(sidecar_path(first)), "-o", str(again)])
    assert done.exit_code == 0, done.output
    assert first.read_bytes() == again.read_bytes()


def test_the_plan_counts_its_bytes(checkpoint):
    job, wide = (prepare("a star", checkpoint, chunks=1, cache=cache)[0] for cache in ("fp8", None))
    assert job.fp8_cache and not wide.fp8_cache
    assert describe_model(job)["cache"] == "fp8" and describe_model(wide)["cache"] is None
    own = [one.plan().own["latent cache"] for one in (job, wide)]
    config = job.checkpoint.model_config()
    assert own[0] * 4 * config.entry_width == own[1] * PackedEntries(config).width
    assert job.plan().cache_bytes_per_token_and_layer == PackedEntries(config).width


def test_what_cannot_be_is_refused():
    assert not choose_fp8_cache(None, CONFIG, Path("engine"))
    with pytest.raises(UserError, match="leave out --cache, or say --engine eager"):
        choose_fp8_cache("fp8", CONFIG, Path("engine"))
    with pytest.raises(UserError, match="layout mha has none"):
        choose_fp8_cache("fp8", replace(CONFIG, layout="mha"), None)
    with pytest.raises(ValueError, match="not the model's own"):
        engine(random_model(CONFIG), fp8_cache=True, as_it_is=True)
