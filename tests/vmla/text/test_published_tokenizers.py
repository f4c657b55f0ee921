"""A published tokenizer's rules are followed if they end soon and give tokens that the encoder knows."""

import base64
import json

import pytest
from kit.references.wan_folder import small_tokenizer
from kit.refusals import refusal

from vmla.text import PromptTokenizer
from vmla.text.published import LONGEST, PublishedTokenizer, ends_soon
from vmla.text.tokenizer import read_tokenizer
from vmla.text.word_tokenizer import WordTokenizer

pytestmark = pytest.mark.cpu

WORDS = ("a", "red", "star")
GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
NESTED = {"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Removed", "invert": False}
TRIE = (1024).to_bytes(4, "little") + bytes(1024)
LONG = TRIE + b"a" * (LONGEST + 1) + b"\0"


@pytest.fixture
def folder(tmp_path):
    """A tokenizer that transformers reads, because its rules are not quite those of ours."""
    WordTokenizer(WORDS).save(tmp_path)
    change(tmp_path, lambda contents: contents.update(normalizer=None))
    assert isinstance(read_tokenizer(tmp_path), PublishedTokenizer)
    return tmp_path


def change(folder, how, name="tokenizer.json"):
    contents = json.loads((folder / name).read_text())
    how(contents)
    (folder / name).write_text(json.dumps(contents))


def template(contents):
    contents["post_processor"]["single"] *= 50


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda it: it.update(normalizer=GROWS), "its normalizer makes a text far longer"),
        (lambda it: it.update(normalizer={"type": "Prepend", "prepend": "a" * 300}), "far longer"),
        (lambda it: it.update(pre_tokenizer=NESTED), "its pre_tokenizer has a regular expression"),
        (template, "adds more than 16 tokens to each text"),
    ],
    ids=["grows", "prepends", "tries all ways", "adds tokens"],
)
def test_rules_that_may_take_for_ever_are_refused(folder, how, said):
    change(folder, how)
    assert said in refusal(lambda: read_tokenizer(folder))


def test_a_table_of_characters_with_a_long_replacement_is_refused(folder):
    rule = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(LONG).decode()}
    change(folder, lambda it: it.update(normalizer=rule))
    assert "its normalizer makes a text far longer" in refusal(lambda: read_tokenizer(folder))


def test_tokens_that_are_made_up_one_by_one_are_few(folder):
    settings = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 10**9}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "field extra_ids is 1000000000" in refusal(lambda: read_tokenizer(folder))


def test_one_without_a_token_to_pad_with_is_refused(folder):
    change(folder, lambda it: it.update(pad_token=None), "tokenizer_config.json")
    assert "has no token to pad with" in refusal(lambda: read_tokenizer(folder))


def test_one_that_fails_at_a_prompt_says_so_in_one_line(folder):
    change(folder, lambda it: it["model"].update(unk_token="none"))
    said = refusal(lambda: read_tokenizer(folder).numbers("a blue star"))
    assert said.startswith(f"the tokenizer in {folder} cannot read the prompt: ")


def test_a_token_that_the_encoder_does_not_know_is_refused(folder):
    reader = PromptTokenizer(read_tokenizer(folder), tokens=8, vocabulary=5)
    assert reader.fits("a red") is not reader.fits("a red " * 9)
    said = "the tokenizer and the text encoder are not of one model"
    assert said in refusal(lambda: reader.tokenize(["a red star"]))
    assert said in refusal(lambda: reader.cut("a red star"))


def test_the_rules_of_published_tokenizers_are_taken(tmp_path):
    small_tokenizer().save_pretrained(tmp_path)
    assert isinstance(read_tokenizer(tmp_path), PublishedTokenizer)


@pytest.mark.parametrize(
    "pattern",
    [" {2,}", r"\s+", r"[\s,.;?*]+", r"\A +| +\z", r"'s|'t|[\p{L}]+|[^\s\p{L}\p{N}]+", r"(a|b)\+", r"\(+"],
)
def test_a_pattern_that_repeats_one_thing_ends_soon(pattern):
    assert ends_soon(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a|a)*$", "(a+)+$", "a*a*a*b", "a?a?a?", "(?#[)(a|a)*$(?#])", "(?:aa|a){9}", r"\\(a)+"]
)
def test_a_pattern_that_may_be_tried_in_many_ways_does_not(pattern):
    assert not ends_soon(pattern)
