"""One engine of each backend that runs here, built once."""

import pytest
import torch
from click.testing import CliRunner

from export.engine.signature import contract
from export.lowering.trace import trace_step
from export.onnx import graph as onnx
from runtime.cli.export import main
from runtime.engines.base import EagerEngine
from runtime.engines.compiled import open_engine
from vmla.weights.checkpoint import open_checkpoint


def command(verb, checkpoint, output, *options):
    """Run a verb of `vmla-export` on `checkpoint`."""
    words = [verb, "--checkpoint", str(checkpoint), "-o", str(output), *options]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def build_engine(checkpoint, tmp_path_factory):
    """Build an engine of the debug model, by the command."""

    def build(*options):
        folder = tmp_path_factory.mktemp("engines") / "engine"
        command("build", checkpoint, folder, *options)
        return folder

    return build


@pytest.fixture(scope="session")
def aoti_engine(checkpoint, built_once):
    """Takes half a minute."""
    return built_once("aoti", lambda folder: command("build", checkpoint, folder, "--backend", "aoti"))


@pytest.fixture(scope="session")
def regional_engine(checkpoint, built_once):
    """One layer compiled for all of them."""
    options = ("--backend", "aoti", "--regional")
    return built_once("regional", lambda folder: command("build", checkpoint, folder, *options))


@pytest.fixture(scope="session")
def onnx_engine(checkpoint, built_once):
    """A graph for ONNX Runtime."""
    return built_once("onnx", lambda folder: command("build", checkpoint, folder, "--backend", "onnx"))


@pytest.fixture(scope="session")
def calibration_file(checkpoint, built_once):
    """A calibration of the debug model."""
    options = ("--prompts", "2", "--chunks", "3")
    return built_once("calibration.json", lambda path: command("calibrate", checkpoint, path, *options))


@pytest.fixture(scope="session")
def fp8_engine(checkpoint, built_once, calibration_file):
    """A graph in fp8 for ONNX Runtime."""
    options = ("--backend", "onnx", "--precision", "fp8", "--calibration", str(calibration_file))
    return built_once("fp8", lambda folder: command("build", checkpoint, folder, *options))


@pytest.fixture(scope="session")
def graph_of(checkpoint, tmp_path_factory):
    """Write the debug model's step over all slots, and return the file."""

    def save(*, attention_nodes):
        opened = open_checkpoint(checkpoint)
        signature = contract(opened.model_config(), batch=1)["step"]
        path = tmp_path_factory.mktemp("graph") / "step.onnx"
        program = trace_step(opened.transformer(), batch=1)
        onnx.save(program, signature, path, attention_nodes=attention_nodes)
        return path

    return save


@pytest.fixture(scope="session")
def native_graph(graph_of):
    """With attention written out."""
    return graph_of(attention_nodes=False)


@pytest.fixture(scope="session")
def plugin_graph(graph_of):
    """With attention as nodes for the plugin."""
    return graph_of(attention_nodes=True)


@pytest.fixture(scope="session", params=["aoti", "regional", "onnx"])
def engine_folder(request):
    """The engine of each backend in turn; read only."""
    return request.getfixturevalue(f"{request.param}_engine")


@pytest.fixture(scope="module")
def engine(engine_folder, checkpoint):
    """A loaded engine."""
    with open_engine(engine_folder, open_checkpoint(checkpoint)) as engine:
        yield engine


@pytest.fixture(scope="module")
def eager(checkpoint):
    """The same model in PyTorch."""
    opened = open_checkpoint(checkpoint)
    return EagerEngine(opened.transformer(), opened.text(), device=torch.device("cpu"), dtype=torch.float32)
