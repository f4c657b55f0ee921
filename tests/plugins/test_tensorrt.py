"""The plugins speak the interface of TensorRT's real Python bindings; no engine is built here."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kit.stand_ins.tensorrt_bindings import OLDEST, run_with_bindings

import plugins
from plugins.aot.objects import Compiled, save
from plugins.aot.tensorrt_plugin import NAMESPACE, PLUGIN_SPECS, register
from plugins.errors import UserError

pytestmark = pytest.mark.cpu

HERE = Path(__file__).parent


def heads(dtype, *, scales=False, **changes):
    shapes = {"query": [2, 12, 4680, 128], "keys": [2, 12, 10920, 128], "values": [2, 12, 10920, 128]}
    inputs = {name: [changes.get(name, shape), dtype] for name, shape in shapes.items()}
    return inputs | {"valid": [[10920], "bool"]} | ({"scales": [[3, 12], "fp32"]} if scales else {})


def latent(dtype, *, scales=False):
    shapes = {"query": [1, 12, 4680, 224], "cached": [1, 6240, 224], "own": [1, 4680, 224]}
    tables = {"cos": [[10920, 16], "fp32"], "sin": [[10920, 16], "fp32"], "valid": [[10920], "bool"]}
    inputs = {name: [shape, dtype] for name, shape in shapes.items()} | tables
    return inputs | ({"scales": [[2, 12], "fp32"]} if scales else {})


def layer(name, inputs, *, refused=False, **attributes):
    return {"name": name, "inputs": inputs, "attributes": attributes, "refused": refused}


SCALE = 128**-0.5
REQUESTS = {
    "bf16": layer("mla_attention", heads("bf16")),
    "fp16": layer("mla_attention", heads("fp16")),
    "fp8": layer("mla_attention_fp8", heads("fp8", scales=True)),
    "absorbed": layer("mla_attention_absorbed", latent("bf16"), scale=SCALE),
    "absorbed fp8": layer("mla_attention_absorbed_fp8", latent("fp8", scales=True), scale=SCALE),
    "narrow": layer("mla_attention", heads("bf16", values=[2, 12, 10920, 64]), refused=True),
    "scale": layer("mla_attention_absorbed", latent("bf16"), refused=True, scale=0.5),
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The recorded kernels' launches; in place of their code, the names of their entries."""
    record = json.loads((Path(plugins.__file__).parent / "objects.json").read_text())
    contents = []
    for known in (Compiled(**values) for values in record["objects"]):
        code = f".visible .entry {known.name}("
        digest = hashlib.sha256(code.encode()).hexdigest()
        contents.append((replace(known, ptx_sha256=digest), code, b""))
    folder = tmp_path_factory.mktemp("objects")
    save(folder, contents, record["versions"])
    return folder


@pytest.fixture(scope="module", params=[None, OLDEST], ids=["newest", OLDEST])
def contract(request, kernels, tmp_path_factory):
    """What TensorRT's own code makes of every plugin."""
    told = run_with_bindings(
        request.param, tmp_path_factory.mktemp("tensorrt"), request.config.cache,
        HERE / "contract.py", kernels, json.dumps(REQUESTS),
    )  # fmt: skip
    return json.loads(told.splitlines()[-1])  # TensorRT logs to the same stream


def test_outputs_are_described(contract):
    found = {label: (layer["shape"], layer["type"]) for label, layer in contract["layers"].items()}
    assert found == {
        "bf16": ([2, 12, 4680, 128], "BF16"),
        "fp16": ([2, 12, 4680, 128], "HALF"),
        "fp8": ([2, 12, 4680, 128], "BF16"),
        "absorbed": ([1, 12, 4680, 192], "BF16"),
        "absorbed fp8": ([1, 12, 4680, 192], "BF16"),
    }


def test_what_a_node_must_bring_is_what_tensorrt_reads_off_the_plugins(contract):
    found = contract["plugins"]
    assert list(found) == [f"{NAMESPACE}::{spec.name}" for spec in PLUGIN_SPECS]
    for spec, told in zip(PLUGIN_SPECS, found.values(), strict=True):
        assert told["names"] == [spec.name, NAMESPACE, "1"]
        assert told["inputs"] == list(spec.inputs)
        assert told["fields"] == dict.fromkeys(spec.attributes, "FLOAT64")


def test_types_are_offered(contract):
    offered = {label: layer["combinations"] for label, layer in contract["layers"].items()}
    assert offered["bf16"] == [["BF16"] * 3 + ["BOOL", "BF16"], ["HALF"] * 3 + ["BOOL", "HALF"]]
    assert offered["fp8"] == [["FP8"] * 3 + ["BOOL", "FLOAT", "BF16"]]
    assert offered["absorbed fp8"] == [["FP8"] * 3 + ["FLOAT", "FLOAT", "BOOL", "FLOAT", "BF16"]]


def test_launches_at_the_published_shape(contract):
    launches = contract["layers"]["bf16"]["launches"]
    assert [launch["tactic"] for launch in launches] == [1, 2]
    compact = launches[0]
    assert compact["scalars"] == [4680, 10920, 12]
    grid, block = {"grid_x": 74, "grid_y": 24, "grid_z": 1}, {"block_x": 128, "block_y": 1, "block_z": 1}
    assert compact["launch"] == grid | block | {"shared_mem": 24576}
    absorbed = contract["layers"]["absorbed"]["launches"][0]
    assert absorbed["scalars"] == [56160, 4680, 6240, 4680]
    assert (absorbed["launch"]["grid_x"], absorbed["launch"]["grid_y"]) == (878, 1)


def test_every_tactic_hands_over_its_own_kernel(contract):
    launches = [launch for layer in contract["layers"].values() for launch in layer["launches"]]
    assert all(launch["entry"] for launch in launches)
    names = [launch["name"] for launch in launches]
    assert len(set(names)) == len(names) == 10


def test_what_was_not_compiled_is_refused(contract):
    refusals = contract["refusals"]
    assert refusals["narrow"] == "vmla::mla_attention: values must be 128 wide, not 64"
    assert refusals["scale"] == "vmla::mla_attention_absorbed: scale must be 0.088388348, not 0.5"
    assert "registered already" in refusals["twice"]


def test_without_tensorrt_the_extra_is_named(kernels, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match=r"videomla\[trt\]"):
        register(kernels, 90)
