"""`vmla-serve --precision` and `--cache`: what they choose, and what becomes of streams."""

import pytest
import torch
from click.testing import CliRunner
from kit.processes.serving import RED, serving
from kit.refusals import assert_one_line
from safetensors.torch import load

from runtime.cli.serve import job_of
from runtime.cli.serve import main as serve
from runtime.engines.layers.fp8_cache import PackedEntries

pytestmark = pytest.mark.cpu


def job(*words):
    return job_of(serve.make_context("vmla-serve", [str(word) for word in words]).params)


def test_the_cache_is_chosen_as_for_one_video_and_said(checkpoint):
    narrow, plain = (job("--checkpoint", checkpoint, *more) for more in (("--cache", "fp8"), ()))
    assert narrow.fp8_cache and not narrow.fp8 and not plain.fp8_cache
    assert "cache: fp8, rotary keys in bfloat16" in narrow.what_runs()
    assert narrow.plan().video_bytes < plain.plan().video_bytes


def test_float8_layers_are_for_a_gpu_and_are_refused_elsewhere_in_one_line(checkpoint, tmp_path):
    asked = ("--checkpoint", checkpoint, "--device", "cpu", "--precision", "fp8", "--store", tmp_path / "new")
    done = CliRunner().invoke(serve, [str(word) for word in asked])
    assert_one_line(done, "--precision fp8 is for a GPU")
    assert not (tmp_path / "new").exists()


def state_of(server, name):
    answer = server.http.get(f"/v1/sessions/{name}/state")
    assert answer.status_code == 200, answer.text
    return answer.content, int(answer.headers["x-sequence-number"])


def test_streams_of_a_cache_in_float8_move_between_servers_that_have_one(checkpoint, tmp_path):
    with (
        serving(checkpoint, tmp_path / "one", cache="fp8") as one,
        serving(checkpoint, tmp_path / "two", cache="fp8") as two,
        serving(checkpoint, tmp_path / "plain") as plain,
    ):
        begun = one.http.post("/v1/sessions", json={"prompt": RED, "seed": 4, "seconds": 6}).json()
        one.until(begun["id"], sequence_number=3)
        (state, number), url = state_of(one, begun["id"]), f"/v1/sessions/{begun['id']}/state"
        held = load(state)
        assert any(part.dtype == torch.uint8 and part.shape[-1] == width(one) for part in held.values())
        refused = plain.http.put(url, content=state)
        assert refused.status_code == 422 and "cache" in refused.text
        assert two.http.put(url, content=state).status_code in (200, 201)
        with one.watch(session_id=begun["id"], sequence_number=number) as here:
            stayed = here.all().chunks
        with two.watch(session_id=begun["id"], sequence_number=number) as there:
            moved = there.all().chunks
        assert moved and [media[event["head_length"] :] for event, media in moved] == [
            media[event["head_length"] :] for event, media in stayed
        ]


def width(server):
    return PackedEntries(server.streams.worker.job.checkpoint.model_config()).width
