"""`vmla-serve` means by its options what `vmla-run` means by them."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line

from runtime.cli.run import main as run
from runtime.cli.serve import LIKE_RUN
from runtime.cli.serve import main as serve
from runtime.planning.compute import FASTEST
from runtime.planning.request import prepare
from runtime.serve.edge.settings import Limits

pytestmark = pytest.mark.cpu


def option(command, name):
    return next(one for one in command.params if one.name == name)


@pytest.mark.parametrize("name", [*LIKE_RUN, "engine", "config", "save_every"])
def test_options_that_both_have_are_called_alike_and_default_to_the_same(name):
    ours, theirs = option(serve, name), option(run, name)
    assert (ours.opts, ours.secondary_opts) == (theirs.opts, theirs.secondary_opts)
    assert ours.default == theirs.default
    wanted = theirs.type.to_info_dict()
    if name == "dtype":  # measured at each start, the type might not be that of the streams that were kept
        wanted["choices"] = tuple(choice for choice in wanted["choices"] if choice != FASTEST)
    assert ours.type.to_info_dict() == wanted


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff" * 20, "not UTF-8 text"),
        (b"k" * 70_000, "more than 65,536 bytes"),
        (b"short\n", "at least 16"),
        (b"\0" * 40, "printable"),
    ],
)
def test_a_file_that_holds_no_keys_opens_no_server(tmp_path, content, said):
    (tmp_path / "keys").write_bytes(content)
    result = CliRunner().invoke(serve, ["--api-key", str(tmp_path / "keys")])
    assert_one_line(result, said)


def test_what_is_handed_on_is_known_where_it_is_read():
    import inspect

    assert set(LIKE_RUN) <= inspect.signature(prepare).parameters.keys()


def test_a_server_decides_about_compiling_by_its_longest_stream(checkpoint):
    job, _ = prepare("a video", checkpoint, seconds=Limits().stream_seconds, compiled=None, device="auto")
    assert job.chunks * 12 >= Limits().stream_seconds * 16 - 12
    assert job.compiled == (job.device.type == "cuda")


def test_a_server_that_cannot_start_says_why_in_one_line(checkpoint, tmp_path):
    asked = ("--checkpoint", checkpoint, "--port", 0, "--store", tmp_path / "streams", "--memory", "1KiB")
    result = CliRunner().invoke(serve, [str(each) for each in asked])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: 1,024 bytes hold 0 videos and no more")


@pytest.mark.parametrize("name", [".lock", ".relay-key"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_store_whose_files_are_something_else_is_refused_and_nothing_changed(
    checkpoint, tmp_path, name, kind
):
    store, mine = tmp_path / "streams", tmp_path / "mine"
    store.mkdir()
    mine.write_text("mine")
    (store / name).symlink_to(mine) if kind == "link" else os.mkfifo(store / name)
    asked = ("--checkpoint", checkpoint, "--port", 0, "--store", store, "--shared")
    assert_one_line(CliRunner().invoke(serve, [str(each) for each in asked]), f"{name}")
    assert mine.read_text() == "mine"


def test_a_model_that_makes_no_chunk_is_named_at_the_start(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "guidance_scale": 1e300}))
    words = ["--checkpoint", str(folder), "--store", str(tmp_path / "streams"), "--port", "0"]
    result = CliRunner().invoke(serve, words)
    assert result.exit_code == 2
    assert "decoding chunk 0 failed: it is not finite" in result.output.splitlines()[-1]
    assert "Traceback" not in result.output
