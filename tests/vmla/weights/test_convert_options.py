"""`vmla-train convert` refuses options that its source or its result would leave without effect."""

import json

import pytest
from click.testing import CliRunner
from kit.refusals import assert_one_line
from kit.tiny.models import tiny_model
from safetensors.torch import save_file

from vmla.train.cli.commands import main
from vmla.weights.source import published

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def wan_file(tmp_path_factory):
    """A file of Wan's attention under Wan's own names, with its configuration beside it."""
    path, model = tmp_path_factory.mktemp("wan") / "wan.safetensors", tiny_model(layout="mha")
    save_file({name: tensor.contiguous() for name, tensor in published(model, wan=True).items()}, path)
    heads = {"num_heads": model.config.num_attention_heads}
    path.with_name("config.json").write_text(json.dumps(heads))
    return path


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--from", "OURS", "--names", "names.json"], "--names is for weights of others, and"),
        (["--from", "OURS", "--map", "auto"], "--map is for weights of others, and"),
        (["--from", "OURS", "--recipe", "wan-1.3b"], "--sizes is for weights of others, and"),
        (["--from", "OURS", "--part", "generator"], "has no part generator; leave it out"),
        (["--from", "OURS", "--variant", "fp16"], "lacks weights of variant fp16"),
        (["--from", "OURS", "--revision", "v2"], "lies here, where it has no revision v2"),
        (
            ["--from", "OURS", "--content-width", "8"],
            "--kv-lora-rank is for a change of layout",
        ),
        (["--from", "OURS", "--seed", "0"], "--seed is for a change of layout, and mla stays mla"),
        (["--from", "OURS", "--layout", "mha", "--no-whiten"], "--whiten is for latent attention, which the"),
        (["--from", "sprites", "--revision", "v2"], "sprites lies here, where it has no revision v2"),
        (["--from", "them/it@v1", "--revision", "v2"], "them/it@v1 names another revision than v2"),
        (["--from", "WAN", "--names", "NAMES"], "has no latent projections that"),
        (["--from", "WAN", "--map", "auto", "--names", "NAMES"], "--names says nothing that --map does not"),
        (["--from", "WAN", "--heads", "2"], "--heads is for --map auto; leave it out"),
        (["--from", "WAN", "--strength", "0.5"], "there is no --lora; leave it out"),
        (["--from", "WAN", "--part", "generator"], "has no part generator; leave it out"),
        (["--from", "WAN", "--variant", "fp16"], "is one file, and variant fp16 would be of a folder's"),
        (["--from", "WAN", "--sizes", "debug", "--layout", "mha", "--clips", "4"], "--clips is for a change"),
        (
            ["--from", "wan-1.3b", "--dry-run", "--lora", "x"],
            "--lora says how weights are read, and",
        ),
    ],
)
def test_an_option_without_effect_is_refused(checkpoint, wan_file, tmp_path, arguments, complaint):
    (tmp_path / "names.json").write_text('{"down_kv": "kv_a"}')
    places = {"OURS": checkpoint, "WAN": wan_file, "NAMES": tmp_path / "names.json"}
    command = ["convert", *(str(places.get(word, word)) for word in arguments), "-o", str(tmp_path / "out")]
    assert_one_line(CliRunner().invoke(main, command), complaint)
    assert not (tmp_path / "out").exists()
