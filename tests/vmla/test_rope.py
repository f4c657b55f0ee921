"""Rotary positions are slices of Wan's own, and turn as complex numbers do."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from kit.measure import assert_close
from kit.tiny.models import draw

from vmla.rope import Rotary3D, rotate, split_pairs

pytestmark = pytest.mark.cpu

GRID = (5, 7)
PAPER = {"attention_head_dim": 128, "qk_rope_head_dim": 32, "grid": GRID}


def turned_as_complex(x, frames, kept):
    """Wan's formula for x [tokens, 2 * pairs] in complex float64; `kept` picks pairs of its 64."""
    axes = [10000.0 ** (-torch.arange(0, width, 2).double() / width) for width in (44, 42, 42)]
    rows = []
    for t in frames:
        for r in range(GRID[0]):
            for c in range(GRID[1]):
                turns = torch.cat([position * rates for position, rates in zip((t, r, c), axes, strict=True)])
                rows.append(turns[kept])
    turns = torch.polar(torch.ones(()).double(), torch.stack(rows))
    return torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turns).flatten(-2)


def test_whole_heads_turn_as_in_wan():
    rope, frames = Rotary3D(attention_head_dim=128, qk_rope_head_dim=128, grid=GRID), torch.tensor([0, 3, 21])
    x = draw(3 * GRID[0] * GRID[1], 128)
    expected = turned_as_complex(x, frames.tolist(), slice(None))
    assert_close(rotate(x, *rope(frames)), expected, rtol=0, atol=1e-5)


def test_the_shared_key_keeps_the_fastest_pairs_of_each_axis():
    """Pairs 0..5 of time, 22..26 of height, 43..47 of width: facts of arXiv 2605.30351, 3.2."""
    rope, frames = Rotary3D(**PAPER), torch.tensor([2, 0, 9])
    kept = [*range(6), *range(22, 27), *range(43, 48)]
    x = draw(3 * GRID[0] * GRID[1], 32)
    expected = turned_as_complex(x, frames.tolist(), kept)
    assert_close(rotate(x, *rope(frames)), expected, rtol=0, atol=1e-5)


def test_frequencies_are_those_of_the_paper():
    rope = Rotary3D(**PAPER)
    time = torch.tensor([1, 0.6579, 0.4329, 0.2848, 0.1874, 0.1233])
    space = torch.tensor([1, 0.6449, 0.4160, 0.2683, 0.1730])
    assert_close(rope.frequencies_time, time, rtol=0, atol=5e-5)
    assert_close(rope.frequencies_height, space, rtol=0, atol=5e-5)
    assert_close(rope.frequencies_width, space, rtol=0, atol=5e-5)


@pytest.mark.parametrize("attention_head_dim", [128, 64, 28, 16])
def test_angles_are_those_of_diffusers(attention_head_dim):
    theirs = WanRotaryPosEmbed(attention_head_dim, (1, 2, 2), 64)
    cos, sin = theirs(torch.empty(1, 16, 4, 2 * GRID[0], 2 * GRID[1]))
    ours = Rotary3D(attention_head_dim=attention_head_dim, qk_rope_head_dim=attention_head_dim, grid=GRID)(
        torch.arange(4)
    )
    # Theirs repeats each angle for both channels of its pair.
    assert_close(ours[0], cos[0, :, 0, 0::2], rtol=0, atol=1e-6)
    assert_close(ours[1], sin[0, :, 0, 1::2], rtol=0, atol=1e-6)


def test_pairs_are_split_by_wans_rule():
    splits = {pairs: split_pairs(pairs) for pairs in (4, 8, 16, 64)}
    assert splits == {4: (2, 1, 1), 8: (4, 2, 2), 16: (6, 5, 5), 64: (22, 21, 21)}


def test_scores_depend_on_distances_alone():
    rope = Rotary3D(**PAPER)
    query, key = draw(GRID[0] * GRID[1], 32, seed=1), draw(GRID[0] * GRID[1], 32, seed=2)
    scores = []
    for shift in (0, 4, 40):
        at = [rotate(x, *rope(torch.tensor([shift + place]))) for x, place in ((query, 5), (key, 2))]
        scores.append(at[0] @ at[1].T)
    assert_close(scores[1], scores[0], rtol=0, atol=1e-4)
    assert_close(scores[2], scores[0], rtol=0, atol=1e-3)
    assert (scores[0] - query @ key.T).abs().max() > 0.1


def test_turning_keeps_lengths_and_types():
    rope = Rotary3D(**PAPER)
    cos, sin = rope(torch.tensor([6]))
    x = draw(2, GRID[0] * GRID[1], 32)
    pairs = x.unflatten(-1, (-1, 2)).norm(dim=-1)
    assert_close(rotate(x, cos, sin).unflatten(-1, (-1, 2)).norm(dim=-1), pairs, rtol=1e-5, atol=1e-6)
    narrow = rotate(x.bfloat16(), cos, sin)
    assert narrow.dtype == torch.bfloat16
    # The angles were float32, and only the result was rounded.
    assert_close(narrow, rotate(x.bfloat16().float(), cos, sin), rtol=2**-8, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_of_the_model_leaves_the_frequencies_exact(dtype):
    rope, model = Rotary3D(**PAPER), torch.nn.Sequential(Rotary3D(**PAPER), torch.nn.Linear(2, 2))
    cast = model.to(dtype)
    assert cast[1].weight.dtype == dtype
    for ours, exact in zip(cast[0](torch.arange(9)), rope(torch.arange(9)), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, exact)


def test_it_moves_with_the_model():
    rope = Rotary3D(**PAPER).to("meta")
    assert rope.frequencies_time.device.type == "meta"
    assert rope.to_empty(device="cpu").frequencies_width.device.type == "cpu"
