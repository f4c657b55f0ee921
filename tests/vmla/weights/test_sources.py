"""Published weights in every form come in under our names, and compute what their own model does."""

import json
from pathlib import Path

import pytest
import torch
from kit.measure import assert_close
from kit.references.equations import Equations
from kit.references.wan import wan_transformer
from kit.refusals import refusal
from kit.tiny.models import draw, randomise, tiny_config, tiny_model
from kit.tiny.passes import window_at
from safetensors.torch import save_file

from vmla.cache import CacheSpec
from vmla.transformer import VideoMLA
from vmla.weights.checkpoint import WEIGHTS
from vmla.weights.formats.prefixes import stripped
from vmla.weights.key_mapping import LATENT, to_wan
from vmla.weights.locate import Hub, locate
from vmla.weights.source import open_source, published

pytestmark = pytest.mark.cpu

FRAMES, BATCH = 4, 2
WAN_CONFIG = {"_class_name": "WanModel", "num_heads": 2, "eps": 1e-6}


def assert_same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def wan_folder(folder, model):
    """A model as Wan's release has it."""
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in published(model, wan=True).items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(WAN_CONFIG))
    return folder


def pickled(path, model, part="generator_ema", wrap="model.{}"):
    tensors = published(model, wan=True)
    torch.save({part: {wrap.format(name): tensor for name, tensor in tensors.items()}, "step": 3}, path)
    return path


# What comes in


def test_a_diffusers_folder_computes_what_diffusers_does(tmp_path):
    config = tiny_config(layout="mha", chunk=FRAMES)
    wan = randomise(wan_transformer(config))
    wan.save_pretrained(tmp_path / "transformer", max_shard_size="20KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    ours = open_source(tmp_path, like=config).model()
    assert ours.config == config
    latents = draw(BATCH, config.in_channels, FRAMES, config.sample_height, config.sample_width, seed=1)
    text, timestep = draw(BATCH, config.text_tokens, config.text_dim, seed=2), torch.tensor([731.5, 88.25])
    spec = CacheSpec.of(config)
    velocity = ours(
        latents, timestep[:, None].expand(-1, FRAMES), ours.encode_text(text),
        spec.allocate(BATCH, dtype=torch.float32), *window_at(spec, 0),
    )[0]  # fmt: skip
    assert_close(velocity, wan(latents, timestep, text, return_dict=False)[0], rtol=1e-5, atol=1e-5)


def test_diffusers_weights_chunk_by_chunk_equal_a_masked_forward(tmp_path):
    config = tiny_config(layout="mha")
    randomise(wan_transformer(config)).save_pretrained(tmp_path)
    model, spec, size = open_source(tmp_path, like=config).model(), CacheSpec.of(config), config.chunk
    shape = (BATCH, config.in_channels, 4 * size, config.sample_height, config.sample_width)
    clean, noisy, text = draw(*shape, seed=1), draw(*shape, seed=2), draw(BATCH, 5, 10, seed=3)
    timestep = 1000 * torch.rand(BATCH, 4 * size, generator=torch.Generator().manual_seed(4))
    text_kv, cache, outputs = model.encode_text(text), spec.allocate(BATCH, dtype=torch.float32), []
    for number in range(4):
        part, window = (
            slice(number * size, (number + 1) * size),
            window_at(spec, number),
        )
        outputs.append(model(noisy[:, :, part], timestep[:, part], text_kv, cache, *window)[0])
        _, entries = model(clean[:, :, part], torch.zeros(BATCH, size), text_kv, cache, *window)
        cache = spec.commit(cache, entries, number * size)
    expected = Equations(model).run(clean, noisy, timestep, text)[0][:, :, 4 * size :]
    assert_close(torch.cat(outputs, dim=2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_wans_own_names_make_the_round_trip(tmp_path, layout):
    model = tiny_model(layout=layout)
    source = open_source(wan_folder(tmp_path / "wan", model), like=tiny_config())
    assert source.config == model.config
    assert_same_weights(source.model(), model)
    assert_same_weights(open_source(tmp_path / "wan" / WEIGHTS, like=tiny_config()).model(), model)


def test_names_are_those_of_wans_release():
    """Spelt out from its state dict, not from our table."""
    names = published(VideoMLA(tiny_config(layout="mha", num_layers=1)), wan=True)
    assert sorted(names) == sorted(
        [f"{outer}.{leaf}" for leaf in ("weight", "bias") for outer in (
            "patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
            "time_projection.1", "head.head", "blocks.0.norm3", "blocks.0.ffn.0", "blocks.0.ffn.2",
            *(f"blocks.0.{kind}_attn.{part}" for kind in ("self", "cross") for part in "qkvo"),
        )]
        + [f"blocks.0.{kind}_attn.norm_{part}.weight" for kind in ("self", "cross") for part in "qk"]
        + ["blocks.0.modulation", "head.modulation"]
    )  # fmt: skip
    assert names["patch_embedding.weight"].shape == (32, 3, 1, 2, 2)


@pytest.mark.parametrize(
    "wrap",
    ["{}", "model.{}", "model._fsdp_wrapped_module.{}", "_orig_mod.model.{}", "module.model._orig_mod.{}"],
)
def test_wrappers_leave_no_trace(tmp_path, wrap):
    model = tiny_model(layout="mha")
    path = pickled(tmp_path / "one.pt", model, wrap=wrap)
    assert_same_weights(open_source(path, like=tiny_config()).model(), model)
    inner = "model._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.self_attn.q.weight"
    assert stripped([inner]) == {"blocks.0.self_attn.q.weight": inner}


def test_the_average_is_chosen_unless_a_part_is_named(tmp_path):
    parts = ("generator", "generator_ema")
    models = {part: tiny_model(seed, layout="mha") for seed, part in enumerate(parts)}
    held = {part: published(model, wan=True) for part, model in models.items()}
    torch.save(held, tmp_path / "both.pt")
    for part, model in [(None, models["generator_ema"]), *models.items()]:
        opened = open_source(tmp_path / "both.pt", like=tiny_config(), part=part)
        assert_same_weights(opened.model(), model)
    said = refusal(lambda: open_source(tmp_path / "both.pt", like=tiny_config(), part="critic"))
    assert "has no part critic; it has generator_ema, generator" in said


def test_a_mapping_names_the_latent_projections(tmp_path):
    model, mapping = tiny_model(), {"down_kv": "kv_a", "norm_kv": "kv_a_norm", "up_k": "kv_b_k"}
    latent = {**LATENT, **mapping}
    torch.save({"generator_ema": published(model, wan=True, latent=latent)}, tmp_path / "theirs.pt")
    (tmp_path / "names.json").write_text(json.dumps(mapping))
    source = open_source(tmp_path / "theirs.pt", like=tiny_config(), mapping=tmp_path / "names.json")
    assert_same_weights(source.model(), model)
    assert to_wan("blocks.7.attn1.down_kv.weight", latent) == "blocks.7.self_attn.kv_a.weight"
    (tmp_path / "names.json").write_text('{"up_z": "z"}')
    said = refusal(lambda: open_source(tmp_path / "theirs.pt", mapping=tmp_path / "names.json"))
    assert "names.json maps up_z, which latent attention does not have" in said


def test_our_own_checkpoints_are_sources(checkpoint):
    from vmla.weights.checkpoint import open_checkpoint

    assert_same_weights(open_source(checkpoint).model(), open_checkpoint(checkpoint).transformer())


# What does not


def spoilt(tmp_path, change):
    tensors = published(tiny_model(layout="mha"), wan=True)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    return refusal(lambda: open_source(tmp_path / WEIGHTS, like=tiny_config()))


def test_what_is_missing_misshapen_or_strange_is_listed(tmp_path):
    said = spoilt(tmp_path, lambda t: t.pop("blocks.1.ffn.2.bias"))
    assert "lacks the tensor blocks.1.ffn.2.bias [32]" in said
    said = spoilt(tmp_path, lambda t: t.update({"blocks.1.ffn.2.bias": torch.ones(7)}))
    assert "tensor blocks.1.ffn.2.bias has shape [7], model asks for [32]" in said
    strange = {f"blocks.0.adapter.{i}": torch.ones(2, 3) for i in range(15)}
    said = spoilt(tmp_path, lambda t: t.update(strange))
    assert said.count("has an unknown tensor blocks.0.adapter.") == 10
    assert "[2, 3], and 5 others" in said


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("blocks.0.cross_attn.k_img.weight", "is of another family, image-to-video"),
        ("vace_blocks.0.before_proj.weight", "is of another family, VACE"),
    ],
)
def test_relatives_are_named(tmp_path, name, complaint):
    assert complaint in spoilt(tmp_path, lambda t: t.update({name: torch.ones(2)}))


def test_another_family_is_refused(tmp_path):
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(2)}, tmp_path / WEIGHTS)
    said = refusal(lambda: open_source(tmp_path / WEIGHTS))
    assert "holds no Wan transformer (its first tensor is double_blocks.0" in said
    assert "has no transformer" in refusal(lambda: open_source(tmp_path))


def test_a_pickle_runs_no_code_and_may_hold_tensors_alone(tmp_path):
    torch.save({"generator": {"x": torch.ones(1)}, "where": Path("/")}, tmp_path / "code.pt")
    kind = f"{type(Path()).__module__}.{type(Path()).__name__}"  # its module has another name in Python 3.13
    assert f"holds {kind} beside its tensors" in refusal(lambda: open_source(tmp_path / "code.pt"))
    torch.save({"generator_lora": {"x": torch.ones(1)}}, tmp_path / "lora.pt")
    assert "holds LoRA weights" in refusal(lambda: open_source(tmp_path / "lora.pt"))
    whole = pickled(tmp_path / "whole.pt", tiny_model(layout="mha")).read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[:999])
    assert "cannot be read" in refusal(lambda: open_source(tmp_path / "short.pt"))


# The hub


def hub_cache(cache):
    """A repository as the hub's own library leaves it on disk."""
    repo = cache / "models--someone--small"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({"revision": revision}))


def test_what_was_downloaded_is_found_offline_at_its_revision(tmp_path):
    hub_cache(tmp_path)

    def revision(source, **how):
        return json.loads(
            (locate(source, hub=Hub(offline=True, cache=tmp_path), **how) / "config.json").read_text()
        )

    assert revision("someone/small") == {"revision": "main"}
    assert revision("someone/small@v2") == revision("someone/small", revision="v2") == {"revision": "v2"}
    file = locate("someone/small:config.json", hub=Hub(offline=True, cache=tmp_path))
    assert json.loads(file.read_text()) == {"revision": "main"}


@pytest.mark.parametrize("source", ["someone/other", "someone/small@v3", "someone/small:other.pt"])
def test_what_was_not_downloaded_is_refused_offline(tmp_path, source):
    hub_cache(tmp_path)
    assert "was not downloaded before" in refusal(
        lambda: locate(source, hub=Hub(offline=True, cache=tmp_path))
    )


def test_what_is_neither_path_nor_hub_id_is_refused(tmp_path):
    for source in ("./missing", str(tmp_path / "x"), "one"):
        assert f"{source} does not exist" in refusal(lambda name=source: locate(name, hub=Hub(offline=True)))
    assert locate(str(tmp_path)) == tmp_path
