"""Which engine runs when none is named: one whose manifest fits in everything, or the model itself."""

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from kit.checkpoints import debug_checkpoint

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
    path = find_engine(checkpoint, device=device, dtype=dtype, engines=shelf)
    return path and path.name


def test_the_fastest_backend_that_fits_is_taken(shelf, opened):
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


def test_a_folder_that_is_not_there_holds_none(opened, tmp_path):
    assert found(tmp_path / "nowhere", opened) is None


@pytest.mark.parametrize(
    ("options", "engine", "reason"),
    [((), "onnx", "found in engines"), (("--engine", "eager"), "eager", "as asked for"),
     (("--dtype", "bfloat16"), "eager", "nothing in engines fits")],
)  # fmt: skip
def test_a_run_says_what_it_took_and_why(
    checkpoint, onnx_engine, tmp_path, monkeypatch, options, engine, reason
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(onnx_engine, tmp_path / "engines" / "debug")
    command = ["--prompt", "a red star", "--checkpoint", str(checkpoint), "--chunks", "1", "-o", "star.mp4"]
    result = CliRunner().invoke(main, [*command, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"engine: {'engines/debug' if engine == 'onnx' else 'eager'} ({reason})" in result.output
    told = json.loads((tmp_path / "star.mp4.json").read_text())
    assert (told["engine"], told["engine_reason"]) == (engine, reason)
    planned = CliRunner().invoke(main, [*command, *options, "--dry-run"])
    assert planned.output.startswith("engine: ")
