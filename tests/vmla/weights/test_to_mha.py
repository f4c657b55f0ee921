"""Heads made of a latent compute what the latent computed, as far as their norms and rotations allow."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from kit.measure import assert_close
from kit.refusals import assert_one_line
from kit.tiny.checkpoints import as_trained_on, debug_checkpoint
from kit.tiny.models import draw, tiny_config

from vmla.attention import HeadAttention, LatentAttention, Window
from vmla.rope import Rotary3D
from vmla.train.cli.commands import main
from vmla.weights.checkpoint import open_checkpoint
from vmla.weights.conversion.spectral import channels
from vmla.weights.conversion.to_mha import slowest_first, unfold_attention
from vmla.world.worlds import SECOND

pytestmark = pytest.mark.cpu

CONFIG = tiny_config(kv_lora_rank=8, qk_rope_head_dim=4, q_lora_rank=12)


def latent_weights(config, seed):
    """Weights of latent attention, by name."""
    heads, nope, rotary = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    content, latent = config.kv_lora_rank, config.q_lora_rank
    return {
        "down_kv.weight": draw(content, config.inner_dim, seed=seed + 10),
        "norm_kv.weight": 1 + 0.3 * draw(content, seed=seed + 1),
        "up_k.weight": draw(heads * nope, content, seed=seed + 2),
        "up_v.weight": draw(config.inner_dim, content, seed=seed + 3),
        "rotary_k.weight": draw(rotary, config.inner_dim, seed=seed + 11),
        "down_q.weight": draw(latent, config.inner_dim, seed=seed + 4),
        "norm_q.weight": 1 + 0.3 * draw(latent, seed=seed + 5),
        "up_q.weight": draw(heads * nope, latent, seed=seed + 6),
        "rotary_q.weight": draw(heads * rotary, latent, seed=seed + 7),
        "to_out.weight": draw(config.inner_dim, config.inner_dim, seed=seed + 8),
        "to_out.bias": draw(config.inner_dim, seed=seed + 9),
    }  # fmt: skip


def both(config, weights, inputs):
    """The two attentions."""
    latent = LatentAttention(config)
    latent.load_state_dict(weights)
    made, energy = unfold_attention(weights, config, inputs, seed=3)
    heads = HeadAttention(config)
    heads.load_state_dict(made)
    return latent, heads, energy


def scores(attention, x, window):
    """What softmax is taken of: [N, S, S], for one clip x [1, S, D]."""
    if isinstance(attention, LatentAttention):
        nope, turned = attention.queries(x, window)
        queries = torch.cat([nope, turned], dim=-1)
        content, rotary = attention.entries(x).split([CONFIG.kv_lora_rank, CONFIG.qk_rope_head_dim], dim=-1)
        keys = attention.up_k(content).unflatten(-1, (CONFIG.num_attention_heads, -1)).transpose(1, 2)
        shared = turn(rotary[:, None], window).expand(-1, CONFIG.num_attention_heads, -1, -1)
        return queries[0] @ torch.cat([keys, shared], dim=-1)[0].mT
    query = (
        attention.norm_q(attention.to_q(x)).unflatten(-1, (CONFIG.num_attention_heads, -1)).transpose(1, 2)
    )
    keys = (
        attention.entries(x)
        .chunk(2, dim=-1)[0]
        .unflatten(-1, (CONFIG.num_attention_heads, -1))
        .transpose(1, 2)
    )
    return turn(query, window)[0] @ turn(keys, window)[0].mT


def turn(x, window):
    """Rotate x [..., S, channels], two neighbouring channels to a pair."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(window.cos, window.sin)).flatten(-2)


def test_scores_and_values_are_those_of_the_latent_where_sizes_are_equal():
    """One token at the origin at a time: nothing turns, and its sizes are its own."""
    weights = latent_weights(CONFIG, seed=0)
    x = draw(1, 1, CONFIG.inner_dim, seed=40)
    latent, heads, energy = both(CONFIG, weights, x[0])
    still = [Window(torch.ones(1, dtype=torch.bool), torch.ones(1, n // 2), torch.zeros(1, n // 2))
             for n in (CONFIG.qk_rope_head_dim, CONFIG.attention_head_dim)]  # fmt: skip
    with torch.no_grad():
        assert_close(scores(heads, x, still[1]), scores(latent, x, still[0]), rtol=1e-3, atol=1e-3)
        nothing = [x.new_empty(1, 0, width) for width in (CONFIG.entry_width, 2 * CONFIG.inner_dim)]
        out = heads(x, nothing[1], still[1])[0]
        assert_close(out, latent(x, nothing[0], still[0])[0], rtol=1e-3, atol=1e-3)
    assert energy["content"] == pytest.approx(1)


def test_rotary_channels_take_what_heads_shared():
    weights = latent_weights(CONFIG, seed=10)
    made, _ = unfold_attention(weights, CONFIG, draw(50, CONFIG.inner_dim, seed=50), seed=0)
    rows = made["to_k.weight"].unflatten(0, (CONFIG.num_attention_heads, -1))[:, channels(CONFIG)[0]]
    for head in rows:
        assert torch.equal(head, weights["rotary_k.weight"])


def test_content_lies_where_a_head_turns_least():
    config = replace(CONFIG, kv_lora_rank=4)
    order = slowest_first(config)
    assert sorted(order) == channels(config)[1]
    rope = Rotary3D(
        attention_head_dim=config.attention_head_dim,
        qk_rope_head_dim=config.attention_head_dim,
        grid=config.grid,
    )
    speeds = torch.cat([rope.frequencies_time, rope.frequencies_height, rope.frequencies_width])
    turned = [float(speeds[channel // 2]) for channel in order]
    assert turned == sorted(turned)
    made, energy = unfold_attention(latent_weights(config, seed=20), config, draw(9, 32, seed=60), seed=0)
    queries = made["to_q.weight"].unflatten(0, (config.num_attention_heads, -1))
    assert energy["content"] == pytest.approx(1)
    assert queries[:, order[:4]].abs().sum(-1).min() > 0
    assert queries[:, order[4:]].abs().sum() == 0
    assert (
        made["to_k.weight"].unflatten(0, (config.num_attention_heads, -1))[:, order[4:]].abs().sum(-1).min()
        > 0
    )


def test_the_command_unfolds_every_layer_and_keeps_the_rest(checkpoint, tmp_path):
    checkpoint = as_trained_on(SECOND.name, checkpoint, tmp_path / "of-the-second-world")
    result = CliRunner().invoke(
        main, ["convert", "--from", str(checkpoint), "--layout", "mha", "-o", str(tmp_path / "x")]
    )
    assert result.exit_code == 0, result.output
    made, source = open_checkpoint(tmp_path / "x"), open_checkpoint(checkpoint)
    assert made.model_config() == replace(source.model_config(), layout="mha")
    assert made.sampler() == source.sampler()
    assert made.world() == SECOND  # or its grades could not be compared with the source's
    before, after = source.transformer().state_dict(), made.transformer().state_dict()
    same = [name for name in after if ".attn1." not in name]
    assert same
    assert all(torch.equal(after[name], before[name]) for name in same)
    layers = json.loads((tmp_path / "x" / "conversion.json").read_text())["layers"]
    assert len(layers) == source.model_config().num_layers
    # Random weights; a head made anew would be off by about 1.4.
    assert all(layer["output error"]["unfolded"] < 0.5 for layer in layers)


def test_clips_are_rendered_for_a_checkpoint_and_not_mixed_with_others(checkpoint, tmp_path):
    def render(*arguments):
        place = str(tmp_path / "world")
        return CliRunner().invoke(main, ["render", "debug", "-o", place, *map(str, arguments)])

    result = render("--with", checkpoint, "--clips", 3, "--threads", torch.get_num_threads())
    assert result.exit_code == 0, result.output
    assert "3 clips in" in result.output
    assert len(list((tmp_path / "world").glob("latents-*.pt"))) == 2
    other = debug_checkpoint(tmp_path / "other")
    assert_one_line(render("--with", other, "--clips", 3), "latents-000000.pt")
    assert_one_line(render("--with", tmp_path / "none"), "no checkpoint")
