"""Muon against PyTorch's own in bfloat16, bit for bit, and against itself in float32."""

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import draw

from vmla.train.optim.muon import Muon, orthogonal

pytestmark = pytest.mark.cpu

SHAPES = ((8, 8), (24, 6), (6, 24), (1, 5), (5, 1))
THEIRS = {"lr": 0.02, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}


def matrices():
    return [torch.nn.Parameter(draw(*shape, seed=seed)) for seed, shape in enumerate(SHAPES)]


def stepped(parameters, optimizer, steps):
    """After some steps with gradients that anyone draws alike; one matrix has none at every third."""
    for step in steps:
        for place, parameter in enumerate(parameters):
            parameter.grad = draw(*parameter.shape, seed=100 * step + place)
        parameters[0].grad = None if step % 3 == 0 else parameters[0].grad
        optimizer.step()
    return parameters


def test_in_bfloat16_it_is_pytorchs_bit_for_bit():
    ours, theirs = matrices(), matrices()
    stepped(ours, Muon(ours, lr=0.02, dtype=torch.bfloat16), range(6))
    stepped(theirs, torch.optim.Muon(theirs, **THEIRS), range(6))
    for one, other, start in zip(ours, theirs, matrices(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)


def test_it_goes_on_from_pytorchs_state_and_in_another_type():
    whole, parts = matrices(), matrices()
    stepped(whole, Muon(whole, lr=0.02, dtype=torch.float32), range(6))
    first = torch.optim.Muon(parts, **THEIRS)
    stepped(parts, first, range(3))
    then = Muon(parts, lr=1.0, dtype=torch.float32)
    then.load_state_dict(first.state_dict())
    assert then.param_groups[0]["lr"] == 0.02
    stepped(parts, then, range(3, 6))
    for one, other in zip(parts, whole, strict=True):
        # Three updates of 0.02 x 0.2 were rounded to eight bits five times over.
        assert_close(one, other, rtol=0, atol=3e-3)
        assert then.state[one]["momentum_buffer"].dtype == torch.float32


@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)], ids=str)
def test_singular_values_come_near_one_and_their_vectors_stay(shape):
    matrix = draw(*shape)
    before = matrix.clone()
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    for dtype in (torch.float32, torch.bfloat16):
        made = orthogonal(matrix, dtype)
        assert made.dtype == dtype
        inside = u.T @ made.float() @ v.T
        values = inside.diagonal()
        assert float(values.min()) > 0.4 and float(values.max()) < 1.4
        off = (inside - values.diag()).abs().max()
        assert off < (1e-4 if dtype == torch.float32 else 0.1)
    assert torch.equal(matrix, before)


def test_a_gradient_of_zero_moves_nothing():
    assert torch.equal(orthogonal(torch.zeros(3, 4), torch.float32), torch.zeros(3, 4))


def least_squares(dtype):
    """Losses of a two-layer network that learns a linear map with Muon."""
    layers = [torch.nn.Parameter(draw(32, 16) / 4), torch.nn.Parameter(draw(8, 32, seed=1) / 6)]
    x, wanted, losses = draw(16, 200, seed=2), draw(8, 16, seed=3) @ draw(16, 200, seed=2), []
    optimizer = Muon(layers, lr=0.02, dtype=dtype)
    for _ in range(40):
        loss = (layers[1] @ (layers[0] @ x).tanh() - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return torch.tensor(losses)


def test_both_types_descend_alike():
    """To three digits of the first loss."""
    wide, narrow = least_squares(torch.float32), least_squares(torch.bfloat16)
    assert wide[-1] < 0.8 * wide[0]
    assert_close(narrow, wide, rtol=0, atol=1e-3 * float(wide[0]))
