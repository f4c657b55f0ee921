"""LoRA files of every trainer are added to the weights that they belong to; what fits nothing is refused."""

import json

import pytest
import torch
from kit.measure import assert_close
from kit.tiny.models import draw, tiny_config, tiny_model
from safetensors.torch import save_file

from plugins.errors import UserError
from vmla.weights.key_mapping import to_diffusers, to_wan
from vmla.weights.source import open_source, published

pytestmark = pytest.mark.cpu

CHANGED = ("blocks.0.attn1.to_q.weight", "blocks.1.ffn.down.weight", "blocks.1.attn2.to_out.weight")
RANK = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "x.safetensors"
    tensors = published(tiny_model(layout="mha"), wan=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return open_source(path, like=tiny_config())


def halves(name, shapes, seed):
    rows, columns = shapes[name].shape
    return draw(RANK, columns, seed=seed), draw(rows, RANK, seed=seed + 50)


CONVENTIONS = {
    "peft": (to_wan, "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", None),
    "LongLive": (to_wan, "base_model.model.model.{}.lora_A.default.weight",
                 "base_model.model.model.{}.lora_B.default.weight", None),
    "diffusers": (to_diffusers, "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", None),
    "ComfyUI": (to_wan, "diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight",
                "diffusion_model.{}.alpha"),
    "kohya": (to_wan, "lora_unet_{_}.lora_down.weight", "lora_unet_{_}.lora_up.weight",
              "lora_unet_{_}.alpha"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_changes_are_added_to_their_weights(tmp_path, source, name, strength):
    translate, down, up, alpha = CONVENTIONS[name]
    before = source.model().state_dict()
    held, expected = {}, dict(before)
    for seed, weight in enumerate(CHANGED):
        module = translate(weight).removesuffix(".weight")
        place = {"_": module.replace(".", "_")}
        low, high = halves(weight, before, seed)
        held[down.format(module, **place)], held[up.format(module, **place)] = low, high
        if alpha is not None:
            held[alpha.format(module, **place)] = torch.tensor(6.0)
        scale = strength * (6.0 / RANK if alpha is not None else 1)
        expected[weight] = before[weight] + scale * (high @ low)
    if name == "LongLive":
        path = tmp_path / "lora.pt"
        torch.save({"generator_lora": held, "critic_lora": {"x": torch.ones(1)}, "step": 3000}, path)
    else:
        path = tmp_path / "lora.safetensors"
        save_file(held, path)
    after = source.with_lora(path, strength).model().state_dict()
    for key, tensor in after.items():
        assert_close(tensor, expected[key], rtol=1e-6, atol=1e-6)
    assert not torch.equal(after[CHANGED[0]], before[CHANGED[0]])


def test_pefts_configuration_has_the_alpha(tmp_path, source):
    before = source.model().state_dict()
    low, high = halves(CHANGED[0], before, 1)
    module = to_wan(CHANGED[0]).removesuffix(".weight")
    save_file(
        {f"{module}.lora_A.weight": low, f"{module}.lora_B.weight": high}, tmp_path / "lora.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 12, "r": RANK}))
    after = source.with_lora(tmp_path / "lora.safetensors").tensor(CHANGED[0])
    assert_close(after, before[CHANGED[0]] + 4 * (high @ low), rtol=1e-6, atol=1e-6)


def test_an_alpha_of_nothing_changes_nothing(tmp_path, source):
    before = source.tensor(CHANGED[0])
    module = to_wan(CHANGED[0]).removesuffix(".weight")
    halves = {f"{module}.lora_A.weight": draw(RANK, 32), f"{module}.lora_B.weight": draw(32, RANK)}
    save_file(halves, tmp_path / "lora.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 0}))
    assert torch.equal(source.with_lora(tmp_path / "lora.safetensors").tensor(CHANGED[0]), before)


def test_a_name_of_very_many_parts_takes_no_time(tmp_path, source):
    save_file({"a." * 1_000_000 + "lora_A.weight": draw(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError, match="which is no LoRA of a linear layer"):
        source.with_lora(tmp_path / "lora.safetensors")


def test_what_fits_no_layer_is_refused(tmp_path, source):
    name = "diffusion_model.blocks.0.self_attn.q"
    pair = {f"{name}.lora_A.weight": draw(3, 32), f"{name}.lora_B.weight": draw(32, 3)}
    spoilt = {
        "diffusion_model.blocks.7.self_attn.q.lora_A.weight, which is no LoRA of a linear layer": {
            **pair, "diffusion_model.blocks.7.self_attn.q.lora_A.weight": draw(3, 32)},
        "has diffusion_model.blocks.0.norm3.diff, which is no": {
            **pair, "diffusion_model.blocks.0.norm3.diff": draw(3)},
        "lacks the up matrix of blocks.0.attn1.to_q.weight": {f"{name}.lora_A.weight": draw(3, 32)},
        "its layer is [32, 32]": {**pair, f"{name}.lora_B.weight": draw(7, 3)},
        "is [32, 0] times [0, 32]": {
            f"{name}.lora_A.weight": draw(0, 32), f"{name}.lora_B.weight": draw(32, 0)},
        "is [32, 3] times [3]": {**pair, f"{name}.lora_A.weight": draw(3)},
        "lora_B.weight is not finite": {**pair, f"{name}.lora_B.weight": draw(32, 3) / 0},
        "alpha is not finite": {**pair, f"{name}.alpha": torch.tensor(float("nan"))},
        "to_q.weight with diffusion_model.blocks.0.self_attn.q.lora_B.weight is not finite": {
            **pair, f"{name}.lora_B.weight": draw(32, 3) * 1e30, f"{name}.alpha": torch.tensor(1e30)},
        "lora_A.weight holds codes (int8)": {
            **pair, f"{name}.lora_A.weight": torch.ones(3, 32, dtype=torch.int8)},
        "lora_B.weight holds codes (complex64)": {
            **pair, f"{name}.lora_B.weight": torch.ones(32, 3, dtype=torch.complex64)},
        "alpha is [2], not one number": {**pair, f"{name}.alpha": torch.ones(2)},
    }  # fmt: skip
    for complaint, held in spoilt.items():
        save_file(held, tmp_path / "lora.safetensors")
        with pytest.raises(UserError) as caught:
            source.with_lora(tmp_path / "lora.safetensors").model()
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is a folder; name the LoRA file in it"):
        source.with_lora(tmp_path)
    with pytest.raises(UserError, match="the strength of .* is nan; use a number"):
        source.with_lora(tmp_path / "lora.safetensors", float("nan"))
