"""Every document that a run reads, damaged at random: it is as good as whole, or refused in one line."""

import json
import random
import shutil
from dataclasses import replace

import pytest
from kit.files.damage import damaged
from kit.tiny.checkpoints import debug_checkpoint

from export.build import describe
from export.checks import check_engine
from export.engine.manifest import CONTENT, NAME, Manifest, _hash
from export.inspect import describe as lines_of
from export.settings import Settings
from plugins.errors import UserError
from runtime.planning.plan import check_cache
from runtime.resume.sidecar import describe_job, write_sidecar
from runtime.session.replay import new, repeat
from vmla.config import ModelConfig, named_config
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.uninitialised import WithoutStorage

pytestmark = pytest.mark.cpu

RED = "a red star bouncing on a navy background"


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A checkpoint of one's own, to be damaged."""
    return debug_checkpoint(tmp_path_factory.mktemp("mine") / "debug")


def outcomes(path, rng, count, use):
    """How many of `count` damaged copies of the JSON file `path` are used, and how many are refused."""
    text, used, refused = path.read_text(), 0, 0
    for _ in range(count):
        path.write_text(json.dumps(damaged(json.loads(text), rng)))
        try:
            use()
            used += 1
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    path.write_text(text)
    return used, refused


PARTS = {
    "model_index.json": lambda opened: opened.world(),
    "transformer/config.json": lambda opened: opened.transformer(),
    "vae/config.json": lambda opened: opened.codec(),
    "text_encoder/config.json": lambda opened: opened.text()([RED]),
    "tokenizer/tokenizer_config.json": lambda opened: opened.text(),
    "scheduler/scheduler_config.json": lambda opened: opened.sampler().sigmas(),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_checkpoint_s_settings(mine, name):
    used, refused = outcomes(mine / name, random.Random(name), 20, lambda: PARTS[name](open_checkpoint(mine)))
    assert used + refused == 20 and (refused or name == "model_index.json")


def test_a_sidecar(mine, tmp_path):
    order = new(RED, mine, scale=1, chunks=2)
    video = describe_job(order.job, frames=order.frames, scale=1)
    write_sidecar(tmp_path / "a.mp4", video, {"complete": True})
    path = tmp_path / "a.mp4.json"
    assert repeat(path, {}).frames == order.frames
    used, refused = outcomes(path, random.Random(1), 60, lambda: repeat(path, {}))
    assert used + refused == 60 and refused > 20


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_a_manifest_whose_hash_is_made_to_fit(mine, tmp_path, precision):
    manifest = describe(open_checkpoint(mine), Settings(backend="onnx", precision=precision))
    made = replace(manifest, files={"step.onnx": "0" * 64, "prompt.onnx": "0" * 64})
    made.write(tmp_path)
    path, rng, refused = tmp_path / NAME, random.Random(precision), 0
    values = json.loads(path.read_text())
    del values[CONTENT]
    for _ in range(60):
        odd = damaged(values, rng)
        path.write_text(json.dumps({**odd, CONTENT: _hash(odd)}))
        try:
            read = Manifest.read(tmp_path)
            check_engine(read, tmp_path, open_checkpoint(mine), batch=read.batch)
            assert all(isinstance(line, str) for line in lines_of(read))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 20 < refused < 60
    shutil.rmtree(tmp_path)


def test_a_model_has_its_shapes_before_it_takes_any_room():
    with WithoutStorage():
        model = VideoMLA(named_config("wan-14b"))
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in
            model.state_dict().values()}  # fmt: skip
    assert sum(held.values()) < 2**16
    assert model.blocks[39].ffn.up.weight.shape == (13824, 5120)
    assert sum(parameter.numel() for parameter in model.parameters()) > 12e9


def test_a_cache_that_does_not_fit_is_refused_before_it_is_made(mine):
    """No weight of such a model tells its picture's size: nothing but the cache depends on it."""
    path = mine / "transformer" / "config.json"
    text = path.read_text()
    large = {"sample_height": 4096, "sample_width": 4096, "history": 4096}
    path.write_text(json.dumps({**json.loads(text), **large}))
    with pytest.raises(UserError, match=r"the cache of this model takes [\d,]+ bytes, cpu has [\d,]+ free"):
        new(RED, mine, scale=1, chunks=2)
    path.write_text(text)
    order = new(RED, mine, scale=1, chunks=2)
    config: ModelConfig = order.job.checkpoint.model_config()
    assert check_cache(config, order.job.dtype, order.job.device) is None
