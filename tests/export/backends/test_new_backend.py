"""A backend that nothing else knows of: one class and its name in the registry are all that it takes."""

import json

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.tiny.passes import pass_inputs

from export.backends.base import Backend, Requirement
from export.backends.registry import BACKENDS
from export.engine.manifest import Manifest
from export.settings import Settings
from plugins.errors import UserError
from runtime.cli.export import build
from runtime.cli.export import main as export_main
from runtime.cli.run import main as run_main
from runtime.engines.base import EagerEngine
from runtime.engines.compiled import find_engine, open_engine
from runtime.prompts.sources import FixedPrompts
from runtime.rollout.decoding import NoDecoder
from runtime.rollout.rollout import rollout
from vmla.transformer import StepInputs
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

PROMPT = "a red star bouncing on a navy background"


class Saved(Backend):
    """torch.export's own file of a program, run node by node."""

    name = "saved"
    ending = ".pt2"
    requires = (Requirement(modules=("torch",), extra="none"),)
    pinned = ("torch",)

    def check(self, options):
        super().check(options)
        if options.precision != "fp32":
            raise UserError("backend saved is for fp32 alone; use --precision fp32")

    def compile(self, name, program, manifest, folder):
        torch.export.save(program, folder / f"{name}.pt2")
        return [f"{name} is slow"]

    def load(self, folder, name, manifest):
        run = torch.export.load(folder / f"{name}.pt2").module()

        def program(*tensors):
            made = run(*tensors)
            return (made,) if isinstance(made, torch.Tensor) else made

        return program


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, Saved.name, Saved())
        (option,) = (part for part in build.params if part.name == "backend")
        patch.setattr(option.type, "choices", sorted(BACKENDS))  # as if it had been there at import
        yield


@pytest.fixture(scope="module")
def folder(build_engine, registered):
    """An engine of it, built by the command."""
    return build_engine("--backend", "saved")


def test_the_command_builds_lists_and_describes_it(folder):
    manifest = Manifest.read(folder)
    assert (manifest.backend, manifest.attention, manifest.host.device) == ("saved", "native", "cpu")
    assert sorted(manifest.files) == ["prompt.pt2", "step.pt2"]
    assert set(manifest.host.versions) == {"videomla", "torch"}
    listed = CliRunner().invoke(export_main, ["list", str(folder.parent)]).output
    assert f"{folder}: saved fp32, batch 1" in listed
    assert "does not run here" not in listed
    assert "backend: saved" in CliRunner().invoke(export_main, ["inspect", str(folder)]).output


def test_its_engine_computes_what_the_model_does(folder, checkpoint):
    opened = open_checkpoint(checkpoint)
    eager = EagerEngine(opened.transformer(), opened.text(), device=torch.device("cpu"), dtype=torch.float32)
    with open_engine(folder, opened) as engine:
        inputs = StepInputs(**pass_inputs(engine.config, 2))
        for got, want in zip(engine.step(inputs), eager.step(inputs), strict=True):
            assert_close(got, want, rtol=1e-4, atol=1e-4)
        made, wanted = (
            rollout(one, NoDecoder(), FixedPrompts(PROMPT), opened.sampler(), seeds=[3], chunks=4)
            for one in (engine, eager)
        )
        for got, want in zip(made, wanted, strict=True):
            assert_close(got.frames, want.frames, rtol=1e-4, atol=1e-4)


def test_a_video_is_made_of_it_and_verify_measures_it(folder, checkpoint, tmp_path):
    output = tmp_path / "star.mp4"
    options = ["--prompt", PROMPT, "--engine", str(folder), "--chunks", "2", "-o", str(output)]
    result = CliRunner().invoke(run_main, options)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "star.mp4.json").read_text())["engine"] == "saved"
    verified = CliRunner().invoke(export_main, ["verify", str(folder), "--chunks", "2"])
    assert verified.exit_code == 0, verified.output
    found = find_engine(open_checkpoint(checkpoint), device="cpu", dtype="float32", engines=folder.parent)
    assert found == (folder, f"found in {folder.parent}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "bf16"], "backend saved is for fp32 alone"),
        (["--device", "cuda"], "backend saved takes no device"),
        (["--target", "sm_89"], "a target goes with backend tensorrt-rtx"),
        (["--attention", "plugin"], "backend saved takes no --attention plugin"),
        (["--backend", "abacus"], "there are aoti, onnx, saved, tensorrt"),
    ],
)
def test_what_it_does_not_take_is_refused_in_one_line(tmp_path, options, said):
    command = ["build", "--backend", "saved", *options, "-o", str(tmp_path / "engine")]
    result = CliRunner().invoke(export_main, command)
    assert result.exit_code == 2
    assert said in result.output.splitlines()[-1]


def test_what_it_requires_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("export.backends.base.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"torch is not installed; .*videomla\[none\]"):
        Settings(backend="saved", precision="fp32").check_tools()
