"""The operators as PyTorch sees them: registration, gradients, tracing, export, packages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kit.measure import assert_close, assert_relative
from kit.tiny.windows import Case, head_window, latent_query, latent_window, projections

from plugins import expand, mla_attention, mla_attention_absorbed

pytestmark = pytest.mark.cpu

CASE = Case(batch=1, heads=2, cached=5, own=3, content=4, rotary=4, nope=4, values=8, empty=(0, 3))
OPERATORS = ["expand", "mla_attention", "mla_attention_absorbed"]


def arguments(operator, *, dtype=torch.float32, poison=float("nan")):
    """Differentiable arguments first."""
    given = {"dtype": dtype, "poison": poison}
    if operator == "mla_attention":
        return head_window(CASE, seed=1, **given)
    cached, own, *tables = latent_window(CASE, seed=2, **given)
    if operator == "expand":
        return cached, own, *projections(CASE, seed=3, dtype=dtype), *tables, CASE.heads
    return latent_query(CASE, seed=4, dtype=dtype), cached, own, *tables, 0.3


def differentiable(operator):
    return {"expand": 4, "mla_attention": 3, "mla_attention_absorbed": 3}[operator]


class Calls(torch.nn.Module):
    """All three operators, one after the other, on the window of one layer."""

    def forward(self, query, latent, cached, own, up_key, up_value, cos, sin, valid):
        keys, values = expand(cached, own, up_key, up_value, cos, sin, valid, CASE.heads)
        out = mla_attention(query * 2, keys, values, valid)
        return out, mla_attention_absorbed(latent, cached, own, cos, sin, valid, 0.3)


def calls():
    cached, own, *tables = latent_window(CASE, seed=5)
    query = head_window(CASE, seed=6)[0]
    return query, latent_query(CASE, seed=7), cached, own, *projections(CASE, seed=8), *tables


@pytest.mark.parametrize("operator", OPERATORS)
def test_opcheck(operator):
    inputs = list(arguments(operator, poison=0.0))
    for place in range(differentiable(operator)):
        inputs[place] = inputs[place].requires_grad_()
    outcome = torch.library.opcheck(getattr(torch.ops.vmla, operator).default, tuple(inputs))
    assert set(outcome.values()) == {"SUCCESS"}


@pytest.mark.parametrize("operator", OPERATORS)
def test_gradients(operator):
    inputs = arguments(operator, dtype=torch.float64, poison=0.0)
    count = differentiable(operator)
    variables = [tensor.requires_grad_() for tensor in inputs[:count]]
    if operator != "mla_attention":
        tables = [tensor.double() if torch.is_tensor(tensor) and tensor.is_floating_point() else tensor
                  for tensor in inputs[count:]]  # fmt: skip
    else:
        tables = inputs[count:]
    function = getattr(torch.ops.vmla, operator)
    assert torch.autograd.gradcheck(lambda *xs: function(*xs, *tables), variables)


@pytest.mark.parametrize("operator", OPERATORS)
def test_empty_slots_leave_no_trace_in_gradients(operator):
    count, function = differentiable(operator), getattr(torch.ops.vmla, operator)
    gradients = []
    for poison in (0.0, float("nan")):
        inputs = arguments(operator, poison=poison)
        variables = [tensor.requires_grad_() for tensor in inputs[:count]]
        out = function(*variables, *inputs[count:])
        total = sum(part.square().sum() for part in (out if isinstance(out, tuple) else (out,)))
        gradients.append(torch.autograd.grad(total, variables))
    for clean, poisoned in zip(*gradients, strict=True):
        assert_close(poisoned, clean, rtol=0, atol=0)


def test_traced_under_compile_it_gives_the_same():
    module, inputs = Calls(), calls()
    traced = torch.compile(module, fullgraph=True, backend="aot_eager")
    for out, expected in zip(traced(*inputs), module(*inputs), strict=True):
        assert_relative(out, expected, 1e-6)


def test_export_keeps_the_nodes_until_they_are_decomposed():
    module, inputs = Calls(), calls()
    program = torch.export.export(module, inputs)
    assert targets(program) >= {f"vmla.{operator}.default" for operator in OPERATORS}
    assert targets(program.run_decompositions({})) >= {f"vmla.{operator}.default" for operator in OPERATORS}
    whole = program.run_decompositions()
    assert not [target for target in targets(whole) if target.startswith("vmla")]
    for out, expected in zip(whole.module()(*inputs), module(*inputs), strict=True):
        assert_relative(out, expected, 1e-6)


def targets(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


LOADER = """
import sys, torch
inputs, expected = torch.load(sys.argv[2])
outputs = torch._inductor.aoti_load_package(sys.argv[1])(*inputs)
assert "plugins" not in sys.modules
print(max(float((a - b).abs().max()) for a, b in zip(outputs, expected)))
"""


def test_a_package_runs_where_the_operators_are_not_registered(tmp_path):
    module, inputs = Calls(), calls()
    package, tensors = tmp_path / "calls.pt2", tmp_path / "tensors.pt"
    program = torch.export.export(module, inputs)
    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    torch.save((inputs, module(*inputs)), tensors)
    command = [sys.executable, "-c", LOADER, str(package), str(tensors)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(tmp_path), timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


def test_autocast_unites_the_types():
    query, keys, values, valid = head_window(CASE, seed=9)
    with torch.autocast("cpu", torch.bfloat16):
        out = mla_attention(query.bfloat16(), keys, values.bfloat16(), valid)
    assert out.dtype == torch.bfloat16
    assert_relative(out, mla_attention(query, keys, values, valid), 2e-2)
