"""Attention on float8 codes: what is observed for it, its program, and what TensorRT-RTX makes of it."""

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_relative
from kit.tiny.checkpoints import debug_checkpoint
from kit.tiny.models import randomise, tiny_config
from kit.tiny.passes import pass_inputs

from export.backends import tensorrt_build
from export.build import describe
from export.engine.manifest import Manifest
from export.layers import attention_inputs
from export.loading.onnx_session import inference_session
from export.lowering.calibration import ATTENDED, Calibration, attention_input_names, observed
from export.lowering.quantized_layers import HEADROOM, attentions, quantized
from export.lowering.trace import trace_step
from export.onnx.attention_node import quantized_attentions
from export.onnx.masks import masks
from export.settings import Settings
from plugins.errors import UserError
from runtime.cli.export import main
from vmla.attention import Window
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.cpu

FP8 = ("--precision", "fp8", "--attention", "fp8")
KERNEL = b"qmma_e4m3"
"""What TensorRT-RTX calls products of float8 numbers in the source of its attention kernels."""


def model_of(layout):
    """A small model with heads that TensorRT's attention on codes takes."""
    return randomise(VideoMLA(tiny_config(layout=layout, attention_head_dim=32, num_layers=3)))


def names_of(model):
    return [f"blocks.{block}.attn1" for block in range(model.config.num_layers)]


def full_inputs(model, number):
    """Those of a pass over the slots that hold a frame alone."""
    inputs = pass_inputs(model.config, number, seed=number)
    held = inputs["slot_index"] >= 0
    tokens = held.repeat_interleave(inputs["cache"].shape[2] // len(held))
    return inputs | {"cache": inputs["cache"][:, :, tokens], "slot_index": inputs["slot_index"][held]}


def largest_of(model):
    with observed(model) as seen:
        for number in (0, 3):
            model(**pass_inputs(model.config, number, seed=number))
    return {name: float(value) for name, (_, value) in seen.items()}


def rounded(x, largest):
    """The values of `x` after a way through codes whose scale is the power of two that reaches `largest`."""
    scale = 2.0 ** math.ceil(math.log2(HEADROOM * largest / 448))
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("layout", ["mla", "mha"])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_what_is_attended_to_is_seen_without_empty_slots(layout, number, monkeypatch):
    model, wanted, plain = model_of(layout), [], Window.attend

    def attend(window, query, keys, values):
        kept = keys[:, :, window.valid], values[:, :, window.valid]
        wanted.append([float(part.abs().max()) for part in (query, *kept)])
        return plain(window, query, keys, values)

    monkeypatch.setattr(Window, "attend", attend)
    with observed(model) as seen:
        outputs = model(**pass_inputs(model.config, number))  # what lies in empty slots is not a number
    assert all(output.isfinite().all() for output in outputs)
    assert [
        [float(seen[part][1]) for part in attention_input_names(name)] for name in names_of(model)
    ] == wanted
    assert all(0 < value < math.inf for parts in wanted for value in parts)


@pytest.mark.parametrize("layout", ["mla", "mha"])
@pytest.mark.parametrize("number", [0, 1, 4])
def test_the_program_rounds_queries_keys_and_values_of_the_blocks_named(layout, number, monkeypatch):
    model = model_of(layout)
    largest = largest_of(model)
    chosen = {part: largest[part] for part in attention_input_names("blocks.1.attn1")}
    made = quantized(trace_step(model, batch=1, window="held", joined=layout == "mla"), chosen, "fp8")
    reaches, calls = list(chosen.values()), []
    plain = Window.attend

    def attend(window, query, keys, values):
        calls.append(1)
        if len(calls) != 2:
            return plain(window, query, keys, values)
        scale = query.shape[-1] ** -0.5
        parts = zip((scale * query, keys, values), (scale * reaches[0], *reaches[1:]), strict=True)
        query, keys, values = (rounded(x, largest) for x, largest in parts)
        return (query @ keys.transpose(-1, -2)).softmax(-1) @ values

    inputs = full_inputs(model, number)
    exact = model(**inputs, full=True)
    monkeypatch.setattr(Window, "attend", attend)
    for got, want, plainly in zip(
        made.module()(*inputs.values()), model(**inputs, full=True), exact, strict=True
    ):
        assert_relative(got, want, 2e-3)  # a code on an edge may fall to either side
        assert_relative(got, plainly, 0.1)
    assert len(calls) == 3
    assert not torch.equal(got, plainly)


def test_a_masked_attention_has_no_codes():
    model = model_of("mla")
    program = trace_step(model, batch=1)
    assert {name for name in attentions(program) if name.endswith("attn1")} == set()
    whole = [name for name in attentions(trace_step(model, batch=1, window="held")) if name.endswith("attn1")]
    assert whole == names_of(model)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"attention_head_dim": 24}, "heads whose width is a multiple of 16, and this model's is 24"),
        ({"sink": 0, "history": 1}, "takes no mask, which a cache of one slot needs"),
    ],
)
def test_models_whose_attention_would_have_no_codes_are_refused_before_they_are_calibrated(
    sizes, said, tmp_path
):
    place = debug_checkpoint(tmp_path / "model", **sizes)
    asked = Settings(backend="onnx", precision="fp8", attention="fp8")
    with pytest.raises(UserError, match=f"{said}.*; leave --attention out"):
        describe(open_checkpoint(place), asked)
    assert describe(open_checkpoint(place), replace(asked, attention=None)).attention == "native"


def test_heads_of_their_own_keys_have_codes_in_tensorrt_rtx_too(tmp_path):
    """Halves of a cache's entries are cut without sequences, which its parser does not know."""
    place, engine = debug_checkpoint(tmp_path / "model", layout="mha"), tmp_path / "engine"
    options = ("--backend", "tensorrt-rtx", "--target", "sm120", "-o", str(engine))
    result = CliRunner().invoke(main, ["build", "--checkpoint", str(place), *options, *FP8])
    assert result.exit_code == 0, result.output
    assert KERNEL in (engine / "step.engine").read_bytes()


def test_the_blocks_at_the_ends_attend_in_the_base_type():
    config = tiny_config(num_layers=30)
    asked = attention_inputs(config, Settings(backend="onnx", precision="fp8", attention="fp8"))
    assert len(asked) == 3 * 26
    assert {"blocks.1.attn1.query", "blocks.28.attn1.keys"}.isdisjoint(asked)
    assert asked[:3] == tuple(f"blocks.2.attn1.{part}" for part in ATTENDED)


@pytest.fixture(scope="module")
def onnx_folder(build_engine, calibration_file):
    """An engine for ONNX Runtime."""
    return build_engine("--backend", "onnx", *FP8, "--calibration", str(calibration_file))


def test_onnx_runtime_computes_the_program(onnx_folder, fp8_engine, checkpoint, calibration_file):
    graph, model = onnx_folder / "step.onnx", open_checkpoint(checkpoint).transformer()
    manifest = Manifest.read(onnx_folder)
    assert manifest.attention == "fp8"
    assert quantized_attentions(graph) == model.config.num_layers
    assert quantized_attentions(fp8_engine / "step.onnx") == 0
    assert masks(onnx.load(graph)) == []
    largest = Calibration.read(calibration_file).largest
    chosen = {
        name: largest[name]
        for name in (*manifest.layers["fp8"], *attention_inputs(model.config, settings(manifest)))
    }
    program = quantized(trace_step(model, batch=1, window="held"), chosen, "fp8").module()
    session = inference_session(graph)
    for number in (0, 2, 5):
        inputs = full_inputs(model, number)
        got = session.run(None, {name: np.asarray(value) for name, value in inputs.items()})
        for made, want, exact in zip(got, program(*inputs.values()), model(**inputs, full=True), strict=True):
            # Codes on an edge fall to either side, and every layer after them has others on an edge.
            assert_relative(torch.from_numpy(made), want, 0.05)
            assert error(torch.from_numpy(made), want) < 0.8 * error(torch.from_numpy(made), exact)


def error(got, want):
    return (got - want).norm() / want.norm()


def settings(manifest):
    return Settings(backend=manifest.backend, precision=manifest.precision, attention=manifest.attention)


def test_it_is_told_apart_from_others(onnx_folder):
    assert (
        "precision fp8, attention fp8, batch 1"
        in CliRunner().invoke(main, ["inspect", str(onnx_folder)]).output
    )
    listed = CliRunner().invoke(main, ["list", str(onnx_folder.parent)]).output
    assert "onnx fp8, attention fp8, batch 1" in listed


def test_rollouts_of_it_stay_within_the_bounds_of_fp8(onnx_folder):
    result = CliRunner().invoke(main, ["verify", str(onnx_folder), "--chunks", "4"])
    assert result.exit_code == 0, result.output
    assert "they hold" in result.output


def test_its_products_are_compared_layer_by_layer(onnx_folder):
    result = CliRunner().invoke(main, ["verify", str(onnx_folder), "--layers"])
    assert result.exit_code == 0, result.output
    assert "blocks.1.attn1.to_out" in result.output


def test_tensorrt_rtx_multiplies_codes_in_attention(build_engine, calibration_file):
    target = ("--backend", "tensorrt-rtx", "--target", "sm89,sm120", "--calibration", str(calibration_file))
    plain, codes = (build_engine(*target, *options) for options in (("--precision", "fp8"), FP8))
    assert KERNEL not in (plain / "step.engine").read_bytes()
    # A kernel for each layer, target and profile.
    assert (codes / "step.engine").read_bytes().count(KERNEL) >= 2 * 2 * 2


def test_a_graph_without_codes_is_refused_where_they_are_wanted(onnx_engine, tmp_path):
    request = tensorrt_build.BuildRequest(
        library="tensorrt_rtx", graph=str(onnx_engine / "step.onnx"), engine=str(tmp_path / "step.engine"),
        target="sm_89", fp8_attentions=2,
    )  # fmt: skip
    with pytest.raises(UserError, match="0 of 2 attentions on codes were found"):
        tensorrt_build.build(request)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"backend": "onnx", "precision": "fp32"},
            "needs a precision with scales; use --precision fp8 with it",
        ),
        ({"backend": "aoti", "precision": "fp8"}, "backend aoti takes no --attention fp8; leave it out"),
    ],
)
def test_what_it_does_not_go_with_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Settings(**options, attention="fp8")
