"""What `--ray` and `--shared` refuse before anything is loaded or started."""

import sys

import pytest
from click.testing import CliRunner

from plugins.errors import UserError
from runtime.cli.cluster.videos import with_absolute_paths
from runtime.cli.run import main as run
from runtime.cli.serve import main as serve
from vmla.cluster.library import room_for

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (run, ("--prompt", "a red star", "--ray"), "--videos"),
        (run, ("--prompt", "a red star", "--cpus-per-replica", "2"), "--ray"),
        (serve, ("--ray", "--shared"), "leave out --shared"),
        (serve, ("--ray", "--replicas", "4:1"), "LEAST:MOST"),
        (serve, ("--ray", "--replicas", "some"), "LEAST:MOST"),
        (serve, ("--replicas", "2"), "--ray"),
        (serve, ("--reached-at", "http://a:1"), "--shared"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(command, arguments, said, tmp_path):
    result = CliRunner().invoke(command, [*arguments, *(("-o", str(tmp_path)) if command is run else ())])
    assert result.exit_code == 2
    assert said in result.output


def test_a_server_that_listens_everywhere_must_say_where_its_sharers_reach_it(checkpoint, tmp_path):
    asked = ("--shared", "--host", "0.0.0.0", "--no-auth", "--port", "0", "--checkpoint", str(checkpoint))
    result = CliRunner().invoke(serve, [*asked, "--store", str(tmp_path / "streams")])
    assert result.exit_code == 2
    assert "--reached-at" in result.output


def test_ray_is_named_with_its_extra_where_it_is_missing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "videos.yaml").write_text("star: a red star\n")
    asked = ("--videos", str(tmp_path / "videos.yaml"), "--ray", "--checkpoint", str(checkpoint))
    result = CliRunner().invoke(run, [*asked, "-o", str(tmp_path / "videos")])
    assert result.exit_code == 2
    assert "videomla[ray]" in result.output
    assert not (tmp_path / "videos").exists()


def test_paths_mean_the_same_in_every_folder_and_names_stay_names(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {"checkpoint": "mine", "engine": None, "seed": 3}
    assert with_absolute_paths(options) == {**options, "checkpoint": str(tmp_path / "mine")}
    assert with_absolute_paths({"checkpoint": "sprites"}) == {"checkpoint": "sprites"}


def test_a_cluster_without_room_is_refused():
    assert room_for({"CPU": 9.0, "GPU": 2.0}, cpus=2, gpus=1.0) == 2
    assert room_for({"CPU": 9.0}, cpus=2, gpus=0.0) == 4
    with pytest.raises(UserError, match="4 processors and a GPU"):
        room_for({"CPU": 9.0}, cpus=4, gpus=1.0)
