"""The TensorRT backend speaks the interface of the real Python bindings; no engine is built here.

`test_tensorrt_engines.py` builds and runs engines where TensorRT and a GPU are.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from kit.stand_ins.tensorrt_bindings import OLDEST, run_with_bindings

from export.backends import tensorrt_build, tensorrt_process
from export.backends.tensorrt import TensorRT
from export.backends.tensorrt_build import BuildRequest, compile_kernels, window_of
from export.build import describe
from export.checks import build_command, check_host
from export.engine.manifest import Manifest
from export.engine.target import Host, driver_version
from export.inspect import layers
from export.settings import Settings
from plugins.aot.objects import load
from plugins.errors import UserError
from plugins.triton.tiles import COMPACT_MEMORY
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

SCRIPT = Path(__file__).with_name("trt_contract.py")


@pytest.fixture(scope="module", params=[None, OLDEST], ids=["newest", OLDEST])
def contract(request, tmp_path_factory):
    """What the code did of TensorRT's interface, and what came of it."""
    root = tmp_path_factory.mktemp("tensorrt")
    told = run_with_bindings(
        request.param, root, request.config.cache, SCRIPT, tmp_path_factory.mktemp("built")
    )
    lines = told.splitlines()
    said = [json.loads(line) for line in lines if line.startswith('["')]
    return json.loads(lines[-1]) | {"said": said}


def test_the_builder_is_configured_as_meant(contract):
    calls = contract["whole"]["calls"]
    assert contract["whole"]["status"] == 0
    expected = [
        ["IBuilderConfig.builder_optimization_level=", [3]],
        ["IBuilderConfig.profiling_verbosity=", ["DETAILED"]],
        ["IBuilderConfig.max_aux_streams=", [0]],
        ["IBuilderConfig.clear_flag", ["TF32"]],
    ]
    assert [call for call in expected if call not in calls] == []
    [flags] = [values for key, values in calls if key == "Builder.create_network"]
    assert flags[0] > 0  # the bit of STRONGLY_TYPED, which the real enumeration gave
    assert ["OnnxParser.parse_from_file", ["step.onnx"]] in calls
    assert ["EngineInspector.get_engine_information", ["JSON"]] in calls


def test_a_build_leaves_engine_layers_and_times(contract):
    assert contract["whole"]["files"] == ["layers.json", "step.engine", "times/a.cache"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("refused by the parser", "no such operator"),
        ("without plugin", "0 of 3 attention nodes became layers of the plugin"),
        ("plugin lost", "the engine holds 2 plugin layers, not 3"),
    ],
)
def test_what_went_wrong_is_said_and_leaves_no_engine(contract, case, said):
    assert contract[case]["status"] == 1
    assert "step.engine" not in contract[case]["files"]
    assert ["error", said] in contract["said"]


def test_a_plan_that_is_none_is_no_engine(contract):
    assert contract["not built"]["status"] == 1
    assert contract["not built"]["files"] == []


def test_times_of_another_version_are_told_of(contract):
    assert contract["stale times"]["status"] == 0
    assert ["warning", "a.cache does not fit and is made anew"] in contract["said"]


def test_attention_is_taken_apart_in_single_precision_alone(contract):
    taken_apart = ["IAttention.decomposable=", [True]]
    assert contract["wide attention"]["status"] == contract["narrow attention"]["status"] == 0
    assert contract["wide attention"]["calls"].count(taken_apart) == 3
    assert taken_apart not in contract["narrow attention"]["calls"]


def test_the_softmax_of_attention_on_codes_becomes_codes(contract):
    done = contract["attention on codes"]
    assert done["status"] == 0
    assert ["IAttention.normalization_quantize_to_type=", ["FP8"]] in done["calls"]
    assert ["IAttention.normalization_quantize_scale=", ["StandIn"]] in done["calls"]
    assert any(key == "INetworkDefinition.add_constant" for key, _ in done["calls"])
    assert contract["codes elsewhere"]["status"] == 1
    assert ["error", "0 of 1 attentions on codes were found"] in contract["said"]


def test_a_plan_runs_in_static_buffers(contract):
    assert contract["run"] == {"bound": ["x", "n", "y"], "streams": [7], "results": [[2]]}


def test_a_full_window_and_those_that_fill_have_a_profile_each(contract):
    assert contract["held slots"]["status"] == 0
    shapes = [
        values for key, values in contract["held slots"]["calls"] if key == "IOptimizationProfile.set_shape"
    ]
    full, none, half = ([2, 1, tokens, 20] for tokens in (28, 0, 12))
    assert shapes == [
        ["cache", full, full, full], ["slot_index", [7], [7], [7]],
        ["cache", none, half, full], ["slot_index", [0], [3], [7]],
    ]  # fmt: skip
    keys = [key for key, _ in contract["held slots"]["calls"]]
    assert keys.count("IBuilderConfig.add_optimization_profile") == 2
    assert "IBuilderConfig.add_optimization_profile" not in [key for key, _ in contract["whole"]["calls"]]


def test_a_plan_takes_the_profile_of_its_window_once_a_change(contract):
    assert contract["sizes"]["chosen"] == [0, 1, 1, 0]
    assert contract["sizes"]["stated"] == [[2, 3], [2, 1], [2, 0], [2, 3]]
    assert all(contract["sizes"]["held"])


def test_a_plan_with_one_profile_for_all_windows_takes_that_one(contract):
    assert contract["one profile"]["chosen"] == [0, 0, 0, 0]
    assert contract["one profile"]["stated"] == [[2, 3], [2, 1], [2, 0], [2, 3]]
    assert all(contract["one profile"]["held"])


def test_a_size_that_a_plan_was_not_built_for_is_refused(contract):
    assert contract["no profile"] == "the plan has no profile for x of [2, 0]"
    assert contract["static"] == "the plan takes x of [2, 3] alone, not [2, 2]"


def test_what_the_library_refuses_silently_is_an_error(contract):
    assert contract["no plan"] == "the plan does not load"
    assert contract["another table"].endswith("than its manifest says: n, x, y")
    assert contract["no address"] == "the plan takes no address for x"
    assert contract["no run"] == "the plan does not run"


def test_a_request_names_everything_that_the_process_needs(checkpoint, tmp_path, monkeypatch):
    versions = {"tensorrt": "11.4.0.106"}
    here = Host(device="cuda", architecture="sm_90", versions=versions)
    monkeypatch.setattr(Host, "here", lambda device, packages: here)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(tensorrt_build, "driver_version", lambda: "580.95.05")
    monkeypatch.setattr("export.onnx.attention_node.attention_nodes", lambda graph: 2)
    settings = Settings(backend="tensorrt", precision="bf16", attention="plugin")
    wanted = describe(open_checkpoint(checkpoint), settings)
    (tmp_path / "scratch").mkdir()
    folder = tmp_path / "aside"
    request = TensorRT().request("step", folder / "step.onnx", wanted, tmp_path / "scratch")
    assert request == BuildRequest(
        library="tensorrt", graph=str(folder / "step.onnx"), engine=str(folder / "step.engine"),
        target="sm_90", attention_nodes=2, kernels=str(tmp_path / "scratch"),
        layers=str(folder / "step.layers.json"),
        timing_cache=str(
            tmp_path / ".timing" / "tensorrt-11.4.0.106-NVIDIA-H100-80GB-HBM3-driver580.95.05-level3.cache"
        ),
    )  # fmt: skip
    [kernel] = load(tmp_path / "scratch")
    assert (kernel.dtype, kernel.arch, kernel.widths) == ("bf16", 90, {"D": 32, "DV": 32})
    assert kernel.compact
    # The plugin reads validity as it goes; TensorRT's own attention gets the slots that hold a frame.
    assert wanted.window == "all"
    native = describe(open_checkpoint(checkpoint), replace(settings, attention=None))
    assert native.window == "held"
    assert window_of(native, "step") == {"cache": [2, 1, 4 * 16, 24], "slot_index": [4]}
    assert window_of(native, "prompt") == window_of(wanted, "step") == {}


@pytest.mark.parametrize(
    ("does", "version"),
    [("echo 580.95.05; echo 580.95.05", "580.95.05"), ("echo failed; exit 9", None), ("true", None)],
)
def test_kernel_times_are_kept_for_a_driver_that_is_known(does, version, tmp_path, monkeypatch, caplog):
    told = driver_version(["sh", "-c", does])
    assert told == version
    assert driver_version(["no-such-program"]) is None
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "GPU")
    monkeypatch.setattr(tensorrt_build, "driver_version", lambda: told)
    kept = tensorrt_build.timing_cache(tmp_path / "engine", "11")
    assert (kept is None) == ("kernel times are not kept" in caplog.text) == (version is None)
    if kept is not None:
        assert kept == tmp_path / ".timing" / "tensorrt-11-GPU-driver580.95.05-level3.cache"


def test_layers_are_counted_by_kind_and_type(checkpoint, tmp_path):
    wide, narrow = ([{"Format/Datatype": f"Row major linear {kind}"}] for kind in ("FP32", "BFloat16"))
    told = [
        {"Name": "a", "LayerType": "PluginV3", "Outputs": narrow},
        {"Name": "b", "LayerType": "gemm", "Outputs": narrow},
        {"Name": "c", "LayerType": "gemm", "Outputs": narrow},
        {"Name": "d", "LayerType": "gemm", "Outputs": wide},
        {"Name": "e", "LayerType": "NoOp"},
    ]
    (tmp_path / "step.layers.json").write_text(json.dumps({"Layers": told}))
    manifest = describe(open_checkpoint(checkpoint), Settings(backend="onnx", precision="fp32"))
    assert list(layers(tmp_path, manifest)) == [
        "layers of step:", "  1 NoOp", "  1 PluginV3 BFloat16", "  2 gemm BFloat16", "  1 gemm FP32"
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100", "sm_120"])
def test_the_fast_tile_of_the_published_heads_takes_more_than_is_given_unasked(architecture, tmp_path):
    for size, asks in (("compact", False), ("fast", True)):
        compile_kernels(tmp_path / size, architecture=architecture, dtype="bf16", head=128, size=size)
        [kernel] = load(tmp_path / size)
        assert (kernel.size, kernel.shared > COMPACT_MEMORY) == (size, asks)


def test_a_fast_tile_is_asked_for_recorded_and_registered_alone(checkpoint, tmp_path, monkeypatch):
    here = Host(device="cuda", architecture="sm_90", versions={"tensorrt": "11.4.0.106"})
    monkeypatch.setattr(Host, "here", lambda device, packages: here)
    monkeypatch.setattr(tensorrt_build, "driver_version", lambda: None)
    monkeypatch.setattr("export.onnx.attention_node.attention_nodes", lambda graph: 2)
    settings = Settings(backend="tensorrt", precision="bf16", attention="plugin", tile="fast")
    assert settings.name == "tensorrt-bf16-plugin-fast"
    wanted = describe(open_checkpoint(checkpoint), settings)
    assert wanted.compiler == {"tile": "fast"}
    assert "--attention plugin --tile fast" in build_command(wanted, tmp_path)
    usual = describe(open_checkpoint(checkpoint), replace(settings, tile="compact"))
    assert usual.compiler == {}
    assert "--tile" not in build_command(usual, tmp_path)
    (tmp_path / "scratch").mkdir()
    request = TensorRT().request("step", tmp_path / "aside" / "step.onnx", wanted, tmp_path / "scratch")
    [kernel] = load(tmp_path / "scratch")
    assert (request.size, kernel.size) == ("fast", "fast")
    registered = []
    monkeypatch.setattr(
        "plugins.aot.tensorrt_plugin.register", lambda *given, **named: registered.append((given, named))
    )
    tensorrt_process._register(request)
    assert registered == [((tmp_path / "scratch", 90), {"large": True, "only": ("mla_attention",)})]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "tensorrt"}, "a tile goes with --backend tensorrt --attention plugin alone"),
        (
            {"backend": "onnx", "attention": "plugin"},
            "a tile goes with --backend tensorrt --attention plugin",
        ),
        ({"backend": "tensorrt", "attention": "plugin", "tile": "large"}, "no such tile: large"),
    ],
)
def test_a_tile_without_the_plugin_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Settings(precision="bf16", **{"tile": "fast", **options})


@pytest.mark.parametrize(
    ("architecture", "head", "said"),
    [("sm_89", 64, "no kernels for sm_89; use --attention native"),
     ("sm_90", 48, "no kernels for heads of 48; use --attention native")],
)  # fmt: skip
def test_a_plugin_that_there_is_no_kernel_for_is_refused(tmp_path, architecture, head, said):
    with pytest.raises(UserError, match=said):
        compile_kernels(tmp_path, architecture=architecture, dtype="bf16", head=head)


def test_another_version_or_gpu_is_refused(checkpoint, tmp_path, monkeypatch):
    here, older = (
        Host(device="cuda", architecture="sm_90", versions={"tensorrt": version})
        for version in ("11.4.0.106", "11.3.0.99")
    )
    monkeypatch.setattr(Host, "here", lambda device, packages: here)
    settings = Settings(backend="tensorrt", precision="bf16", attention="native")
    built: Manifest = describe(open_checkpoint(checkpoint), settings)
    assert check_host(built, tmp_path, here) is None
    for other, said in (
        (older, "built with tensorrt 11.4.0.106, here is tensorrt 11.3.0.99"),
        (replace(here, architecture="sm_100"), "built for sm_90, here is sm_100"),
    ):
        with pytest.raises(UserError, match=said) as refusal:
            check_host(built, tmp_path, other)
        assert "--backend tensorrt --precision bf16 --attention native --batch 1 -o" in str(refusal.value)
