"""Checkpoints to and from the hub, against a stand-in that speaks its protocol."""

import re
import socket
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line
from kit.stand_ins.hub import StandInHub

import runtime.cli.run
import vmla.train.cli.commands
from plugins.errors import UserError
from vmla.train.publish import push as pushing
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.locate import TRANSFORMER, Hub, find_checkpoint, locate

pytestmark = pytest.mark.cpu

PROMPT = "a red star bouncing on a navy background"


@pytest.fixture(scope="module")
def server():
    with StandInHub() as server:
        yield server


@pytest.fixture
def hub(server, tmp_path):
    return Hub(endpoint=server.endpoint, cache=tmp_path / "cache")


@pytest.fixture(scope="module")
def published(server, checkpoint):
    """The name of a repository that holds the checkpoint."""
    server.put("someone/small", checkpoint)
    return "someone/small"


def make(monkeypatch, hub, *arguments):
    """`vmla-run` with the hub of the test."""
    monkeypatch.setattr("runtime.planning.request.find_checkpoint", partial(find_checkpoint, hub=hub))
    return CliRunner().invoke(runtime.cli.run.main, [str(a) for a in arguments])


def test_a_repository_is_downloaded_once_and_found_again_offline(server, hub, published, checkpoint):
    found = find_checkpoint(published, hub=hub)
    assert found.model_hash() == open_checkpoint(checkpoint).model_hash()
    assert found.sampler() == open_checkpoint(checkpoint).sampler()
    assert found.name == "small"
    server.asked.clear()
    again = find_checkpoint(f"{published}@{server.sha(published)}", hub=Hub(cache=hub.cache, offline=True))
    assert again.folder == found.folder
    assert server.asked == []
    assert find_checkpoint(f"{published}@main", hub=hub).folder == found.folder


def test_the_hubs_own_switch_for_offline_use_holds(server, hub, published, monkeypatch):
    found = find_checkpoint(published, hub=hub)
    server.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_checkpoint(published, hub=hub).folder == found.folder
    with pytest.raises(UserError, match="was not downloaded before"):
        find_checkpoint("someone/other", hub=hub)
    assert server.asked == []


def test_the_command_makes_the_video_of_the_folder(server, hub, published, checkpoint, monkeypatch, tmp_path):
    asked = ("--prompt", PROMPT, "--chunks", 1)
    for name, output in ((checkpoint, "a.mp4"), (published, "b.mp4")):
        result = make(monkeypatch, hub, *asked, "--checkpoint", name, "-o", tmp_path / output)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    repeated = make(monkeypatch, None, "--repeat", tmp_path / "b.mp4.json", "-o", tmp_path / "c.mp4")
    assert repeated.exit_code == 0, repeated.output


def test_a_folder_of_that_name_wins(hub, published, checkpoint, monkeypatch, tmp_path):
    Path(tmp_path / "someone").mkdir()
    (tmp_path / "someone" / "small").symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(published, hub=hub).folder == Path(published)


def test_what_the_hub_does_not_have_is_refused_in_a_line(server, hub, published, monkeypatch, tmp_path):
    server.repos["wan/whole"] = {
        "model_index.json": b'{"_class_name": "WanPipeline"}',
        "transformer/big": b"0",
    }
    server.repos["someone/weights"] = {"model.pt": b"0"}
    for name, *said in (
        ("someone/other", "there is no someone/other"), (f"{published}@v9", "no revision v9"),
        ("wan/whole", "WanPipeline", "vmla-train convert --from wan/whole"),
        ("someone/weights", "has no model_index.json; make one of it: vmla-train convert --from someone"),
    ):  # fmt: skip
        result = make(monkeypatch, hub, "--prompt", PROMPT, "--checkpoint", name, "-o", tmp_path / "a.mp4")
        assert_one_line(result, *said)
    assert ("GET", "wan/whole/resolve/main/transformer/big") not in server.asked
    with pytest.raises(UserError, match="was not downloaded before"):
        find_checkpoint("someone/other", hub=Hub(cache=hub.cache, offline=True))
    away = Hub(endpoint="http://127.0.0.1:9", cache=hub.cache)
    with pytest.raises(UserError, match="out of reach"):
        find_checkpoint("someone/other", hub=away)


def test_what_no_video_is_made_of_is_refused_before_it_is_downloaded(server, hub):
    """By the list of files and by the index, since such a repository has a hundred gigabytes."""
    index = {"model_index.json": b'{"_class_name": "WanPipeline"}', "transformer/config.json": b"{}"}
    server.repos |= {
        "them/experts": {**index, "transformer_2/config.json": b"{}"},
        "them/bounded": {**index, "model_index.json": b'{"boundary_ratio": 0.875}'},
        "them/release": {"high_noise_model/config.json": b"{}", "config.json": b"{}"},
        "them/pictures": {**index, "image_encoder/config.json": b"{}"},
        "them/vace": {**index, "model_index.json": b'{"_class_name": "WanVACEPipeline"}'},
        "them/files": {"README.md": b"", "checkpoints/x.pt": b"0", "checkpoints/y.pt": b"0"},
        "them/words": {"README.md": b""},
    }
    server.asked.clear()
    for name, complaint in (
        ("experts", "them/experts is of Wan2.2's two-expert model (transformer_2)"),
        ("bounded", "two-expert model (boundary_ratio)"), ("release", "two-expert model (high_noise_model)"),
        ("pictures", "another family, image-to-video (it has image_encoder/config.json); use"),
        ("vace", "them/vace is of another family (WanVACEPipeline); use a text-to-video model"),
        ("files", "them/files is not the folder of a model; name a file of it: them/files:checkpoints/x.pt"),
        ("words", "it has no file of weights either"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=re.escape(complaint)):
            locate(f"them/{name}", hub=hub)
    fetched = {path for _, path in server.asked if "/resolve/" in path}
    assert all(path.endswith("model_index.json") for path in fetched)
    found = locate("them/experts", hub=hub, leave=TRANSFORMER)  # its codec is Wan2.1's
    assert (found / "model_index.json").exists()


def test_of_a_folder_that_gives_other_parts_the_transformer_is_left_there(server, hub, published):
    server.asked.clear()
    found = locate(published, hub=Hub(endpoint=hub.endpoint, cache=hub.cache), leave=TRANSFORMER)
    assert {path.name for path in found.iterdir()} >= {"vae", "text_encoder", "tokenizer", "transformer"}
    assert [path.name for path in (found / "transformer").iterdir()] == ["config.json"]
    assert not [
        path for _, path in server.asked if path.endswith("transformer/diffusion_pytorch_model.safetensors")
    ]
    whole = find_checkpoint(published, hub=hub)
    assert whole.weights_path("transformer").exists()


def test_what_is_pushed_is_what_is_found_with_a_card(server, hub, checkpoint):
    said = []
    url = pushing.push(checkpoint, "me/new", said.append, hub=hub)
    assert url.startswith(f"{server.endpoint}/me/new/commit/")
    assert server.commits["me/new"] == ["Upload debug"]
    card = server.repos["me/new"]["README.md"].decode()
    assert "vmla-run --checkpoint me/new" in card
    assert "attention layout `mla`" in card
    assert "license" not in card  # nobody has said which
    assert find_checkpoint("me/new", hub=hub).model_hash() == open_checkpoint(checkpoint).model_hash()


def test_a_folder_keeps_its_own_card_and_what_is_not_whole_stays(server, hub, checkpoint, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in checkpoint.iterdir():
        (whole / path.name).symlink_to(path)
    (whole / "README.md").write_text("# Mine")
    (whole / ".secret").write_text("not for others")
    pushing.push(whole, "me/mine", lambda line: None, hub=hub)
    assert server.repos["me/mine"]["README.md"] == b"# Mine"
    assert ".secret" not in server.repos["me/mine"]
    (whole / "vae").unlink()
    push = ("push", str(whole), "me/part")
    assert_one_line(CliRunner().invoke(vmla.train.cli.commands.main, push), "no folder vae")
    bad = ("push", str(checkpoint), "me")
    assert_one_line(CliRunner().invoke(vmla.train.cli.commands.main, bad), "is not a repository")
    assert "me/part" not in server.repos


def test_a_hub_that_is_silent_is_given_up_within_seconds(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("vmla.weights.locate.PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, caplog.at_level("INFO", "vmla"):
        away = Hub(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", cache=tmp_path)
        began = time.monotonic()
        with pytest.raises(UserError, match="runs/x is nothing here, .* the hub is out of reach"):
            find_checkpoint("runs/x", hub=away)
        assert time.monotonic() - began < 10  # and not for ever: nothing is ever answered
    assert caplog.messages[0].startswith("nothing here is called runs/x: asking http://127.0.0.1")
