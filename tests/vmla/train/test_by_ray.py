"""A Ray cluster renders and encodes the clips of one machine; what is done is not done again."""

import json
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from kit.files.videos import write_video
from safetensors.torch import load_file

from plugins.documents.tensor_header import read_header
from vmla.cluster.library import OF_THIS_MACHINE, QUIET
from vmla.train.cli.commands import main
from vmla.train.data import by_ray
from vmla.train.loop.state import read_state

pytestmark = pytest.mark.cpu


def held(path):
    """What a file of an encoded set holds; the order of names in its header is any."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    header = read_header(path, mend="").metadata
    return header, {name: tensor.tolist() for name, tensor in load_file(path).items()}


def command(*words):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


class OneAfterTheOther:
    """Stands for Ray: actors in this process, to which everything travels as between processes."""

    exceptions = SimpleNamespace(RayActorError=KeyError, RayTaskError=ValueError)

    def cluster_resources(self):
        return {"CPU": 4.0 * torch.get_num_threads()}

    def remote(self, **sizes):
        return lambda kind: SimpleNamespace(remote=lambda *told: self._actor(kind(*_sent(told))))

    def _actor(self, here):
        return SimpleNamespace(
            make=SimpleNamespace(remote=lambda piece: _Result(here.make(*_sent([piece])))),
            __ray_ready__=SimpleNamespace(remote=lambda: _Result(True)),
        )

    def wait(self, results, timeout):
        return results, []

    def get(self, result):
        return result.value

    def kill(self, actor):
        pass


class _Result:
    def __init__(self, value):
        self.value = value


def _sent(values):
    return pickle.loads(pickle.dumps(values))


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.ray)])
def cluster(request, monkeypatch):
    """A real cluster, or what stands for one."""
    if not request.param:
        monkeypatch.setattr(by_ray, "connect", OneAfterTheOther)
        yield
        return
    ray = pytest.importorskip("ray")
    if ray.is_initialized():  # that of the tests before, which lasts
        ray.shutdown()
    ray.init(num_cpus=4 * torch.get_num_threads(), **QUIET, **OF_THIS_MACHINE)
    yield
    ray.shutdown()


def test_a_cluster_encodes_what_one_machine_encodes(cluster, checkpoint, tmp_path):
    (tmp_path / "videos").mkdir()
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", seed=number)
        (tmp_path / "videos" / f"{number}.txt").write_text(f"a red star {number}")
    write_video(tmp_path / "videos" / "silent.mp4")
    asked = ("encode", tmp_path / "videos", "--with", checkpoint, "--frames", 3, "--shard", 1)
    command(*asked, "-o", tmp_path / "one")
    said = command(*asked, "-o", tmp_path / "many", "--ray")
    assert "skipped silent.mp4: it has no caption" in said
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "many").iterdir())
    assert len(files) == 5
    for name in files:
        assert held(tmp_path / "many" / name) == held(tmp_path / "one" / name)
    (tmp_path / "many" / files[0]).unlink()
    stamps = {name: (tmp_path / "many" / name).stat().st_mtime_ns for name in files[1:-1]}
    assert "1 of 1 shards" in command(*asked, "-o", tmp_path / "many", "--ray")
    assert stamps == {name: (tmp_path / "many" / name).stat().st_mtime_ns for name in stamps}
    assert (tmp_path / "many" / files[0]).exists()


def test_a_cluster_renders_what_one_machine_renders(cluster, checkpoint, tmp_path):
    asked = ("render", "debug", "--with", checkpoint)
    command(*asked, "-o", tmp_path / "one")
    assert "shards, by" in command(*asked, "-o", tmp_path / "many", "--ray")
    assert "shards, by" not in command(*asked, "-o", tmp_path / "many", "--ray")
    files = sorted((tmp_path / "one").glob("latents-*.pt"))
    assert files
    for path in files:
        one, many = read_state(path), read_state(tmp_path / "many" / path.name)
        assert one["settings"] == many["settings"]
        assert all(torch.equal(one[name], many[name]) for name in one if name != "settings")


@pytest.mark.parametrize("words", [("encode", "prompts.txt"), ("render", "debug")])
def test_who_lacks_ray_is_told_what_installs_it(words, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red star\n")
    done = CliRunner().invoke(main, [*words, "--with", str(checkpoint), "-o", "made", "--ray"])
    assert (done.exit_code, "videomla[ray]" in done.output) == (2, True)
