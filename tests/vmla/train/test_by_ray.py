"""A Ray cluster renders and encodes the clips of one machine; what is done is not done again."""

import sys

import pytest
import torch
from click.testing import CliRunner
from kit.videos import write_video

from vmla.cluster.library import OF_THIS_MACHINE, QUIET
from vmla.train.cli.commands import main
from vmla.train.loop.state import read_state


def command(*words):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=4 * torch.get_num_threads(), **QUIET, **OF_THIS_MACHINE)
    yield ray
    ray.shutdown()


@pytest.mark.ray
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
    for name in files:
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    (tmp_path / "many" / files[0]).unlink()
    stamps = {name: (tmp_path / "many" / name).stat().st_mtime_ns for name in files[1:-1]}
    assert "1 of 1 shards" in command(*asked, "-o", tmp_path / "many", "--ray")
    assert stamps == {name: (tmp_path / "many" / name).stat().st_mtime_ns for name in stamps}
    assert (tmp_path / "many" / files[0]).exists()


@pytest.mark.ray
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


@pytest.mark.cpu
@pytest.mark.parametrize("words", [("encode", "prompts.txt"), ("render", "debug")])
def test_who_lacks_ray_is_told_what_installs_it(words, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red star\n")
    done = CliRunner().invoke(main, [*words, "--with", str(checkpoint), "-o", "made", "--ray"])
    assert (done.exit_code, "videomla[ray]" in done.output) == (2, True)
