"""Checkpoint folders come back as they were saved; what is wrong with one is said in one line."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from kit.measure import assert_close
from kit.refusals import refusal
from kit.tiny.checkpoints import debug_checkpoint
from kit.tiny.models import draw, randomise
from kit.tiny.passes import window_at
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from plugins.atomic_files import TEMPORARY_SUFFIX
from plugins.documents.json_file import read_json
from plugins.documents.typed import typed
from runtime.resume.sidecar import reference
from vmla.cache import CacheSpec
from vmla.config import ModelConfig, current_names, named_config
from vmla.scheduler import Sampler
from vmla.vae.wan import WanCodec
from vmla.weights.checkpoint import WEIGHTS, open_checkpoint, save_checkpoint, shipped_names
from vmla.weights.formats.files import write_tensors
from vmla.weights.locate import locate
from vmla.world.worlds import FIRST, world_named

pytestmark = pytest.mark.cpu

PARTS = {"transformer": WEIGHTS, "vae": WEIGHTS, "text_encoder": "model.safetensors"}
LOADERS = {"transformer": "transformer", "vae": "codec", "text_encoder": "text"}


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint folder of one's own, to be spoilt."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def load(folder, part):
    return getattr(open_checkpoint(folder), LOADERS[part])()


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


def rewrite(path, **changes):
    """Change keys of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


# What is saved comes back


@pytest.mark.parametrize("layout", ["mla", "mha"])
def test_a_checkpoint_comes_back_as_it_was(tmp_path, layout):
    first = open_checkpoint(debug_checkpoint(tmp_path / "first", layout=layout))
    parts = {"transformer": first.transformer(), "codec": first.codec(), "text": first.text()}
    for part in (parts["transformer"], parts["codec"], parts["text"].encoder):
        randomise(part)
    save_checkpoint(tmp_path / "second", **parts, sampler=Sampler(steps=3), dtype=torch.float32)
    second = open_checkpoint(tmp_path / "second")
    loaded = second.transformer(), second.codec(), second.text().encoder
    saved = parts["transformer"], parts["codec"], parts["text"].encoder
    for ours, theirs in zip(loaded, saved, strict=True):
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
        assert not any(parameter.requires_grad for parameter in ours.parameters())
        assert not ours.training
    assert second.model_config() == named_config("debug", layout=layout)
    assert second.sampler() == Sampler(steps=3)
    assert loaded[1].config == parts["codec"].config
    assert torch.equal(second.text()(["a red star"]), parts["text"](["a red star"]))


def test_a_loaded_model_computes_what_the_saved_one_does(tmp_path, checkpoint):
    """Positions and statistics too, which are in no weights file."""
    opened = open_checkpoint(checkpoint)
    model, codec = randomise(opened.transformer()), opened.codec()
    codec.config = dataclasses.replace(
        codec.config, latents_mean=(0.1, -0.2, 0.3, 0.4), latents_std=(1.1, 0.9, 2.0, 0.5)
    )
    codec = type(codec)(codec.config)
    save_checkpoint(
        tmp_path, transformer=model, codec=codec, text=opened.text(), sampler=Sampler(), dtype=torch.float32
    )
    spec = CacheSpec.of(model.config)
    inputs = [
        draw(1, 4, 3, 8, 8, seed=1), torch.full((1, 3), 400.0), model.encode_text(draw(1, 96, 32, seed=2)),
        draw(*spec.shape(1), seed=3), *window_at(spec, 4),
    ]  # fmt: skip
    again = open_checkpoint(tmp_path)
    assert all(torch.equal(*pair) for pair in zip(again.transformer()(*inputs), model(*inputs), strict=True))
    latents = draw(1, 4, 2, 8, 8)
    assert torch.equal(again.codec().decode(latents)[0], codec.decode(latents)[0])


def test_weights_are_kept_in_half_precision_and_computed_in_float32(checkpoint):
    for part, name in PARTS.items():
        stored = load_file(checkpoint / part / name)
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
        loaded = load(checkpoint, part)
        state = (loaded.encoder if part == "text_encoder" else loaded).state_dict()
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
        assert all(torch.equal(state[key], tensor.float()) for key, tensor in stored.items())


def test_saving_leaves_what_is_saved_alone(tmp_path, checkpoint):
    opened = open_checkpoint(checkpoint)
    parts = {"transformer": randomise(opened.transformer()), "codec": opened.codec(), "text": opened.text()}
    before = {name: tensor.clone() for name, tensor in parts["transformer"].state_dict().items()}
    encoder = {name: tensor.clone() for name, tensor in parts["text"].encoder.state_dict().items()}
    save_checkpoint(tmp_path / "saved", **parts, sampler=Sampler(), metadata={"recipe": "debug"})
    assert all(torch.equal(before[name], now) for name, now in parts["transformer"].state_dict().items())
    assert all(torch.equal(encoder[name], now) for name, now in parts["text"].encoder.state_dict().items())
    assert not list((tmp_path / "saved").rglob(f"*{TEMPORARY_SUFFIX}"))


def test_sizes_are_known_without_reading_weights(checkpoint):
    opened = open_checkpoint(checkpoint)
    for part in ("transformer", "vae"):
        assert opened.elements(part) == sum(p.numel() for p in load(checkpoint, part).parameters())
    assert opened.codec(weights=False).encoder[1].weight.device.type == "meta"
    _, memory = opened.codec().decode(draw(1, 4, 3, 8, 8))
    assert opened.codec(weights=False).stream_bytes(8, 8) == sum(item.nbytes for item in memory)


# What does not fit is refused


@pytest.mark.parametrize("part", PARTS)
def test_tensors_must_match_one_for_one(copy, part):
    path = copy / part / PARTS[part]
    whole = load_file(path)
    name = sorted(whole)[-1]
    shape = list(whole[name].shape)
    spoilt = {
        f"lacks the tensor {name} {shape}": without(whole, name),
        "has an unknown tensor zzz [1]; it does not fit": {**whole, "zzz": torch.ones(1)},
        f"tensor {name} has shape [7], config.json asks for {shape}": {**whole, name: torch.ones(7)},
    }
    for complaint, tensors in spoilt.items():
        write_tensors(path, tensors, {})
        assert complaint in refusal(lambda: load(copy, part))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("left", [0, 4, 40, -100])
def test_a_file_cut_short_is_damaged(copy, part, left):
    path = copy / part / PARTS[part]
    path.write_bytes(path.read_bytes()[:left])
    assert f"{path} is damaged" in refusal(lambda: load(copy, part))
    assert f"{path} is damaged" in refusal(lambda: open_checkpoint(copy).elements(part))


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_is_named(copy, part):
    (copy / part / PARTS[part]).unlink()
    assert f"{copy / part / PARTS[part]} is missing" in refusal(lambda: load(copy, part))
    (copy / part / "config.json").unlink()
    assert "is missing" in refusal(lambda: load(copy, part))


@pytest.mark.parametrize(
    ("part", "changes", "complaint"),
    [
        ("transformer", {"widht": 3}, "config.json: field widht is unknown"),
        ("transformer", {"ffn_dim": None}, "config.json: field ffn_dim is missing"),
        ("transformer", {"ffn_dim": "64"}, "field ffn_dim is '64'; input should be a valid integer"),
        ("transformer", {"num_layers": 3}, "lacks the tensor blocks.2."),
        ("transformer", {"num_layers": 10**9}, "config.json: num_layers is 1000000000"),
        ("transformer", {"ffn_dim": 2**16}, "config.json asks for [65536, 64]"),
        ("vae", {"widths": [4096, 4096, 4096]}, "config.json asks for [4096, "),
        ("vae", {"encoder_blocks": [1, 1, 10**9]}, "vae/config.json: widths and numbers of blocks are"),
        ("transformer", {"_class_name": "WanTransformer3DModel"}, "holds a WanTransformer3DModel, not"),
        ("transformer", {"_class_name": None}, "holds a None, not a VideoMLA transformer"),
        ("vae", {"widhts": [1, 2, 3]}, "vae/config.json: field widhts is unknown"),
        ("vae", {"widths": 8}, "vae/config.json: field widths is 8; input should be a valid array"),
        ("vae", {"latents_std": [1.0]}, "vae/config.json: latents_std is (1.0,)"),
        ("vae", {"_class_name": "AutoencoderKL"}, "known are TinyCodec and AutoencoderKLWan"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(copy, part, changes, complaint):
    rewrite(copy / part / "config.json", **changes)
    assert complaint in refusal(lambda: load(copy, part))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"stpes": 3}, "scheduler_config.json: field stpes is unknown"),
        ({"steps": "3"}, "scheduler_config.json"),
        ({"kind": "ddim"}, "field kind is 'ddim'; input should be 'euler' or 'renoise'"),
        ({"_class_name": "UniPCMultistepScheduler"}, "holds a UniPCMultistepScheduler, not a Sampler"),
    ],
)
def test_a_schedule_is_never_guessed(copy, changes, complaint):
    rewrite(copy / "scheduler" / "scheduler_config.json", **changes)
    assert complaint in refusal(lambda: open_checkpoint(copy).sampler())


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff"])
def test_json_that_is_none_is_refused(copy, text):
    (copy / "transformer" / "config.json").write_bytes(text.encode("latin-1"))
    assert "transformer/config.json" in refusal(lambda: load(copy, "transformer"))


@pytest.mark.parametrize(
    "index", [{}, *({"weight_map": names} for names in (["a"], {"a": 3}, {"a": "../vae/x"}))], ids=str
)
def test_an_index_that_names_no_shards_is_refused(copy, index):
    path = copy / "transformer" / f"{WEIGHTS}.index.json"
    path.write_text(json.dumps(index))
    assert str(path) in refusal(lambda: load(copy, "transformer"))


def test_shards_are_read_as_one(copy):
    path = copy / "transformer" / WEIGHTS
    whole = load_file(path)
    names = sorted(whole)
    path.unlink()
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({name: whole[name] for name in own}, path.with_name(shard))
    of = {name: shard for shard, own in shards.items() for name in own}
    path.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))
    loaded = load(copy, "transformer").state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in whole.items())
    path.with_name("two.safetensors").unlink()
    assert "two.safetensors is missing; copy the whole checkpoint folder" in refusal(
        lambda: load(copy, "transformer")
    )


def test_what_is_no_checkpoint_is_refused(tmp_path, checkpoint):
    (tmp_path / "file").write_text("")
    complaint = "model_index.json is missing; is this a checkpoint folder?"
    assert complaint in refusal(lambda: open_checkpoint(tmp_path))
    for name in ("nowhere", ""):
        assert "no checkpoint" in refusal(lambda name=name: open_checkpoint(name))
    for name in (tmp_path / "file", checkpoint / "model_index.json"):
        said = refusal(lambda name=name: open_checkpoint(name))
        assert f"{name} is a file, not a checkpoint folder" in said


def test_a_folder_without_a_tokenizer_is_refused(copy):
    shutil.rmtree(copy / "tokenizer")
    assert "tokenizer_config.json is missing" in refusal(lambda: open_checkpoint(copy).text())


# A Wan folder as diffusers writes it


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """Text encoder in shards, codec, tokenizer, scheduler, and the configuration of a Wan transformer."""
    folder = tmp_path_factory.mktemp("wan")
    sizes = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_dim": 4}
    vae = AutoencoderKLWan(**sizes, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    randomise(vae).save_pretrained(folder / "vae")
    config = UMT5Config(vocab_size=9, d_model=16, d_kv=8, num_heads=2, d_ff=16, num_layers=2)
    randomise(UMT5EncoderModel(config)).save_pretrained(folder / "text_encoder", max_shard_size="4KB")
    tokenizer().save_pretrained(folder / "tokenizer")
    UniPCMultistepScheduler().save_pretrained(folder / "scheduler")
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return folder


def tokenizer():
    """A T5 tokenizer of nine pieces."""
    words = ["<pad>", "</s>", "<unk>", "▁a", "▁red", "▁star", "▁", "s", "t"]
    inner = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=inner, extra_ids=0)


def test_a_wan_folder_gives_its_text_encoder(wan):
    text = open_checkpoint(wan).text()
    numbers, mask = text.tokenize(["a  red star"])
    assert numbers[0, :5].tolist() == [3, 4, 5, 1, 0]
    assert mask[0].sum() == 4
    embedded = text(["a red star"])
    assert embedded.shape == (1, 512, 16)
    assert (embedded[0, 4:] == 0).all()
    theirs = UMT5EncoderModel.from_pretrained(wan / "text_encoder")
    expected = theirs(input_ids=numbers, attention_mask=mask).last_hidden_state[:, :4]
    assert_close(embedded[:, :4], expected, rtol=1e-4, atol=1e-5)


def test_a_wan_folder_gives_its_codec(wan):
    codec, theirs = open_checkpoint(wan).codec(), WanCodec(AutoencoderKLWan.from_pretrained(wan / "vae"))
    latents = draw(1, 4, 2, 2, 2)
    assert isinstance(codec, WanCodec)
    assert torch.equal(codec.decode(latents)[0], theirs.decode(latents)[0])


def test_a_wan_folder_has_no_videomla_in_it(wan):
    opened = open_checkpoint(wan)
    assert "holds a WanTransformer3DModel, not a VideoMLA" in refusal(opened.transformer)
    assert "holds a UniPCMultistepScheduler, not a Sampler" in refusal(opened.sampler)


def test_a_damaged_tokenizer_is_refused(wan, tmp_path):
    folder = shutil.copytree(wan, tmp_path / "wan")
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    assert "cannot load the tokenizer in" in refusal(lambda: open_checkpoint(folder).text())
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not valid JSON" in refusal(lambda: open_checkpoint(folder).text())


def test_no_code_that_lies_beside_a_tokenizer_is_run(copy, tmp_path):
    folder, ran = copy / "tokenizer", tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    values = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    assert "cannot load the tokenizer in" in refusal(lambda: open_checkpoint(copy).text())
    assert not ran.exists()


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_model_is_found_by_its_name_everywhere(name):
    checkpoint = open_checkpoint(name)
    assert checkpoint.folder == locate(name)
    assert reference(checkpoint.folder.resolve()) == name
    record = read_json(checkpoint.folder / "training.json")
    assert checkpoint.transformer().config == ModelConfig(**current_names(record["settings"]["model"]))
    distilled = record["stages"].get("distribution")
    sampler = record["settings"]["sampler"] if distilled is None else distilled["training"]["sampler"]
    assert checkpoint.sampler() == typed(sampler, Sampler, name)
    assert checkpoint.world() is world_named(record["settings"]["latents"].get("world", FIRST.name))
