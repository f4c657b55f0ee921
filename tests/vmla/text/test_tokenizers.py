"""Our tokenizers of bytes and of words are those of transformers, which reads their files."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.references.wan_folder import small_tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from plugins.documents.json_file import read_json
from plugins.errors import UserError
from vmla.text import clean_prompt
from vmla.text import tokenizer as tokenizers
from vmla.text.byte_tokenizer import ByteTokenizer
from vmla.text.tokenizer import PublishedTokenizer, read_tokenizer
from vmla.text.word_tokenizer import WordTokenizer
from vmla.weights.checkpoint import open_checkpoint, shipped_names

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore:This sequence already has")]

OURS = {"bytes": ByteTokenizer(), "words": WordTokenizer(("a", "red", "star", "k"))}
PIECES = ("<pad>", "</s>", "<unk>", "<PAD>", "<extra_id_0>", "<extra_id_124>", "<extra_id_125>", " ", "  ",
          "a", "red", "Star", "星", "é", ",", ".;", "-", "\u212a", "İ")  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=9).map("".join)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Ours, and what transformers makes of the files that ours writes."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for name, theirs in (("bytes", ByT5Tokenizer), ("words", PreTrainedTokenizerFast)):
        OURS[name].save(folder / name)
        made[name] = folder / name, theirs.from_pretrained(folder / name)
    return made


@pytest.mark.parametrize("name", sorted(OURS))
@given(text=TEXTS, limit=st.integers(1, 14))
@settings(max_examples=150, deadline=None)
def test_a_text_has_the_numbers_that_transformers_gives_it(pairs, name, text, limit):
    ours, theirs, text = OURS[name], pairs[name][1], clean_prompt(text)
    assert ours.numbers(text) == theirs(text)["input_ids"]
    cut = theirs(text, truncation=True, max_length=limit)["input_ids"]
    assert ours.numbers(text, limit=limit) == cut


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_saved_is_read_as_it_was(pairs, name):
    folder, theirs = pairs[name]
    read = read_tokenizer(folder)
    assert type(read) is type(OURS[name])
    assert (len(read), read.pad) == (len(theirs), theirs.pad_token_id)
    assert read.numbers("a red star") == OURS[name].numbers("a red star")
    assert type(AutoTokenizer.from_pretrained(folder)).__name__ in (read.kind, "TokenizersBackend")


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_transformers_saves_is_read(pairs, tmp_path, name):
    _, theirs = pairs[name]
    theirs("a red star", truncation=True, max_length=2)  # the files of words note it
    theirs.save_pretrained(tmp_path)
    assert type(read_tokenizer(tmp_path)) is type(OURS[name])


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_model_is_read_by_ours(name):
    tokenizer = open_checkpoint(name).text().tokenizer
    assert not isinstance(tokenizer, PublishedTokenizer)
    assert len(tokenizer.numbers("a red star")) > 3


def test_a_tokenizer_of_words_with_other_rules_is_left_to_transformers(pairs, tmp_path):
    folder, _ = pairs["words"]
    contents = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**contents, "normalizer": None}))
    (tmp_path / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    read = read_tokenizer(tmp_path)
    assert isinstance(read, PublishedTokenizer)
    assert read.numbers("a RED star") == [3, 2, 5, 1]


def test_a_published_tokenizer_is_parsed_by_transformers_alone(tmp_path, monkeypatch):
    place, parsed = tmp_path / "tokenizer.json", []
    small_tokenizer().save_pretrained(tmp_path)

    def read(path, **asked):
        parsed.append(path.name)
        return read_json(path, **asked)

    monkeypatch.setattr(tokenizers, "read_json", read)
    assert isinstance(read_tokenizer(tmp_path), PublishedTokenizer)
    assert "tokenizer_config.json" in parsed and "tokenizer.json" not in parsed
    place.write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json is not valid JSON"):
        read_tokenizer(tmp_path)
    monkeypatch.setattr(tokenizers, "LARGEST", 0)
    with pytest.raises(UserError, match="more than 0 bytes"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_of_bytes_with_other_tokens_is_left_to_transformers(tmp_path):
    ByT5Tokenizer(extra_ids=3).save_pretrained(tmp_path)
    read = read_tokenizer(tmp_path)
    assert isinstance(read, PublishedTokenizer)
    assert len(read) == 259 + 3
    assert read.numbers("ab", limit=2) == [100, 1]
