"""Weights in every form in use come in the same; what is no model is refused by its name."""

import json
import pickle

import numpy as np
import pytest
import torch
from kit.references.wan import wan_transformer
from kit.refusals import refusal
from kit.tiny.models import draw, randomise, tiny_config, tiny_model
from safetensors.torch import save_file

from vmla.weights.formats.locate_files import weights_in
from vmla.weights.formats.pickles import open_pickle
from vmla.weights.source import open_source, published

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def model():
    return tiny_model(layout="mha")


@pytest.fixture(scope="module")
def tensors(model):
    return {name: tensor.contiguous() for name, tensor in published(model, wan=True).items()}


def opened(path, **options):
    return open_source(path, like=tiny_config(), **options)


def assert_is(source, model, **tolerance):
    ours, theirs = source.model().state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}))


# Folders


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_folders_as_diffusers_writes_them(tmp_path, sharded, variant, safe):
    config = tiny_config(layout="mha")
    wan = randomise(wan_transformer(config))
    how = {"max_shard_size": "20KB"} if sharded else {}
    wan.save_pretrained(tmp_path, variant=variant, safe_serialization=safe, **how)
    found = weights_in(tmp_path)
    assert (found.variant, found.kind) == (variant, ".safetensors" if safe else ".bin")
    assert (len(found.files) > 2) == sharded
    whole = {**wan.state_dict()}
    source = opened(tmp_path)
    assert torch.equal(source.tensor("proj_out.weight"), whole["proj_out.weight"])
    assert torch.equal(source.tensor("blocks.1.ffn.up.bias"), whole["blocks.1.ffn.net.0.proj.bias"])


def test_plain_weights_come_before_variants_and_one_of_several_is_chosen(tmp_path, tensors):
    (tmp_path / "config.json").write_text('{"_class_name": "WanModel", "num_heads": 2}')
    for variant in ("bf16", "fp16"):
        save_file(tensors, tmp_path / f"diffusion_pytorch_model.{variant}.safetensors")
    assert "has weights of bf16 and fp16; choose one with --variant" in refusal(lambda: opened(tmp_path))
    assert opened(tmp_path, variant="fp16").path.name == "diffusion_pytorch_model.fp16.safetensors"
    said = refusal(lambda: opened(tmp_path, variant="int8"))
    assert "lacks weights of variant int8; its variants are bf16, fp16" in said
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    assert opened(tmp_path).path.name == "diffusion_pytorch_model.safetensors"


def test_an_index_that_names_no_shards_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for weight_map in ({}, {"a": 3}, {"a": "../b"}, ["a"]):
        index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert str(index) in refusal(lambda: opened(tmp_path))


# Pickles


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_torch_saved_is_read(tmp_path, model, tensors, suffix, legacy):
    path = tmp_path / f"x{suffix}"
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    assert_is(opened(path), model)


def test_tensors_of_a_zip_file_stay_on_disk_until_they_are_used(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"big": torch.zeros(1 << 20)}, path)
    tensor = open_pickle(path)["big"]
    content = bytearray(path.read_bytes())
    at = -(-content.index(bytes(4096)) // 64) * 64  # where a tensor may begin
    with path.open("r+b") as file:  # what is mapped shows what is written later
        file.seek(at + 4096)
        file.write(np.float32(7).tobytes() * 64)
    assert (tensor == 7).sum() > 60


def test_numbers_beside_tensors_are_left_out_and_named(tmp_path, model, tensors):
    beside = {"step": np.float64(3), "loss": np.float32(0.5), "epoch": 3, "note": "x", "seen": np.int64(9)}
    torch.save({**tensors, **beside}, tmp_path / "x.pt")
    source = opened(tmp_path / "x.pt")
    assert_is(source, model)
    assert sorted(source.beside) == sorted(beside)
    held = {"state_dict": {f"model.diffusion_model.{n}": t for n, t in tensors.items()}, **beside}
    torch.save(held, tmp_path / "lightning.ckpt")
    assert_is(opened(tmp_path / "lightning.ckpt"), model)


class Bomb:
    """Touches a file when it is unpickled by Python's own rules."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_no_code_is_run(tmp_path, tensors, how):
    held = {"generator": tensors, "bomb": Bomb(tmp_path / "ran")}
    path = tmp_path / "x.ckpt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=how == "zip")
    said = refusal(lambda: opened(path))
    if how == "pickle":  # of another protocol than PyTorch's
        assert "cannot be read as a file of tensors alone" in said
    else:
        assert "open beside its tensors; reading it would run code" in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"blocks.0.ffn.0.weight": torch.zeros(64, 32).to_sparse()}, "blocks.0.ffn.0.weight is sparse"),
        ({"blocks.0.ffn.0.weight": torch.zeros(64, 32, device="meta")}, "is sparse, quantized or without"),
        ({7: torch.zeros(3)}, "7 is not a tensor; save its state dict alone"),
        ({"blocks.0.ffn.0.weight": torch.zeros(1, 1).expand(2**33, 32)}, "x.pt: ffn_dim is 8589934592"),
        ({"blocks.99999999.norm3.bias": torch.zeros(32)}, "x.pt: num_layers is 100000000; it is"),
        ({"text_embedding.0.weight": torch.zeros(32)}, "has shape [32], which no Wan model has"),
        ({"blocks.0.ffn.0.weight": torch.zeros(0, 32)}, "has shape [0, 32], which no Wan model has"),
        ({"patch_embedding.weight": torch.zeros(32, 4, 1, 2, 0)}, "which no Wan model has"),
    ],
)
def test_tensors_that_no_model_has_are_named(tmp_path, tensors, change, complaint):
    torch.save({**tensors, **change}, tmp_path / "x.pt")
    said = refusal(lambda: opened(tmp_path / "x.pt"))
    assert complaint in said
    assert "x.pt" in said


def test_the_other_networks_of_a_file_are_named(tmp_path, model, tensors):
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    held = {"generator": other, "critic": other, "generator_ema": tensors, "step": 3}
    torch.save(held, tmp_path / "x.pt")
    assert_is(opened(tmp_path / "x.pt"), model)
    assert opened(tmp_path / "x.pt").beside == ("generator", "critic")
    assert opened(tmp_path / "x.pt", part="critic").beside == ("generator_ema", "generator")
    torch.save({"step": 3}, tmp_path / "x.pt")
    assert "holds no Wan transformer (it has no tensors)" in refusal(lambda: opened(tmp_path / "x.pt"))


# Names


@pytest.mark.parametrize(
    "prefix",
    ["net.", "dit.", "transformer.", "pipe.dit.", "model.diffusion_model.", "generator.model.", "a.b."],
)
def test_prefixes_are_found_whatever_lies_beside(tmp_path, model, tensors, prefix):
    held = {prefix + name: tensor for name, tensor in tensors.items()}
    save_file({**held, "logit_scale": torch.ones(1)}, tmp_path / "x.safetensors")
    source = opened(tmp_path / "x.safetensors")
    assert_is(source, model)
    assert source.beside == ("logit_scale",)


def test_a_file_of_everything_gives_its_transformer(tmp_path, model, tensors):
    held = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    others = ("vae.decoder.conv1.weight", "text_encoders.umt5xxl.blocks.0.q.weight", "first_stage_model.x")
    save_file(held | {name: torch.ones(2) for name in others}, tmp_path / "x.safetensors")
    source = opened(tmp_path / "x.safetensors")
    assert_is(source, model)
    assert sorted(source.beside) == sorted(others)


def test_a_block_that_lies_elsewhere_is_refused(tmp_path, tensors):
    held = {f"net.{name}": tensor for name, tensor in tensors.items()}
    save_file({**held, "extra.blocks.0.gate": torch.ones(1)}, tmp_path / "x.safetensors")
    said = refusal(lambda: opened(tmp_path / "x.safetensors"))
    assert "extra.blocks.0.gate lies beside the transformer net.blocks; take it out" in said


def test_one_of_several_transformers_is_chosen(tmp_path, model, tensors):
    held = {f"generator.model.{name}": tensor for name, tensor in tensors.items()}
    critic = {f"critic.model.{name}": tensor + 1 for name, tensor in tensors.items()}
    save_file(held | critic, tmp_path / "x.safetensors")
    said = refusal(lambda: opened(tmp_path / "x.safetensors"))
    assert "holds several transformers (critic.model., generator.model.); choose with --part" in said
    source = opened(tmp_path / "x.safetensors", part="generator")
    assert_is(source, model)
    assert len(source.beside) == len(critic)


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_eight_bits_with_a_scale_are_multiplied_by_it(tmp_path, model, tensors, scale):
    """As ComfyUI writes its `fp8_scaled` files."""
    held = {"model.diffusion_model.scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        if name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2:
            factor = tensor.abs().amax() / 448
            module = "model.diffusion_model." + name.removesuffix(".weight")
            held[module + ".weight"] = (tensor / factor).to(torch.float8_e4m3fn)
            held[f"{module}.{scale}"] = factor.reshape(())
        else:
            held["model.diffusion_model." + name] = tensor.to(torch.float16)
    save_file(held, tmp_path / "x.safetensors")
    source = opened(tmp_path / "x.safetensors")
    assert_is(source, model, rtol=0.07, atol=0.003)
    assert source.beside == ("model.diffusion_model.scaled_fp8",)


# What is no model


def test_codes_without_their_numbers_are_refused(tmp_path, tensors):
    name = "blocks.0.ffn.0.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, tmp_path / "x.safetensors")
    said = refusal(lambda: opened(tmp_path / "x.safetensors").model())
    assert f"{name} holds codes (int8); give weights in 16 bits" in said


def test_gguf_pointers_and_other_files_are_refused_by_name(tmp_path):
    contents = {
        "wan.gguf": (b"GGUF" + bytes(60), "is a GGUF file, coded for ggml; give the safetensors"),
        "renamed.safetensors": (b"GGUF" + bytes(60), "is a GGUF file"),
        "x.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        "x.onnx": (bytes(60), "is not a file of weights; name one that ends in .safetensors, .pt"),
        "cut.safetensors": (bytes(3), "is damaged"),
        "cut.ckpt": (bytes(3), "cannot be read as a file of tensors alone"),
    }
    for name, (content, complaint) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert complaint in refusal(lambda name=name: opened(tmp_path / name))


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight",
        "lora_unet_blocks_0_self_attn_q.lora_down.weight",
        "base_model.model.blocks.0.ffn.0.lora_B.default.weight",
    ],
)
def test_lora_is_refused_by_name(tmp_path, name):
    save_file({name: draw(2, 3)}, tmp_path / "x.safetensors")
    said = refusal(lambda: opened(tmp_path / "x.safetensors"))
    assert f"holds LoRA weights ({name}); give their base model with --from" in said
