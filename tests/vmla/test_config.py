"""Sizes: the paper's matrices and caches at full size, Wan's parameter counts, and refusals."""

import dataclasses

import pytest
import torch
from diffusers import WanTransformer3DModel
from kit.tiny.models import tiny_config

from plugins.errors import UserError
from vmla.attention import LatentAttention
from vmla.cache import CacheSpec
from vmla.config import MODEL_CONFIGS, WINDOWS, ModelConfig, named_config
from vmla.transformer import VideoMLA

pytestmark = pytest.mark.cpu

MATRICES = {
    "down_kv": (192, 1536), "up_k": (1152, 192), "up_v": (1536, 192), "down_q": (768, 1536),
    "up_q": (1152, 768), "rotary_k": (32, 1536), "rotary_q": (384, 768), "to_out": (1536, 1536),
}  # fmt: skip
"""arXiv 2605.30351, D.2: out x in."""
WAN = {
    "wan-1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "wan-14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
WHOLE = dataclasses.asdict(named_config("debug"))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_each_matrix_has_the_shape_of_the_paper():
    with torch.device("meta"):
        attention = LatentAttention(named_config("wan-1.3b"))
    shapes = {name: tuple(getattr(attention, name).weight.shape) for name in MATRICES}
    assert shapes == MATRICES
    matrices = sum(down * across for down, across in MATRICES.values())
    assert matrices == 5_578_752
    # Beside them only the gains of both latents and the output's bias.
    assert count(attention) == matrices + 192 + 768 + 1536


def test_self_attention_shrinks_as_in_the_paper():
    dense = 4 * 1536**2
    latent = sum(down * across for down, across in MATRICES.values())
    assert (round(latent / 1e6, 3), round(dense / 1e6, 3)) == (5.579, 9.437)
    assert round(latent / dense, 3) == 0.591
    assert round(30 * (dense - latent) / 1e6, 1) == 115.8


def test_a_token_leaves_what_the_paper_says():
    latent, dense = named_config("wan-1.3b"), named_config("wan-1.3b", layout="mha")
    assert (latent.entry_width, dense.entry_width) == (224, 3072)
    assert round(100 * (1 - 224 / 3072), 3) == 92.708
    assert (latent.attention_head_dim, latent.qk_nope_head_dim, latent.grid) == (128, 96, (30, 52))
    assert latent.tokens_per_frame == 1560
    assert named_config("wan-14b").inner_dim // 40 == 128


@pytest.mark.parametrize("name", WAN)
def test_mha_has_as_many_parameters_as_wan(name):
    with torch.device("meta"):
        ours = VideoMLA(named_config(name, layout="mha"))
        wan = WanTransformer3DModel(**WAN[name])
    assert count(ours) == count(wan)
    assert len(ours.state_dict()) == len(wan.state_dict())


def test_the_whole_model_has_the_parameters_that_the_paper_saves():
    with torch.device("meta"):
        latent, dense = (VideoMLA(named_config("wan-1.3b", layout=layout)) for layout in ("mla", "mha"))
    weights = 30 * (4 * 1536**2 - 5_578_752)
    # Wan's queries, keys and values have biases, and gains of full width.
    others = 30 * (3 * 1536 + 2 * 1536 - 192 - 768)
    assert count(dense) - count(latent) == weights + others


@pytest.mark.parametrize(
    ("frames", "dense", "latent"), [(21, 6.04, 0.440), (12, 3.45, 0.252), (7, 2.01, 0.147), (6, 1.73, 0.126)]
)
def test_cache_bytes_are_those_of_the_paper(frames, dense, latent):
    """In bfloat16, batch 1, 30 layers, in GB."""
    for layout, expected in (("mha", dense), ("mla", latent)):
        config = dataclasses.replace(named_config("wan-1.3b", layout=layout), sink=1, history=frames - 1)
        assert CacheSpec.of(config).bytes() / 1e9 == pytest.approx(expected, rel=3e-3)


def test_windows_are_the_three_readings():
    sizes = {}
    for name in WINDOWS:
        config = named_config("wan-1.3b", window=name)
        spec = CacheSpec.of(config)
        sizes[name] = (config.sink, spec.slots, spec.positions)
    assert sizes == {"total-6": (1, 3, 6), "sink-1-local-6": (1, 4, 7), "sink-1-history-6": (1, 7, 10)}


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_a_recipe_survives_json(name):
    config = named_config(name)
    assert ModelConfig.from_dict(dataclasses.asdict(config)) == config
    assert config.attention_head_dim > config.qk_rope_head_dim


FORMER = {
    "layout": "mla", "width": 256, "heads": 4, "layers": 6, "ffn_width": 1024, "latent_channels": 16,
    "patch": 2, "frequency_width": 256, "text_width": 128, "text_tokens": 112, "content_width": 32,
    "rotary_width": 16, "query_width": 128, "sink": 1, "history": 6, "chunk": 3, "height": 8,
    "image_width": 8, "eps": 1e-6,
}  # fmt: skip
"""A configuration as it was written before its settings had the field's names."""


def test_former_names_are_read_and_still_tell_models_apart():
    config = ModelConfig.from_dict(FORMER)
    assert (config.num_attention_heads, config.attention_head_dim, config.inner_dim) == (4, 64, 256)
    assert (config.kv_lora_rank, config.qk_rope_head_dim, config.q_lora_rank) == (32, 16, 128)
    assert config.identity() == FORMER
    assert ModelConfig.from_dict(dataclasses.asdict(config)) == config


@pytest.mark.parametrize("width", [255, "256", 256.0, True])
def test_a_former_width_is_a_whole_number_of_heads(width):
    with pytest.raises(UserError, match="is not a whole number of heads"):
        ModelConfig.from_dict({**FORMER, "width": width})


def test_recipes_differ_in_the_layout_alone():
    latent, dense = named_config("debug"), named_config("debug", layout="mha")
    assert dataclasses.replace(dense, layout="mla") == latent


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layout": "gqa"}, "no such layout: gqa"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"qk_rope_head_dim": 16}, "attention_head_dim 16 leaves no room for qk_rope_head_dim 16"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim is 7; it is even"),
        ({"attention_head_dim": 12, "qk_rope_head_dim": 10}, "of a head of 12"),
        ({"attention_head_dim": 11}, "of a head of 11"),
        ({"sample_height": 5}, "does not divide into patches"),
        ({"chunk": 0}, "chunk is 0; it is a whole number, 1 or more"),
        ({"history": -1}, "history is -1; it is a whole number, 0 or more"),
        ({"num_layers": "2"}, "num_layers is '2'"),
        ({"num_layers": 10**9}, "num_layers is 1000000000; it is a whole number, 1 or more and at most 4096"),
        ({"ffn_dim": 10**9}, "ffn_dim is 1000000000"),
        ({"num_attention_heads": 4096, "attention_head_dim": 128}, "makes a width of 524288"),
        ({"eps": float("nan")}, "eps is nan"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        VideoMLA(tiny_config(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: named_config("wan-2b"), "no such model: wan-2b; there are debug"),
        (lambda: named_config("debug", window="la6"), "no such window: la6; there are total-6"),
        (lambda: ModelConfig.from_dict({"widht": 3}), "model settings: field widht is unknown"),
        (lambda: ModelConfig.from_dict({"ffn_dim": 8}), "field num_attention_heads is missing"),
        (lambda: ModelConfig.from_dict({**WHOLE, "ffn_dim": 64.0}), "field ffn_dim is 64.0; input"),
    ],
)
def test_names_and_keys_that_do_not_exist_are_refused(call, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        call()
    assert "\n" not in str(caught.value)
