"""`vmla-export verify --layers`: an engine's products one by one against those in float32."""

import json
import math
import shutil
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from export.engine.manifest import Manifest
from export.layers import layers_of
from export.onnx.products import products
from runtime.cli.export import main
from runtime.cli.verify import layers as layerwise
from runtime.cli.verify.layers import LayerErrors, compare, groups, verify_layers
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.formats.files import hash_file

pytestmark = pytest.mark.cpu

DAMAGED = "blocks.1.attn2.to_q"


@pytest.fixture(scope="module")
def sound(fp8_engine, checkpoint):
    """The errors of a sound fp8 engine."""
    return verify_layers(Manifest.read(fp8_engine), fp8_engine, open_checkpoint(checkpoint))


@pytest.fixture
def damaged(fp8_engine, tmp_path):
    """An engine in which the scales of one layer are twice what they should be."""
    folder = shutil.copytree(fp8_engine, tmp_path / "damaged")
    model = onnx.load(folder / "step.onnx")
    [scales] = [each for each in model.graph.initializer if each.name == f"{DAMAGED}.weight_scale"]
    scales.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scales), scales.name))
    onnx.save(model, folder / "step.onnx")
    manifest = Manifest.read(folder)
    replace(manifest, files={**manifest.files, "step.onnx": hash_file(folder / "step.onnx")}).write(folder)
    return folder


def verify(*arguments):
    return CliRunner().invoke(main, ["verify", *map(str, arguments), "--layers"])


def test_every_linear_layer_is_listed_once(sound, checkpoint):
    layers = layers_of(open_checkpoint(checkpoint).model_config())
    assert sorted(sound.errors) == sorted(layers)


def test_the_errors_of_a_sound_engine_begin_with_its_first_narrow_layer(sound, fp8_engine):
    narrow = Manifest.read(fp8_engine).layers["fp8"]
    first = next(place for place, name in enumerate(sound.errors) if name in narrow)
    errors = [*sound.errors.values()]
    assert max(errors[:first]) < 1e-6
    assert all(1e-3 < sound.errors[name] < sound.limit for name in narrow)
    assert all(map(math.isfinite, errors))
    assert sound.first_above is None


def test_products_that_are_held_a_few_at_a_time_have_the_errors_of_all_at_once(tmp_path, monkeypatch):
    """A chain of three products whose weights are a little off in one of two graphs."""
    generator, held, made = np.random.default_rng(0), [], layerwise._outputs
    exact = {name: generator.standard_normal((4, 4), np.float32) for name in "abc"}
    for folder, off in (("exact", 0.0), ("own", 0.01)):
        weights = [onnx.numpy_helper.from_array(w + off, f"{name}.weight") for name, w in exact.items()]
        ends = ["x", "first", "second", "y"]
        nodes = [
            onnx.helper.make_node("MatMul", [ends[n], f"{name}.weight"], [ends[n + 1]])
            for n, name in enumerate("abc")
        ]
        given, last = (
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 4]) for name in ("x", "y")
        )
        graph = onnx.helper.make_graph(nodes, "chain", [given], [last], weights)
        (tmp_path / folder).mkdir()
        version = [onnx.helper.make_opsetid("", 18)]
        onnx.save(
            onnx.helper.make_model(graph, opset_imports=version, ir_version=10), tmp_path / folder / "g.onnx"
        )

    def watched(graph, names, feeds):
        found = made(graph, names, feeds)
        held.append(sum(product.nbytes for product in found.values()))
        return found

    monkeypatch.setattr(layerwise, "_outputs", watched)
    feeds, size = {"x": generator.standard_normal((2, 4), np.float32)}, 2 * 4 * 4
    paths = tmp_path / "exact" / "g.onnx", tmp_path / "own" / "g.onnx"
    at_once, few = (
        compare(*paths, feeds, partial(groups, sizes=dict.fromkeys("abc", size), held=most))
        for most in (3 * size, 2 * size)
    )
    assert held == [3 * size, 3 * size, 2 * size, 2 * size, size, size]
    assert [*few] == [*"abc"] and few == pytest.approx(at_once, rel=1e-5)
    assert all(error > 1e-3 for error in few.values())


def test_groups_keep_the_order_and_the_limit():
    sizes = {"a": 3, "b": 3, "c": 9, "d": 1}
    assert [*groups(["a", "b", "c", "d", "b (2)"], sizes, 6)] == [["a", "b"], ["c"], ["d", "b (2)"]]
    assert [*groups([], sizes, 6)] == []


def test_a_damaged_layer_is_the_first_above_the_limit(damaged, sound):
    result = verify(damaged)
    assert result.exit_code == 1, result.output
    said = result.output.splitlines()
    told = json.loads(said[-1])
    assert told["first_above"] == DAMAGED
    assert told["layers"][DAMAGED] == pytest.approx(1, abs=0.2)  # twice the product
    before = [*sound.errors][: [*sound.errors].index(DAMAGED)]
    assert all(told["layers"][name] == pytest.approx(sound.errors[name], abs=1e-6) for name in before)
    assert any(line.startswith(DAMAGED) and "first above" in line for line in said)


@pytest.mark.parametrize("backend", ["aoti", "torch-tensorrt"])
def test_a_backend_without_a_graph_is_refused_with_the_command_to_build_another(
    backend, onnx_engine, tmp_path
):
    folder = shutil.copytree(onnx_engine, tmp_path / "plan")
    replace(Manifest.read(folder), backend=backend).write(folder)
    result = verify(folder)
    assert result.exit_code == 2
    [line] = result.output.splitlines()
    assert f"cannot run an engine of {backend} in fp32 layer by layer" in line
    assert "--backend onnx --precision fp32" in line
    assert f"{folder}-onnx" in line


@pytest.fixture(scope="module")
def rtx_engine(build_engine):
    """An engine of TensorRT-RTX, which does not run here."""
    return build_engine("--backend", "tensorrt-rtx", "--target", "sm_89", "--precision", "fp16")


def test_the_graph_that_an_engine_was_built_from_is_compared_with_its_products_joined(rtx_engine, checkpoint):
    result = verify(rtx_engine)
    assert result.exit_code == 0, result.output
    told = json.loads(result.output.splitlines()[-1])
    config = open_checkpoint(checkpoint).model_config()
    first = {name.removeprefix("blocks.0.attn1.") for name in told["layers"] if "blocks.0.attn1." in name}
    assert first == {"down", "up_q", "expansion", "to_out"}
    assert len(told["layers"]) == len(layers_of(config)) - 4 * config.num_layers  # three products for seven
    assert 1e-5 < max(told["layers"].values()) < told["limit"] == 1e-2


def test_a_narrow_layer_of_that_graph_that_is_wrong_is_found(rtx_engine, checkpoint, monkeypatch):
    """The expansion of the second layer, of the graph in float16 alone."""
    made, name = layerwise.write_graph, "blocks.1.attn1.expansion"

    def write(program_name, program, wanted, folder):
        path = made(program_name, program, wanted, folder)
        model = onnx.load(path)
        for each in model.graph.initializer:
            if each.name == f"{name}.weight" and wanted.precision == "fp16":
                each.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(each), each.name))
        onnx.save(model, path)
        return path

    monkeypatch.setattr(layerwise, "write_graph", write)
    found = verify_layers(Manifest.read(rtx_engine), rtx_engine, open_checkpoint(checkpoint))
    assert found.first_above == name
    assert found.errors[name] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"precision": "bf16"}, "has no bf16 on a CPU"),
     ({"precision": "fp8"}, "--backend onnx --precision fp8"),
     ({"code": "0" * 64}, "other code built it; run: vmla-export build")],
)  # fmt: skip
def test_a_graph_that_cannot_be_run_or_written_again_is_refused(change, said, rtx_engine, tmp_path):
    folder = shutil.copytree(rtx_engine, tmp_path / "plan")
    replace(Manifest.read(folder), **change).write(folder)
    result = verify(folder)
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.splitlines()) == 1


def test_without_polygraphy_the_extra_is_named(onnx_engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    monkeypatch.setattr(
        "export.backends.base.find_spec", lambda module: None if module == "polygraphy" else 1
    )
    result = verify(onnx_engine)
    assert result.exit_code == 2
    assert 'polygraphy is not installed; install it with: pip install "videomla[polygraphy]"' in result.output


def test_products_are_found_behind_whatever_a_lowering_puts_before_a_weight():
    weights = [onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), f"{name}.weight") for name in "ab"]
    nodes = [
        onnx.helper.make_node("Transpose", ["a.weight"], ["turned"]),
        onnx.helper.make_node("MatMul", ["x", "turned"], ["first"]),
        onnx.helper.make_node("MatMul", ["first", "first"], ["of no weight"]),
        onnx.helper.make_node("Gemm", ["of no weight", "b.weight"], ["second"]),
        onnx.helper.make_node("MatMul", ["second", "turned"], ["third"]),
    ]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], weights)
    found = products(onnx.helper.make_model(graph))
    assert found == {"a": "first", "b": "second", "a (2)": "third"}


def test_an_error_that_is_no_number_is_the_worst_and_above_any_limit():
    errors = LayerErrors(precision="fp8", errors={"a": 0.01, "b": math.nan, "c": 7.0})
    assert (errors.first_above, errors.worst) == ("b", "b")
    assert json.loads(errors.lines()[-1])["layers"] == {"a": 0.01, "b": None, "c": 7.0}
    assert errors.lines()[1].endswith("first above and worst")
