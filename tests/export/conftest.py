"""One engine of each backend that runs here, built once."""

import pytest
from click.testing import CliRunner

from export.cli import main


@pytest.fixture(scope="session")
def build_engine(checkpoint, tmp_path_factory):
    """Build an engine of the debug model, by the command."""

    def build(*options):
        folder = tmp_path_factory.mktemp("engines") / "engine"
        command = ["build", "--checkpoint", str(checkpoint), "-o", str(folder), *options]
        result = CliRunner().invoke(main, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return folder

    return build


@pytest.fixture(scope="session")
def aoti_engine(build_engine):
    """Takes half a minute."""
    return build_engine("--backend", "aoti")


@pytest.fixture(scope="session")
def onnx_engine(build_engine):
    """A graph for ONNX Runtime."""
    return build_engine("--backend", "onnx")


@pytest.fixture(scope="session", params=["aoti", "onnx"])
def engine_folder(request):
    """The engine of each backend in turn; read only."""
    return request.getfixturevalue(f"{request.param}_engine")
