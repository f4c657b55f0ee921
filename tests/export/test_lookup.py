"""Which engine runs when none is named: one whose manifest fits in everything, or the model itself."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from kit.tiny.checkpoints import debug_checkpoint

from export.build import describe
from export.engine.manifest import NAME
from export.settings import Settings
from runtime.cli.run import main
from runtime.engines.compiled import find_engine
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu


@pytest.fixture
def opened(checkpoint):
    """The debug model."""
    return open_checkpoint(checkpoint)


@pytest.fixture
def shelf(opened, tmp_path):
    """Manifests of engines that were never built: of two backends, narrow, of two videos, and refuse."""
    settings = {
        "b-aoti": Settings(backend="aoti", precision="fp32"),
        "a-onnx": Settings(backend="onnx", precision="fp32"),
        "a-narrow": Settings(backend="aoti", precision="bf16"),
        "a-pair": Settings(backend="aoti", precision="fp32", batch=2),
        ".a.1.building": Settings(backend="aoti", precision="fp32"),
    }
    for name, asked in settings.items():
        (tmp_path / name).mkdir()
        describe(opened, asked).write(tmp_path / name)
    (tmp_path / "a-broken").mkdir()
    (tmp_path / "a-broken" / NAME).write_text("{")
    return tmp_path


def found(shelf, checkpoint, *, device="cpu", dtype="float32"):
    path, reason = find_engine(checkpoint, device=device, dtype=dtype, engines=shelf)
    assert str(shelf) in reason
    return path and path.name


def test_the_first_backend_that_fits_is_taken(shelf, opened):
    assert found(shelf, opened) == "b-aoti"
    shutil.rmtree(shelf / "b-aoti")
    assert found(shelf, opened) == "a-onnx"
    shutil.rmtree(shelf / "a-onnx")
    assert found(shelf, opened) is None


def test_precision_and_device_are_those_of_the_model_that_would_run(shelf, opened):
    assert found(shelf, opened, dtype="bfloat16") == "a-narrow"
    assert found(shelf, opened, dtype="float16") is None
    assert found(shelf, opened, device="cuda") is None


def test_another_machine_version_or_model_is_passed_over(shelf, opened, tmp_path_factory):
    manifest = describe(opened, Settings(backend="aoti", precision="fp32"))
    for changed in (
        replace(manifest, host=replace(manifest.host, versions={"torch": "1.0"})),
        replace(manifest, host=replace(manifest.host, architecture="riscv64")),
        replace(manifest, model_hash="0" * 64),
    ):
        changed.write(shelf / "b-aoti")
        assert found(shelf, opened) == "a-onnx"
    other = debug_checkpoint(tmp_path_factory.mktemp("other") / "other", seed=1)
    assert found(shelf, open_checkpoint(other)) is None


def test_engines_of_other_models_are_no_reason(shelf, opened):
    config = replace(opened.model_config(), num_layers=9)
    other = SimpleNamespace(model_config=lambda: config, name="mine", folder="mine")
    shutil.rmtree(shelf / "a-broken")
    path, reason = find_engine(other, device="cpu", dtype="float32", engines=shelf)
    assert (path, reason) == (None, f"no engine in {shelf} is of mine")


def test_a_folder_that_is_not_there_holds_none(opened, tmp_path):
    assert found(tmp_path / "nowhere", opened) is None


def test_why_nothing_fits_is_said(shelf, opened, checkpoint, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        path, reason = find_engine(opened, device="cpu", dtype="float16", engines=shelf)
    assert path is None
    assert reason.startswith(f"nothing in {shelf} fits: {shelf / 'a-broken' / NAME} is not valid JSON")
    assert reason.endswith("and 4 others that do not")
    asked = f"{shelf / 'a-narrow'} computes in bf16 on cpu; ask for it with --engine {shelf / 'a-narrow'}"
    assert asked in caplog.messages
    shutil.rmtree(shelf / "a-broken")
    (shelf / "a-broken").symlink_to("/dev")
    assert find_engine(opened, device="cpu", dtype="float16", engines=shelf)[1].startswith(
        f"nothing in {shelf} fits: {asked}"
    )


@pytest.fixture
def own(onnx_engine, tmp_path, monkeypatch):
    """The user's own engine, called `debug`, and a working directory where another lies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    store = tmp_path / "data" / "videomla" / "engines"
    shutil.copytree(onnx_engine, store / "debug")
    shutil.copytree(onnx_engine, tmp_path / "engines" / "another")
    return store


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "engine", "reason"),
    [((), "onnx", "found in {store}"), (("--engine", "eager"), "eager", "as asked for"),
     (("--dtype", "bfloat16"), "eager",
      "nothing in {store} fits: {store}/debug computes in fp32 on cpu; ask for it with --engine "
      "{store}/debug")],
)  # fmt: skip
def test_a_run_says_what_it_took_and_why(checkpoint, own, tmp_path, options, engine, reason):
    reason = reason.format(store=own)
    command = ["--prompt", "a red star", "--checkpoint", checkpoint, "--chunks", 1, "-o", "star.mp4"]
    result = run(*command, *options)
    assert result.exit_code == 0, result.output
    assert f"engine: {own / 'debug' if engine == 'onnx' else 'eager'} ({reason})" in result.output
    told = json.loads((tmp_path / "star.mp4.json").read_text())
    assert (told["engine"], told["engine_reason"]) == (engine, reason)
    planned = run(*command, *options, "--dry-run")
    assert planned.output.startswith("engine: ")


def test_an_engine_in_the_working_directory_is_never_taken(checkpoint, own):
    shutil.rmtree(own)
    planned = run("--prompt", "a red star", "--checkpoint", checkpoint, "--chunks", 1, "--dry-run")
    assert planned.output.startswith(f"engine: eager (no engine in {own})")


def test_a_sidecar_s_engine_runs_if_it_is_one_s_own_or_named(checkpoint, own, tmp_path):
    stranger = tmp_path / "engines" / "another"
    for engine, name in ((own / "debug", "own"), (stranger, "stranger")):
        made = run("--prompt", "a red star", "--engine", engine, "--chunks", 1, "-o", f"{name}.mp4")
        assert made.exit_code == 0, made.output
        again = run("--repeat", f"{name}.mp4.json", "-o", f"{name}-again.mp4")
        if name == "own":
            assert again.exit_code == 0, again.output
            continue
        assert again.exit_code == 2
        assert f"names the engine {stranger}, which is a program and not one of yours" in again.output
        assert f"--engine {stranger}" in again.output and len(again.output.strip().splitlines()) == 1
        named = run("--repeat", f"{name}.mp4.json", "-o", f"{name}-again.mp4", "--engine", stranger)
        assert named.exit_code == 0, named.output
    assert (tmp_path / "own-again.mp4").read_bytes() == (tmp_path / "stranger-again.mp4").read_bytes()
