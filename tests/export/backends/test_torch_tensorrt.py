"""The backend of Torch-TensorRT: what it refuses, what it calls, and whether the real package takes that.

TensorRT's libraries do not install on this machine. `Standing` takes Torch-TensorRT's place and checks what
it is called with; where the real package lies on the path, its sources are read, and the same call is checked
against its own signature. Our converter runs in the package's real Python code, on empty libraries
(`torch_trt_contract.py`). The package's flavour for TensorRT-RTX, the same code, builds real plans here, in
`torch_trt_rtx.py`; none is run.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit.stand_ins.tensorrt_bindings import ROOT, fetched, run_with_bindings
from kit.tiny.models import tiny_model

from export.backends import torch_tensorrt as backend
from export.backends.registry import BACKENDS
from export.backends.torch_tensorrt import ATTENTION, OPTIONS, TorchTensorRT, named_by_place
from export.engine.signature import STEP, contract
from export.engine.target import NO_GPU, Host
from export.lowering.trace import trace_step
from export.settings import Settings, choose_backend
from plugins.errors import UserError

pytestmark = pytest.mark.cpu

HOST = Host(device="cuda", architecture="sm_90", versions={"tensorrt": "11.0.0.114"})
CALLED = "convert_exported_program_to_serialized_trt_engine"


class Standing:
    """Torch-TensorRT as far as the backend calls it."""

    def __init__(self, plan=b"plan"):
        self.plan, self.calls = plan, []
        self.dynamo = SimpleNamespace(**{CALLED: self.convert})

    @staticmethod
    def Input(*, dtype, **sizes):  # noqa: N802 - its name there
        return sizes, dtype

    def convert(self, program, **given):
        self.calls.append((program, given))
        if isinstance(self.plan, Exception):
            raise self.plan
        return self.plan


@pytest.fixture
def standing(monkeypatch):
    module = Standing()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    return module


def described(model, attention):
    programs, window = contract(model.config, batch=1), "all" if attention == "plugin" else "held"
    return SimpleNamespace(
        programs=programs, compiler=OPTIONS, attention=attention, window=window, host=HOST
    )  # fmt: skip


def compiled(tmp_path):
    model = tiny_model()
    manifest = described(model, "native")
    program = trace_step(model, batch=1, window="held", joined=True)
    TorchTensorRT().compile(STEP, program, manifest, tmp_path)
    return program, manifest


def test_the_whole_program_is_handed_over_with_its_inputs_in_order(tmp_path, standing):
    program, manifest = compiled(tmp_path)
    ((handed, given),) = standing.calls
    assert handed is program
    full = {spec.name: spec.shape for spec in manifest.programs[STEP].inputs}
    (layers, videos, tokens, width), (slots,) = full["cache"], full["slot_index"]
    assert tokens > slots > 1
    wanted = {name: {"shape": shape} for name, shape in full.items()} | {
        "cache": {
            "min_shape": (layers, videos, 0, width), "opt_shape": full["cache"], "max_shape": full["cache"]
        },
        "slot_index": {"min_shape": (0,), "opt_shape": (slots,), "max_shape": (slots,)},
    }  # fmt: skip
    types = [getattr(torch, spec.dtype) for spec in manifest.programs[STEP].inputs]
    assert given.pop("arg_inputs") == list(zip(wanted.values(), types, strict=True))
    assert given.pop("device") == torch.device("cuda")
    times = given.pop("timing_cache_path")
    assert not Path(times).is_relative_to(tmp_path)
    assert not Path(times).exists()  # no driver is known here, so none are kept
    assert given == OPTIONS
    assert (tmp_path / f"{STEP}.engine").read_bytes() == b"plan"


def test_times_are_kept_beside_the_engines_for_one_driver(tmp_path, standing, monkeypatch):
    kept = tmp_path / ".timing" / "tensorrt.cache"
    monkeypatch.setattr(backend, "timing_cache", lambda folder, version: kept)
    compiled(tmp_path)
    assert standing.calls[0][1]["timing_cache_path"] == str(kept)


def test_a_failure_is_one_line(tmp_path, standing):
    standing.plan = RuntimeError("no converter for aten.foo\nand a page more")
    with pytest.raises(UserError, match="cannot build step: no converter for aten.foo$"):
        compiled(tmp_path)
    assert not list(tmp_path.iterdir())


def test_inputs_are_named_as_in_the_program_and_outputs_by_their_place():
    model = tiny_model()
    signature = contract(model.config, batch=1)[STEP]
    program = trace_step(model, batch=1)
    loaded = named_by_place(signature)
    assert list(program.graph_signature.user_inputs) == [spec.name for spec in loaded.inputs]
    assert [spec.name for spec in loaded.outputs] == ["output0", "output1"]
    assert [spec.shape for spec in loaded.outputs] == [spec.shape for spec in signature.outputs]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "fp8"}, "takes no fp8 from here; use --backend tensorrt"),
        ({"precision": "nvfp4"}, "nvfp4"),
        ({"precision": "fp32", "attention": "plugin"}, "computes in bf16 and fp16; use --precision bf16"),
        ({"precision": "bf16", "device": "cuda"}, "takes no device"),
    ],
)
def test_what_it_cannot_build_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Settings(backend="torch-tensorrt", **options)


def test_without_the_package_or_a_gpu_one_line_says_what_is_missing(monkeypatch):
    settings = Settings(backend="torch-tensorrt", precision="bf16")
    assert settings.attention_form == "native"
    monkeypatch.setattr("export.backends.base.find_spec", lambda name: None)
    with pytest.raises(UserError, match="torch-trt"):
        settings.check_tools()
    monkeypatch.setattr("export.backends.base.find_spec", lambda name: name)
    monkeypatch.setattr(backend, "gpu_architecture", lambda: "no GPU")
    with pytest.raises(UserError, match="no GPU here"):
        settings.check_tools()


def test_a_plan_without_as_many_layers_of_the_plugin_as_attentions_is_refused(
    tmp_path, standing, monkeypatch
):
    monkeypatch.setattr(backend, "_register_plugin", lambda manifest: None)
    monkeypatch.setattr(backend, "convert_attention", lambda converted: converted.append("one"))
    model = tiny_model()
    manifest = described(model, "plugin")
    program = trace_step(model, batch=1)
    with pytest.raises(UserError, match="made 1 layers of the plugin for 2 attentions"):
        TorchTensorRT().compile(STEP, program, manifest, tmp_path)
    assert not list(tmp_path.iterdir())
    ((handed, given),) = standing.calls
    assert all(set(sizes) == {"shape"} for sizes, _ in given["arg_inputs"])  # it takes all slots
    names = [str(node.target) for node in handed.graph.nodes]
    assert names.count(ATTENTION) == 2
    assert not any("expand.default" in name and "vmla" in name for name in names)


def test_each_attention_becomes_a_layer_of_our_plugin_in_its_real_python_code(tmp_path, request):
    package = "torch-tensorrt==2.13.0"
    folder = fetched(request.config.cache, "torch-tensorrt-2.13.0", package, "dllist")
    root = tmp_path / "root"
    compiled = shutil.ignore_patterns("lib", "*.so", "bin", "include")
    for name in ("torch_tensorrt", "dllist"):
        shutil.copytree(folder / name, root / name, ignore=compiled)
    script = Path(__file__).parent / "torch_trt_contract.py"
    told = json.loads(run_with_bindings(None, root, request.config.cache, script).splitlines()[-1])
    assert told == {"only attention": True, "tensors": [4, 4], "names": True, "aot": [True, True]}


def test_real_converters_and_a_real_builder_take_any_number_of_slots_without_a_mask(tmp_path, request):
    package = "torch-tensorrt-rtx==2.13.0"
    folder = fetched(request.config.cache, "torch-tensorrt-rtx-2.13.0", package, "dllist")
    root = tmp_path / "root"
    # Its metadata stays: by the name of the distribution the package knows which library it is for.
    shutil.copytree(folder, root, ignore=shutil.ignore_patterns("lib", "*.so", "bin", "include"))
    path = os.pathsep.join([str(root), str(ROOT), str(ROOT / "tests")])
    script = Path(__file__).with_name("torch_trt_rtx.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    model = tiny_model()
    programs = contract(model.config, batch=1, narrow="bfloat16")
    types = {"float32": "FLOAT", "bfloat16": "BF16", "int32": "INT32"}
    for name, network in told.items():
        signature = named_by_place(programs[name])
        table = {spec.name: [types[spec.dtype], *spec.shape] for spec in signature.inputs}
        if name == STEP:
            table["cache"][3] = table["slot_index"][1] = -1
        assert network["inputs"] == table
        assert network["outputs"] == [spec.name for spec in signature.outputs]
        assert (tmp_path / f"{name}.engine").stat().st_size > 10_000
    full = {spec.name: list(spec.shape) for spec in programs[STEP].inputs}
    none = {"cache": [*full["cache"][:2], 0, full["cache"][3]], "slot_index": [0]}
    ranges = {name: [none[name], full[name], full[name]] for name in none}
    assert told[STEP]["profiles"] == [ranges]
    assert told["prompt"]["profiles"] == []
    assert (told[STEP]["attention"], told[STEP]["masked"]) == (2 * model.config.num_layers, 0)


@pytest.mark.parametrize("gpu", ["sm_90", "sm_100", "sm_120", NO_GPU])
@pytest.mark.parametrize("target", [None, "sm_90"])
def test_it_is_never_chosen_where_none_is_named(monkeypatch, gpu, target):
    """Whatever the machine has, and even where no other backend would do."""
    monkeypatch.setattr("export.settings.gpu_architecture", lambda: gpu)
    monkeypatch.setattr("export.backends.base.find_spec", lambda name: name)  # every package is installed
    assert choose_backend(target)[0] != TorchTensorRT.name
    for other in BACKENDS.values():
        if not isinstance(other, TorchTensorRT):
            monkeypatch.setattr(type(other), "offer", lambda *asked: None)
    with pytest.raises(UserError, match="no backend builds for"):
        choose_backend(target)


def test_the_real_package_takes_the_call_and_names_outputs_so():
    found = PathFinder.find_spec("torch_tensorrt")
    if found is None or found.origin is None:
        pytest.skip("torch-tensorrt is not installed")
    sources = Path(found.origin).parent / "dynamo"
    tree = ast.parse((sources / "_compiler.py").read_text())
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == CALLED)
    assert {*OPTIONS, "arg_inputs", "device", "timing_cache_path"} <= {
        argument.arg for argument in function.args.kwonlyargs
    }
    interpreter = (sources / "conversion" / "_TRTInterpreter.py").read_text()
    assert 'name = f"output{i}"' in interpreter
    assert "self._input_names.append(target)" in interpreter
