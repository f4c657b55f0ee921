"""The eager model in float8: which layers, how close, and when it is refused. On a CPU its codes are real."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kit.tiny.passes import pass_inputs

from bench.harness.subject import RandomText, random_model
from export.lowering.exclusions import reason_to_exclude
from plugins.errors import UserError
from plugins.fp8.product import reference_product
from runtime.engines.base import EagerEngine
from runtime.engines.layers.fp8_linear import Fp8Linear, choose_fp8, in_fp8, quantisable
from runtime.engines.optimizations import Optimizations, Place, optimized
from runtime.planning.request import prepare
from runtime.resume.sidecar import describe_model
from vmla.config import MODEL_CONFIGS
from vmla.fused_attention import FusedLatentAttention, QueriesApart, fused
from vmla.transformer import StepInputs

pytestmark = pytest.mark.cpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def model():
    return random_model(replace(MODEL_CONFIGS["debug"], num_layers=4))


def test_the_layers_are_those_that_compiled_engines_quantise():
    plain = model()
    names = [name for name, _ in quantisable(plain)]
    linear = {n: m for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)}
    assert names == [n for n, m in linear.items() if reason_to_exclude(n, m.weight.shape, 4) is None]
    kinds = {name.split(".", 2)[2] for name in names}
    assert kinds == {"attn1.down_q", "attn1.up_q", "attn1.to_out", "attn2.to_q", "attn2.to_out",
                     "ffn.up", "ffn.down"}  # fmt: skip
    assert {name.split(".")[1] for name in names} == {"1", "2"}
    replaced = [name for name, part in in_fp8(plain).named_modules() if isinstance(part, Fp8Linear)]
    assert replaced == names


def test_layers_of_joined_attention_are_the_same_if_they_are_left_apart():
    plain = model()
    names = [name for name, _ in quantisable(plain)]
    assert sorted(name for name, _ in quantisable(fused(plain, names))) == sorted(names)
    joined = {name for name, _ in quantisable(fused(plain))}
    assert joined == {name for name in names if not name.endswith(("down_q", "up_q"))}


def test_joined_attention_in_float8_computes_what_the_plain_form_computes():
    plain = model()
    inputs = pass_inputs(plain.config, 3, batch=1)
    joined = in_fp8(fused(plain, [name for name, _ in quantisable(plain)]))
    names = {name for name, part in joined.named_modules() if isinstance(part, Fp8Linear)}
    assert names == {name for name, _ in quantisable(plain)}
    for got, wanted in zip(joined(**inputs), in_fp8(plain)(**inputs), strict=True):
        # The same codes, but for numbers between two of them that another order of sums sends the other way.
        assert (got - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("fp8_queries", [True, False])
def test_an_engine_leaves_the_query_layers_apart_if_they_are_in_float8(fp8_queries):
    place = Place(device=GPU, dtype=torch.bfloat16, fp8=True)
    how = Optimizations(fp8_queries=fp8_queries, fp8_attention=False)
    # The blocks at both ends have no layer in float8, and so nothing to leave apart.
    kinds = [type(block.attn1) for block in optimized(model(), place, how).blocks]
    between = QueriesApart if fp8_queries else FusedLatentAttention
    assert kinds == [FusedLatentAttention, *[between] * (len(kinds) - 2), FusedLatentAttention]


def test_a_layer_computes_what_its_codes_stand_for_with_any_leading_shape():
    layer = torch.nn.Linear(32, 48)
    x = torch.randn(2, 3, 32)
    made = Fp8Linear(layer)
    rows = x.flatten(0, 1)
    scales = rows.abs().amax(dim=1, keepdim=True) / 448
    codes = (rows / scales).clamp(-448, 448).to(torch.float8_e4m3fn)
    wanted = reference_product(
        codes, scales, made.weight, made.weight_scales, layer.bias, dtype=torch.float32
    )
    assert torch.allclose(made(x), wanted.view(2, 3, 48), rtol=1e-5, atol=1e-5)
    assert 0 < (made(x) - layer(x)).norm() / layer(x).norm() < 0.06


def test_a_pass_comes_close_and_the_model_that_it_was_made_from_stays_as_it_was():
    plain = model()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    wide, narrow = (
        EagerEngine(plain, RandomText(plain.config), device=CPU, dtype=torch.float32, fp8=on)
        for on in (False, True)
    )
    inputs = StepInputs(**pass_inputs(plain.config, 3, batch=1))
    held = wide.cache_spec.slots
    for wanted, got in zip(wide.step(inputs, held=held), narrow.step(inputs, held=held), strict=True):
        assert 1e-4 < (got - wanted).norm() / wanted.norm() < 0.1
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_quantising_breaks_no_graph_of_a_compiler():
    narrow = in_fp8(model())
    layer = narrow.blocks[1].ffn
    assert isinstance(layer.down, Fp8Linear)
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    x = torch.randn(1, 6, narrow.config.inner_dim)
    with torch.no_grad():
        made = torch.compile(layer, backend=counted, fullgraph=True)(x)
        assert torch.equal(made, layer(x))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("device", "dtype", "engine", "said"),
    [
        (CPU, torch.float32, None, "is for a GPU, and cpu would be slower"),
        (GPU, torch.bfloat16, Path("engine"), "engine has a precision of its own"),
        (GPU, torch.float16, None, "goes with --dtype bfloat16"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do_instead(monkeypatch, device, dtype, engine, said):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(UserError, match=said):
        choose_fp8("fp8", device, dtype, engine)
    assert choose_fp8(None, device, dtype, engine) is False


def test_a_gpu_from_ada_on_takes_it_and_an_older_one_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert choose_fp8("fp8", GPU, torch.bfloat16, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(UserError, match="sm_86 does not multiply fp8, sm_89 and newer do"):
        choose_fp8("fp8", GPU, torch.bfloat16, None)


def test_a_video_remembers_it_and_a_cpu_refuses_it():
    with pytest.raises(UserError, match="--precision fp8 is for a GPU"):
        prepare("a red star", None, chunks=1, precision="fp8")
    job, _ = prepare("a red star", None, chunks=1)
    assert not job.fp8 and not describe_model(job)["fp8"]
    narrow = replace(job, fp8=True)
    told = describe_model(narrow)
    assert (told["fp8"], told["precision"], told["engine"]) == (True, "fp8", "eager")
    assert any(line.startswith("precision: fp8") for line in narrow.what_runs())
