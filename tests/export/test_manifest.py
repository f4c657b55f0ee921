"""The manifest: what is written is read; what does not fit is refused by name, with a way to mend it."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from kit.tiny.checkpoints import debug_checkpoint
from kit.tiny.passes import pass_inputs

from export.backends.registry import BACKENDS
from export.build import describe
from export.checks import check_engine, check_files, check_host
from export.engine.manifest import CONTENT, NAME, OLDER, SCHEMA, Manifest, _hash, engine_store
from export.engine.target import Host
from export.settings import Settings
from plugins.errors import UserError
from runtime.cli.export import main
from runtime.engines.compiled import CompiledEngine
from runtime.engines.programs import load_programs
from vmla.config import ModelConfig
from vmla.transformer import StepInputs
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

FILES = {"step.pt2": "0" * 64, "prompt.pt2": "0" * 64}
HERE = Host(device="cpu", architecture="x86_64", features=("avx2", "fma"), versions={"torch": "2.13.0"})


@pytest.fixture(scope="module")
def manifest(checkpoint):
    """Of an engine that was never built."""
    settings = Settings(backend="aoti", precision="bf16")
    return replace(describe(open_checkpoint(checkpoint), settings), host=HERE, files=FILES)


@pytest.fixture
def folder(manifest, tmp_path):
    """An engine folder with nothing but a manifest."""
    manifest.write(tmp_path)
    return tmp_path


def edit(folder, **changes):
    path = folder / NAME
    values = {**json.loads(path.read_text()), **changes}
    values.pop(CONTENT)
    path.write_text(json.dumps({**values, CONTENT: _hash(values)}))


def assert_refused(said, call, *arguments, **options):
    """Check that `call` is refused in one line that contains `said`; returns the line."""
    with pytest.raises(UserError, match=re.escape(said)) as refusal:
        call(*arguments, **options)
    line = str(refusal.value)
    assert "\n" not in line
    return line


def mending(line):
    """The options of the command that a refusal ends with, as the command itself understands them."""
    command = shlex.split(line.partition("; run: ")[2])
    assert command[:2] == ["vmla-export", "build"]
    build = main.commands["build"]
    return build.make_context("build", command[2:]).params


def test_what_is_written_is_read(manifest, folder):
    assert Manifest.read(folder) == manifest
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_an_engine_of_the_schema_before_takes_all_slots(manifest, folder):
    assert manifest.window == "held"
    path = folder / NAME
    values = json.loads(path.read_text())
    del values["window"], values[CONTENT]
    values["schema"] = OLDER
    path.write_text(json.dumps({**values, CONTENT: _hash(values)}))
    read = Manifest.read(folder)
    assert read == replace(manifest, schema=OLDER, window="all")
    assert not read.same_build(manifest)  # so that a build is not taken for it
    backend, programs = SimpleNamespace(encoder=torch.nn.Identity()), {}
    engine = CompiledEngine(read, {"step": lambda *given: programs.update(given=given) or given[:2]}, backend)
    inputs = {
        name: x.bfloat16() if name in ("text_kv", "cache") else x for name, x in step_inputs(read).items()
    }
    engine.step(StepInputs(**inputs), held=2)
    assert programs["given"][3].shape == inputs["cache"].shape
    assert engine.computation(0) == engine.computation(4)


def test_an_engine_from_before_layers_were_compiled_once_is_whole(manifest, folder):
    path = folder / NAME
    values = json.loads(path.read_text())
    del values["regional"], values[CONTENT]
    path.write_text(json.dumps({**values, CONTENT: _hash(values)}))
    assert Manifest.read(folder) == manifest
    assert not manifest.regional


def test_an_engine_compiled_by_layer_names_its_files_and_is_mended_as_one(manifest, folder):
    made = replace(manifest, regional=True)
    line = assert_refused("step-begin.pt2: its manifest has no hash of it", check_files, made, folder)
    assert mending(line)["regional"] is True
    parts = ["step-begin.pt2", "step-layer.pt2", "step-end.pt2", "step-weights.safetensors"]
    assert list(BACKENDS["aoti"].files("step", made)) == parts
    prompt = [name.replace("step", "prompt") for name in parts if "end" not in name]
    assert list(BACKENDS["aoti"].files("prompt", made)) == prompt
    away = replace(HERE, architecture="sm_90", device="cuda")
    line = assert_refused("architecture", check_host, replace(made, host=away), folder, HERE)
    assert mending(line)["regional"] is None  # what is usual there is not said


def step_inputs(manifest):
    return pass_inputs(ModelConfig.from_dict(manifest.model), 1)


def test_its_tables_say_what_goes_in_and_out(manifest):
    step, prompt = manifest.programs["step"], manifest.programs["prompt"]
    names = ["latents", "timestep", "text_kv", "cache", "slot_index", "chunk_index"]
    types = ["float32", "float32", "bfloat16", "bfloat16", "int32", "int32"]
    assert [(spec.name, spec.dtype) for spec in step.inputs] == list(zip(names, types, strict=True))
    outputs = [(spec.name, spec.dtype) for spec in step.outputs]
    assert outputs == [("velocity", "float32"), ("entries", "bfloat16")]
    assert prompt.outputs == (step.inputs[2],)
    assert manifest.cache["dtype"] == "bfloat16"
    assert manifest.cache["history"] == 3
    assert manifest.compiler == {"freezing": True}


def test_it_names_every_linear_layer_by_precision(manifest, checkpoint, tmp_path):
    assert set(manifest.layers) == {"bf16", "fp32"}
    assert "proj_out" in manifest.layers["fp32"]
    assert "blocks.1.ffn.up" in manifest.layers["bf16"]
    assert manifest.quantization is None
    fp8 = describe(open_checkpoint(checkpoint), Settings(backend="onnx", precision="fp8"))
    assert set(fp8.layers) == {"fp8", "fp32"}
    assert sum(map(len, fp8.layers.values())) == sum(map(len, manifest.layers.values())) == 35
    assert fp8.cache["dtype"] == fp8.programs["step"].inputs[2].dtype == "float32"
    assert fp8.compiler == {}
    fp8.write(tmp_path)
    assert Manifest.read(tmp_path) == fp8


def test_the_same_machine_and_checkpoint_are_accepted(manifest, folder, checkpoint):
    assert check_engine(manifest, folder, open_checkpoint(checkpoint), here=HERE) is None
    more = replace(HERE, features=("amx_tile", *HERE.features))
    assert check_host(manifest, folder, more) is None


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (replace(HERE, versions={"torch": "2.14.0"}), "versions: built with torch 2.13.0, here is torch 2"),
        (replace(HERE, versions={}), "versions: built with torch 2.13.0, here is no torch"),
        (replace(HERE, architecture="aarch64"), "architecture: built for x86_64, here is aarch64"),
        (replace(HERE, features=("avx2",)), "features: it uses fma"),
    ],
)
def test_another_machine_is_refused(manifest, folder, here, said):
    options = mending(assert_refused(said, check_host, manifest, folder, here))
    assert (options["backend"], options["precision"], options["batch"]) == ("aoti", "bf16", 1)
    assert options["output"] == folder


def test_another_gpu_is_refused(manifest, folder):
    built = replace(manifest, host=replace(HERE, device="cuda", architecture="sm_90", features=()))
    here = replace(HERE, device="cuda", architecture="sm_120", features=())
    line = assert_refused("architecture: built for sm_90, here is sm_120", check_host, built, folder, here)
    assert mending(line)["device"] == "cuda"
    line = assert_refused("here is no GPU", check_host, built, folder, replace(here, architecture="no GPU"))
    assert mending(line)["device"] == "cpu"


def test_an_engine_for_another_target_is_mended_by_one_for_this_gpu(manifest, folder):
    made = replace(
        manifest,
        backend="tensorrt-rtx",
        host=Host(device="cuda", architecture="sm_89", versions={"tensorrt_rtx": "1.7"}),
    )
    both = replace(made, host=replace(made.host, architecture="sm_89,sm_120"))
    here = replace(made.host, architecture="sm_120")
    assert check_host(both, folder, here) is None
    assert_refused("here is sm_86", check_host, both, folder, replace(here, architecture="sm_86"))
    options = mending(assert_refused("built for sm_89, here is sm_120", check_host, made, folder, here))
    assert (options["backend"], options["target"]) == ("tensorrt-rtx", "sm_120")
    alone = replace(made.host, architecture="no GPU")
    options = mending(assert_refused("here is no GPU", check_host, made, folder, alone))
    assert (options["backend"], options["target"]) == ("aoti", None)


def test_a_graph_runs_on_any_machine(manifest, folder):
    graph, elsewhere = replace(manifest, backend="onnx"), replace(HERE, architecture="riscv64", versions={})
    assert check_host(graph, folder, elsewhere) is None


def test_other_weights_are_refused(manifest, folder, tmp_path_factory):
    other = debug_checkpoint(tmp_path_factory.mktemp("other") / "other", seed=1)
    line = assert_refused("model_hash", check_engine, manifest, folder, open_checkpoint(other), here=HERE)
    assert mending(line)["checkpoint"] == str(other)


def test_another_layout_is_refused(manifest, folder, tmp_path_factory):
    other = debug_checkpoint(tmp_path_factory.mktemp("heads") / "heads", layout="mha")
    opened, said = open_checkpoint(other), "layout: built for mla"
    line = assert_refused(said, check_engine, manifest, folder, opened, here=HERE)
    assert mending(line)["checkpoint"] == str(other)


def test_another_shape_is_refused(manifest, folder, checkpoint):
    wide = replace(manifest, model={**manifest.model, "sample_width": 104})
    opened = open_checkpoint(checkpoint)
    line = assert_refused("sample_width: built for 104", check_engine, wide, folder, opened, here=HERE)
    assert mending(line)["output"] == folder


def test_another_batch_is_refused(manifest, folder, checkpoint):
    opened = open_checkpoint(checkpoint)
    line = assert_refused("batch: built for 1", check_engine, manifest, folder, opened, batch=4, here=HERE)
    assert mending(line)["batch"] == 4


def test_missing_and_damaged_files_are_refused(manifest, folder):
    mending(assert_refused("step.pt2: the file is missing", check_files, manifest, folder))
    (folder / "step.pt2").write_bytes(b"something else")
    line = assert_refused("step.pt2: the file is damaged", check_files, manifest, folder)
    assert mending(line)["output"] == folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": 99}, "schema is 99"),
        ({"schema": 3}, "schema is 3, this version reads 4 and 5; build the engine again"),
        ({"color": "red"}, "field color is unknown"),
        ({"files": {"../step.pt2": "0"}}, "'../step.pt2' leads out of the folder"),
        ({"files": {"..": "0"}}, "'..' leads out of the folder"),
        ({"files": {"": "0"}}, "'' leads out of the folder"),
        ({"files": {"/etc/passwd": "0"}}, "'/etc/passwd' leads out of the folder"),
        ({"programs": {"../step": {"inputs": [], "outputs": []}}}, "'../step' leads out of the folder"),
        ({"programs": {"step": {"inputs": []}}}, "field programs.step.outputs is missing"),
        ({"layers": {"fp32": 3}}, "field layers.fp32 is 3; input should be a valid array"),
        ({"quantization": {"base": "fp32"}}, "field quantization.products is missing"),
        ({"host": {"device": "cpu"}}, "field host.architecture is missing"),
        ({"batch": 10**15}, "field batch is 1000000000000000; input should be less than or equal to 4096"),
        ({"batch": True}, "field batch is True; input should be a valid integer"),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_refused(folder, changes, said):
    edit(folder, **changes)
    assert_refused(said, Manifest.read, folder)


def test_a_backend_that_this_version_lacks_is_refused(manifest, folder):
    strange, said = replace(manifest, backend="abacus"), "backend abacus is unknown; known are aoti, onnx"
    assert_refused(said, check_host, strange, folder, HERE)
    assert_refused(said, load_programs, folder, strange)


def test_what_is_no_engine_is_refused(folder, tmp_path_factory):
    assert_refused("is not an engine", Manifest.read, folder / "nowhere")
    assert_refused("is not an engine", Manifest.read, tmp_path_factory.mktemp("empty"))
    (folder / NAME).write_text("{")
    assert_refused("is not valid JSON", Manifest.read, folder)
    values = {"schema": SCHEMA}
    (folder / NAME).write_text(json.dumps(values))
    assert_refused("was changed after the engine was built", Manifest.read, folder)
    (folder / NAME).write_text('{"schema": 4, "schema": 4}')
    assert_refused("the key schema stands there twice", Manifest.read, folder)


def test_engines_are_kept_where_the_user_keeps_data(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert engine_store() == tmp_path / "videomla" / "engines"
    for odd in ("", "relative/folder"):
        monkeypatch.setenv("XDG_DATA_HOME", odd)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert engine_store() == tmp_path / ".local" / "share" / "videomla" / "engines"


def test_reading_a_manifest_loads_no_torch(folder):
    code = (
        "import sys; from pathlib import Path; import runtime.cli.export;"
        "from export.engine.manifest import Manifest;"
        "Manifest.read(Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
