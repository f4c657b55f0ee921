"""Latent attention of any convention is recognised, mapped, and comes in exactly as our own weights."""

import pytest
import torch
import yaml
from click.testing import CliRunner
from kit.refusals import refusal
from kit.tiny.models import draw, tiny_config, tiny_model
from safetensors.torch import save_file

from vmla.train.cli.commands import main
from vmla.weights.inspection.conventions import role_of
from vmla.weights.inspection.mapping import read_map
from vmla.weights.key_mapping import to_diffusers, to_wan
from vmla.weights.source import open_source, published

pytestmark = pytest.mark.cpu

MODEL = tiny_model()
CONFIG = MODEL.config
HEADS, HEAD, ROTARY = CONFIG.num_attention_heads, CONFIG.attention_head_dim, CONFIG.qk_rope_head_dim


# Conventions, written by hand: our matrices of one layer to those of a file. Rotary rows are ours, neighbours
# to a pair; `halves` puts all first ones before all second ones.


def halves(matrix, heads=1):
    grouped = matrix.unflatten(0, (heads, -1, 2))
    return grouped.transpose(1, 2).flatten(0, 2)


def by_head(*matrices):
    """Matrices of all heads, joined within each head."""
    return torch.cat([m.unflatten(0, (HEADS, -1)) for m in matrices], dim=1).flatten(0, 1)


def deepseek(w):
    """As `DeepseekV2Attention` of transformers."""
    return {
        "q_a_proj.weight": w["down_q"], "q_a_layernorm.weight": w["norm_q"],
        "q_b_proj.weight": by_head(w["up_q"], w["rotary_q"]),
        "kv_a_proj_with_mqa.weight": torch.cat([w["down_kv"], w["rotary_k"]]),
        "kv_a_layernorm.weight": w["norm_kv"], "kv_b_proj.weight": by_head(w["up_k"], w["up_v"]),
        "o_proj.weight": w["to_out"], "o_proj.bias": w["bias"],
    }  # fmt: skip


def deepseek_inference(w):
    """As DeepSeek's own inference code."""
    names = {"q_a_proj": "wq_a", "q_a_layernorm": "q_norm", "q_b_proj": "wq_b", "kv_a_proj_with_mqa": "wkv_a",
             "kv_a_layernorm": "kv_norm", "kv_b_proj": "wkv_b", "o_proj": "wo"}  # fmt: skip
    return {f"{names[n.split('.')[0]]}.{n.split('.')[1]}": t for n, t in deepseek(w).items()}


def letters(w):
    """As papers write them: parameters without modules, all apart."""
    return {
        "W_DKV": w["down_kv"], "W_UK": w["up_k"], "W_UV": w["up_v"], "W_KR": w["rotary_k"],
        "W_DQ": w["down_q"], "W_UQ": w["up_q"], "W_QR": w["rotary_q"], "W_O.weight": w["to_out"],
        "W_O.bias": w["bias"], "kv_norm.weight": w["norm_kv"], "q_norm.weight": w["norm_q"],
    }  # fmt: skip


def short_rotary_first_halved(w):
    """Fused with the rotary part first, whose pairs lie half a width apart."""
    return {
        "kv_a.weight": torch.cat([halves(w["rotary_k"]), w["down_kv"]]), "kv_a_norm.weight": w["norm_kv"],
        "kv_b.weight": by_head(w["up_k"], w["up_v"]), "q_a.weight": w["down_q"],
        "q_a_norm.weight": w["norm_q"], "q_b.weight": by_head(halves(w["rotary_q"], HEADS), w["up_q"]),
        "o.weight": w["to_out"], "o.bias": w["bias"],
    }  # fmt: skip


def apart_halved(w):
    return {
        "kv_down.weight": w["down_kv"], "kv_norm.weight": w["norm_kv"], "k_up.weight": w["up_k"],
        "v_up.weight": w["up_v"], "k_rope.weight": halves(w["rotary_k"]), "q_down.weight": w["down_q"],
        "q_norm.weight": w["norm_q"], "q_up.weight": w["up_q"],
        "q_rope.weight": halves(w["rotary_q"], HEADS), "o.weight": w["to_out"], "o.bias": w["bias"],
    }  # fmt: skip


def named_after_diffusers(w):
    return {
        "to_kv_down.weight": w["down_kv"], "norm_kv.weight": w["norm_kv"], "to_k_up.weight": w["up_k"],
        "to_v_up.weight": w["up_v"], "to_k_pe.weight": w["rotary_k"], "to_q_down.weight": w["down_q"],
        "norm_q.weight": w["norm_q"], "to_q_up.weight": w["up_q"], "to_q_pe.weight": w["rotary_q"],
        "to_out.0.weight": w["to_out"], "to_out.0.bias": w["bias"],
    }  # fmt: skip


def transposed_by_head(w):
    """Inputs in rows where they can be told, and up-projections with a dimension for heads."""
    return {
        "W_dkv": w["down_kv"].T, "w_uk": w["up_k"].unflatten(0, (HEADS, -1)),
        "w_uv": w["up_v"].unflatten(0, (HEADS, -1)), "w_kr": w["rotary_k"].T, "w_dq": w["down_q"].T,
        "w_uq": w["up_q"].unflatten(0, (HEADS, -1)), "w_qr": w["rotary_q"].unflatten(0, (HEADS, -1)),
        "w_o.weight": w["to_out"], "w_o.bias": w["bias"], "ckv_norm.weight": w["norm_kv"],
        "cq_norm.weight": w["norm_q"],
    }  # fmt: skip


CONVENTIONS = {
    "deepseek": (deepseek, "self_attn", []),
    "deepseek inference": (deepseek_inference, "attn", []),
    "letters": (letters, "self_attn", []),
    "rotary first, halved": (
        short_rotary_first_halved,
        "self_attn",
        ["--rotary", "first", "--pairs", "halved"],
    ),
    "apart, halved": (apart_halved, "self_attn", ["--pairs", "halved"]),
    "after diffusers": (named_after_diffusers, "attn1", []),
    "transposed": (transposed_by_head, "mla", []),
}


def write(path, convention, *, attention="self_attn", diffusers=False, change=None):
    """A file of `MODEL` whose attention is of another convention."""
    translate = to_diffusers if diffusers else to_wan
    held = {}
    for name, tensor in MODEL.state_dict().items():
        if ".attn1." not in name:
            held[translate(name)] = tensor
    held["patch_embedding.weight"] = published(MODEL, wan=True)["patch_embedding.weight"]
    for layer in range(CONFIG.num_layers):
        own = MODEL.blocks[layer].attn1.state_dict()
        matrices = {name.removesuffix(".weight"): t for name, t in own.items() if name.endswith(".weight")}
        for name, tensor in convention({**matrices, "bias": own["to_out.bias"]}).items():
            held[f"blocks.{layer}.{attention}.{name}"] = tensor
    if change is not None:
        change(held)
    save_file({f"model.{name}": tensor.contiguous() for name, tensor in held.items()}, path)
    return path


def inspect(*arguments):
    return CliRunner().invoke(main, ["inspect", "--heads", str(HEADS), *map(str, arguments)])


def opened(path, map_file):
    return open_source(path, like=tiny_config(), cuts=read_map(map_file))


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("diffusers", [False, True], ids=["wan", "diffusers"])
def test_every_convention_comes_in_exactly(tmp_path, name, diffusers):
    convention, attention, options = CONVENTIONS[name]
    path = write(tmp_path / "x.safetensors", convention, attention=attention, diffusers=diffusers)
    result = inspect(path, "-o", tmp_path / "map.yaml", *options)
    assert result.exit_code == 0, result.output
    assert "is a Wan transformer of 2 layers under" in result.output
    assert "with latent attention" in result.output
    assert "not recognised" not in result.output
    assert "not found" not in result.output
    source = opened(path, tmp_path / "map.yaml")
    assert source.config == CONFIG
    ours, theirs = source.model().state_dict(), MODEL.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_convert_applies_an_edited_mapping(tmp_path):
    """What names and shapes do not say, the rows of a fused projection and the pairs, is written by hand."""
    path = write(tmp_path / "x.safetensors", short_rotary_first_halved)
    assert inspect(path, "-o", tmp_path / "map.yaml").exit_code == 0
    values = yaml.safe_load((tmp_path / "map.yaml").read_text())
    latent, content = CONFIG.kv_lora_rank, CONFIG.qk_nope_head_dim
    values["parts"]["down_kv.weight"]["rows"] = [ROTARY, ROTARY + latent]
    values["parts"]["rotary_k.weight"] |= {"rows": [0, ROTARY], "pairs": "halved"}
    values["parts"]["up_q.weight"]["rows"] = [ROTARY, ROTARY + content]
    values["parts"]["rotary_q.weight"] |= {"rows": [0, ROTARY], "pairs": "halved"}
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(values))
    arguments = ["--from", path, "--map", tmp_path / "map.yaml", "--sizes", "debug", "-o", tmp_path / "out"]
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    from vmla.weights.checkpoint import open_checkpoint

    ours = open_checkpoint(tmp_path / "out").transformer().state_dict()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in MODEL.state_dict().items())


def test_what_is_left_over_is_refused_in_one_line(tmp_path):
    def more(held):
        held["blocks.1.self_attn.k_norm.weight"] = torch.ones(3)

    path = write(tmp_path / "x.safetensors", deepseek, change=more)
    assert inspect(path, "-o", tmp_path / "map.yaml").exit_code == 0
    said = refusal(lambda: opened(path, tmp_path / "map.yaml"))
    assert "the mapping leaves over blocks.1.self_attn.k_norm.weight; map it, or name it under ignore" in said
    values = yaml.safe_load((tmp_path / "map.yaml").read_text())

    def edited(**changes):
        (tmp_path / "edited.yaml").write_text(yaml.safe_dump(values | changes))
        return opened(path, tmp_path / "edited.yaml")

    assert edited(ignore=["k_norm.weight"]).config == CONFIG
    ignored, parts = {"ignore": ["k_norm.weight"]}, values["parts"]
    short = {**parts, "down_kv.weight": {"tensor": "kv_a_proj_with_mqa.weight", "rows": [0, 11]}}
    said = refusal(lambda: edited(parts=short, **ignored))
    assert "leaves over 1 rows of kv_a_proj_with_mqa.weight, from row 11; mend rows" in said
    twice = {**parts, "down_kv.weight": {"tensor": "kv_a_proj_with_mqa.weight", "rows": [0, 13]}}
    assert "takes twice 1 rows" in refusal(lambda: edited(parts=twice, **ignored))
    for changes, complaint in (
        ({"heads": 3}, "are not 3 heads; mend heads"),
        (
            {"attention": "blocks.{layer}.attn."},
            "has no tensor named blocks.{layer}.attn....; mend attention",
        ),
        ({"attention": "blocks.0."}, "attention has {layer} in it"),
        (
            {"parts": {**parts, "up_z.weight": {"tensor": None}}},
            "maps up_z.weight, which latent attention does not have",
        ),
        ({"parts": {"to_out.bias": {"tensor": None}}}, "names no tensor for down_kv.weight, norm_kv.weight"),
        (
            {"parts": {**parts, "up_k.weight": {"tensor": "x"}}},
            "has no tensor blocks.0.self_attn.x; mend the",
        ),
        ({"parts": {**parts, "up_k.weight": {"rows": [0, 1]}}}, "field parts.up_k.weight.tensor is missing"),
        (
            {"parts": {**parts, "up_k.weight": {"tensor": "x", "rows": [3, 1]}}},
            "rows of x is [3, 1]; it is [from",
        ),
        (
            {"parts": {**parts, "up_k.weight": {"tensor": "x", "pairs": "odd"}}},
            "field parts.up_k.weight.pairs is 'odd'; input should be 'interleaved'",
        ),
        ({"heads": "2"}, "field heads is '2'; input should be a valid integer"),
    ):
        assert complaint in refusal(lambda changes=changes: edited(**{**ignored, **changes}))
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "is not valid YAML" in refusal(lambda: read_map(tmp_path / "bad.yaml"))
    assert "is missing; vmla-train inspect writes one" in refusal(lambda: read_map(tmp_path / "none.yaml"))


def test_attention_of_other_names_says_how_to_go_on(tmp_path):
    path = write(tmp_path / "x.safetensors", deepseek)
    said = refusal(lambda: open_source(path, like=tiny_config()))
    assert f"has attention of its own names; vmla-train inspect {path} -o map.yaml proposes" in said


def test_a_projection_without_bias_gets_zeros(tmp_path):
    def bare(w):
        return {name: tensor for name, tensor in deepseek(w).items() if name != "o_proj.bias"}

    path = write(tmp_path / "x.safetensors", bare)
    result = inspect(path, "-o", tmp_path / "map.yaml")
    assert "o_proj.weight has no bias: zeros" in result.output
    model = opened(path, tmp_path / "map.yaml").model()
    assert torch.equal(model.blocks[1].attn1.to_out.bias, torch.zeros(CONFIG.inner_dim))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (published(tiny_model(layout="mha"), wan=True), "under Wan's own names, with attention per head"),
        ({"blocks.0.self_attn.q.lora_A.weight": draw(2, 3)}, "is LoRA weights: changes to a model"),
        ({"decoder.up_blocks.0.x": draw(2), "decoder.mid_block.y": draw(2)}, "is Wan's codec, as diffusers"),
        ({"encoder.block.0.layer.0.x": draw(2), "shared.weight": draw(2)}, "is a text encoder (UMT5"),
        ({"layers.0.x": draw(2, 3), "layers.1.x": draw(2, 3)}, "is nothing that is known here"),
    ],
)
def test_inspect_says_what_a_file_is(tmp_path, tensors, said):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    result = inspect(tmp_path / "x.safetensors")
    assert result.exit_code == 0, result.output
    assert said in result.output
    if "layers.0.x" in tensors:
        assert "    2 x layers.N.x [2, 3]" in result.output


def test_names_have_roles():
    expected = {
        "kv_a_proj_with_mqa": "kv_down", "wkv_a": "kv_down", "W_DKV": "kv_down", "kv_compress": "kv_down",
        "kv_b_proj": "kv_up", "W_UKV": "kv_up", "W_UK": "k_up", "v_up_proj": "v_up", "kv_b_k": "k_up",
        "k_pe_proj": "k_rope", "W_KR": "k_rope", "wq_a": "q_down", "q_lora_a": "q_down", "wq_b": "q_up",
        "W_QR": "q_rope", "q_a_layernorm": "q_norm", "c_kv_norm": "kv_norm", "to_out.0": "out", "wo": "out",
        "gate": None, "k_norm": None,
    }  # fmt: skip
    assert {name: role_of(name) for name in expected} == expected
