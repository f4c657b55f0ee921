"""A text encoder on another device than the model: `meta` stands for the GPU, which has no numbers here."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from kit.refusals import assert_one_line

from plugins.errors import UserError
from runtime.cli.run import main
from runtime.engines.base import EagerEngine
from runtime.engines.compiled import CompiledEngine
from runtime.planning.request import prepare
from runtime.resume.sidecar import describe_model
from runtime.session.generate import load_session
from runtime.session.session import Session
from vmla.cli.options.device import choose_text_device
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

CPU, ELSEWHERE, GPU = (torch.device(name) for name in ("cpu", "meta", "cuda"))
RED = "a red star bouncing on a navy background"


@pytest.fixture
def opened(checkpoint):
    return open_checkpoint(checkpoint)


@pytest.fixture
def job(checkpoint):
    return prepare(RED, checkpoint, chunks=1)[0]


def places(text):
    return {parameter.device for parameter in text.encoder.parameters()}


@pytest.mark.parametrize(("asked", "encoder"), [(None, ELSEWHERE), (CPU, CPU)])
def test_a_model_gets_embeddings_where_it_is(opened, asked, encoder):
    text = opened.text()
    engine = EagerEngine(
        opened.transformer(), text, device=ELSEWHERE, dtype=torch.bfloat16, text_device=asked
    )
    text_kv = engine.encode_prompt([RED])
    assert (text_kv.device, text_kv.dtype) == (ELSEWHERE, torch.bfloat16)
    assert places(text) == {encoder}
    assert {parameter.dtype for parameter in text.encoder.parameters()} == {torch.float32}


def test_a_compiled_prompt_step_gets_embeddings_where_it_is(opened):
    text, config, taken = opened.text(), opened.model_config(), []
    spec = SimpleNamespace(name="text", shape=(1, config.text_tokens, config.text_dim), dtype="float32")
    manifest = SimpleNamespace(
        model=config.to_dict(), cache={"dtype": "float32"}, host=SimpleNamespace(device="meta"),
        programs={"prompt": SimpleNamespace(inputs=[spec])},
    )  # fmt: skip
    programs = {"prompt": lambda embeddings: taken.append(embeddings) or [embeddings]}
    engine = CompiledEngine(manifest, programs, text, text_device=CPU)
    engine.encode_prompt([RED])
    assert taken[0].device == ELSEWHERE and places(text) == {CPU}


def test_a_name_of_the_model_s_own_device_is_no_other_device(monkeypatch):
    monkeypatch.setattr("vmla.cli.options.device.choose_device", torch.device)
    assert choose_text_device("auto", GPU) is GPU
    assert choose_text_device("cuda:0", GPU) is GPU
    assert choose_text_device("cuda:1", GPU) == torch.device("cuda:1")
    assert choose_text_device("cpu", GPU) == CPU


def test_it_is_recorded_and_shown_where_it_is_another_device(job):
    assert describe_model(job)["text_device"] is None
    apart = replace(job, device=ELSEWHERE, text_device=CPU)
    assert describe_model(apart)["text_device"] == "cpu"
    assert "text encoder: on cpu" in apart.what_runs()
    assert not [line for line in job.what_runs() if "text encoder" in line]
    with Session(job) as session, pytest.raises(UserError, match="another text_device"):
        session.admit(replace(job, text_device=ELSEWHERE), None, frames=12)


def test_a_repeat_takes_it_from_the_sidecar(checkpoint, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments])

    asked = ("--prompt", RED, "--checkpoint", checkpoint, "--chunks", 1, "--device", "cpu")
    assert run(*asked, "--text-device", "cpu", "-o", tmp_path / "a.mp4").exit_code == 0
    path = tmp_path / "a.mp4.json"
    told = json.loads(path.read_text())
    assert told["text_device"] is None  # the model's own
    assert run("--repeat", path, "--text-device", "cpu", "--dry-run").exit_code == 0
    path.write_text(json.dumps(told | {"text_device": "teapot"}))
    assert_one_line(run("--repeat", path, "--dry-run"), "no device 'teapot'")
    del told["text_device"]  # as earlier versions wrote it
    path.write_text(json.dumps(told))
    assert run("--repeat", path, "--dry-run").exit_code == 0


def test_a_session_on_a_gpu_that_is_full_names_the_remedy(job):
    plan = replace(job, device=GPU, text_device=GPU).plan()
    with Session(job, memory=plan.bytes_for(1) - 1) as session:
        session.plan = plan
        with pytest.raises(UserError, match="hold 0 videos and no more; .* --text-device cpu$"):
            session.admit(job, None, frames=12)


@pytest.mark.parametrize("text_device", [GPU, CPU])
def test_a_gpu_without_room_for_the_weights_names_the_remedy(job, monkeypatch, text_device):
    def load(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("runtime.planning.job.EagerEngine", load)
    with pytest.raises(UserError, match="cannot load the model: .*CUDA out of memory") as refusal:
        load_session(replace(job, device=GPU, text_device=text_device))
    assert ("--text-device cpu keeps the text encoder off cuda" in str(refusal.value)) == (text_device == GPU)
