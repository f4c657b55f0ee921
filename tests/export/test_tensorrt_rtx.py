"""TensorRT-RTX parses and builds the ONNX graph for real, without a GPU; what it builds cannot run here."""

import pytest
from click.testing import CliRunner

from export import tensorrt_rtx
from export.cli import main as export_main
from export.manifest import Manifest
from runtime.cli import main as run_main
from vmla.errors import UserError

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def engine(build_engine):
    """The debug model in bfloat16 for an Ada GPU."""
    return build_engine("--backend", "tensorrt-rtx", "--target", "sm_89", "--precision", "bf16")


def test_the_engine_is_built_for_its_target(engine):
    manifest = Manifest.read(engine)
    assert (manifest.host.device, manifest.host.architecture) == ("cuda", "sm_89")
    assert sorted(manifest.files) == ["prompt.engine", "step.engine"]
    manifest.check_files(engine)
    assert (engine / "step.engine").stat().st_size > 100_000
    assert "tensorrt_rtx" in manifest.host.versions


def test_other_targets_and_single_precision_build_too(onnx_engine, tmp_path):
    warned = tensorrt_rtx.build(onnx_engine / "prompt.onnx", tmp_path / "prompt.engine", "sm_120")
    assert (tmp_path / "prompt.engine").stat().st_size > 1000
    assert all(isinstance(warning, str) for warning in warned)


def test_what_the_parser_refuses_is_said_in_one_line(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no graph at all")
    with pytest.raises(UserError, match="TensorRT-RTX cannot build bad.onnx for sm_89: ") as refusal:
        tensorrt_rtx.build(tmp_path / "bad.onnx", tmp_path / "bad.engine", "sm_89")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "bad.engine").exists()


def test_it_does_not_run_on_this_machine(engine):
    result = CliRunner().invoke(
        run_main, ["--prompt", "a red star", "--engine", str(engine), "--chunks", "1", "-o", "null"]
    )
    assert result.exit_code == 2
    listed = CliRunner().invoke(export_main, ["list", str(engine.parent)]).output
    assert "does not run here" in listed
