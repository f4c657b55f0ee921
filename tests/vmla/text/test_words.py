"""Prompts read word by word: the same words are the same tokens, whatever their case and punctuation."""

import json

import numpy as np
import pytest
import torch
from kit.measure import assert_close

from plugins.errors import UserError
from vmla.text import SmallTextConfig, TextEncoder
from vmla.vae.tiny import TinyCodec
from vmla.weights.checkpoint import open_checkpoint, save_checkpoint
from vmla.world.caption import describe, vocabulary
from vmla.world.scene import draw_scene

pytestmark = pytest.mark.cpu

TOKENS = 24
SIZES = {"width": 32, "head_width": 16, "heads": 2, "ffn_width": 32, "layers": 1}
PAD, END, UNKNOWN = 0, 1, 2
PROMPT = "a red star bouncing on a navy background"


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    encoder, tokenizer = SmallTextConfig(**SIZES, words=vocabulary()).build()
    return TextEncoder(encoder.eval(), tokenizer, tokens=TOKENS)


def numbers_of(text, prompt):
    """The tokens of a prompt, without padding."""
    numbers, mask = text.tokenize([prompt])
    assert (numbers[0][mask[0] == 0] == PAD).all()
    return numbers[0][mask[0] == 1].tolist()


def test_the_vocabulary_is_sorted_and_holds_no_word_twice():
    words = vocabulary()
    assert list(words) == sorted(set(words))
    assert {"red", "star", "bouncing", "navy", "small", "and"} <= set(words)


@pytest.mark.parametrize("varied", [False, True])
def test_every_caption_of_the_world_is_known(text, varied):
    rng, words, longest = np.random.default_rng(1), vocabulary(), 0
    for number in range(500):
        scene = draw_scene(rng, held_out=bool(number % 2))
        caption = describe(scene, rng if varied else None)
        numbers = numbers_of(text, caption)
        assert numbers[-1] == END
        assert [words[number - 3] for number in numbers[:-1]] == caption.split()
        assert text.fits(caption)
        longest = max(longest, len(numbers))
    assert longest > TOKENS // 2


@pytest.mark.parametrize(
    "prompt",
    [PROMPT.upper(), "A Red STAR, bouncing on a navy background.", PROMPT.replace("star ", "star;")],
)
def test_case_and_punctuation_change_nothing(text, prompt):
    assert numbers_of(text, prompt) == numbers_of(text, PROMPT)
    assert torch.equal(text([prompt]), text([PROMPT]))


def test_an_unknown_word_is_one_token_in_its_place(text):
    known = numbers_of(text, "a red star bouncing")
    assert UNKNOWN not in known
    assert numbers_of(text, "a red zebra bouncing") == [*known[:2], UNKNOWN, *known[3:]]
    assert numbers_of(text, "a red red-star bouncing")[2] == UNKNOWN
    assert numbers_of(text, "紅い星") == [UNKNOWN, END]
    assert numbers_of(text, ".") == [END]


def test_what_does_not_fit_is_cut_off_before_the_end(text):
    fitting = " ".join(["red"] * (TOKENS - 1))
    assert text.fits(fitting)
    assert not text.fits(f"{fitting} red")
    assert text.fits(fitting)  # a cut before leaves no trace
    numbers = numbers_of(text, f"{fitting} red blue")
    assert numbers == numbers_of(text, fitting)
    assert numbers[-1] == END
    assert len(numbers) == TOKENS


def test_what_lies_behind_the_end_is_zero_and_nothing_else_is(text):
    embedded = text([PROMPT, "a ring"])
    assert embedded.shape == (2, TOKENS, SIZES["width"])
    for rows, end in zip(embedded, (9, 3), strict=True):
        assert (rows[end:] == 0).all()
        assert (rows[:end].abs().sum(dim=1) > 0).all()
    assert_close(text(["a ring"]), embedded[1:], rtol=1e-4, atol=1e-5)


def test_without_words_bytes_are_read():
    encoder, tokenizer = SmallTextConfig(**SIZES).build()
    assert tokenizer.kind == "ByT5Tokenizer"
    assert len(tokenizer.numbers("ab")) == 3
    assert encoder.config.vocab_size == len(tokenizer) == 384
    assert SmallTextConfig(**SIZES, words=("a",)).build()[0].config.vocab_size == 4


@pytest.mark.parametrize("word", ["", "Red", "two words", "red,", "<pad>"])
def test_what_no_prompt_can_say_is_no_word(word):
    with pytest.raises(UserError, match="is not a word of a prompt in lower case"):
        SmallTextConfig(words=("red", word))


def test_a_word_counts_once():
    with pytest.raises(UserError, match="a word is named twice"):
        SmallTextConfig(words=("red", "blue", "red"))


# Files


@pytest.fixture
def folder(tmp_path, text, checkpoint):
    """A checkpoint whose text is read by the word; saved after use, so that a cut before would show."""
    opened, codec = open_checkpoint(checkpoint), open_checkpoint(checkpoint).codec()
    assert isinstance(codec, TinyCodec)
    text.tokenize([PROMPT])
    save_checkpoint(
        tmp_path / "words", transformer=opened.transformer(), codec=codec, text=text,
        sampler=opened.sampler(), dtype=torch.float32,
    )  # fmt: skip
    return tmp_path / "words"


def test_a_checkpoint_keeps_it(folder, text):
    loaded = open_checkpoint(folder).text()
    loaded.tokens = TOKENS
    assert type(loaded.tokenizer) is type(text.tokenizer)
    assert loaded.fits(" ".join(["red"] * (TOKENS - 1)))
    assert not loaded.fits(" ".join(["red"] * TOKENS))
    for prompt in (PROMPT, PROMPT.upper(), "a dog", "red " * 40):
        for ours, theirs in zip(loaded.tokenize([prompt]), text.tokenize([prompt]), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(loaded([prompt]), text([prompt]))


@pytest.mark.parametrize("words", [True, False])
def test_the_index_names_the_class_that_the_tokenizer_has(folder, checkpoint, words):
    opened = open_checkpoint(folder if words else checkpoint)
    kind = opened.text().tokenizer.kind
    assert opened.index["tokenizer"] == ["transformers", kind]
    assert words or kind == "ByT5Tokenizer"


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_either_name_of_the_class_is_known(folder, text, name):
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": name}))
    assert torch.equal(open_checkpoint(folder).text()([PROMPT])[:, :TOKENS], text([PROMPT]))


@pytest.mark.parametrize("name", ["TokenizersBackend", "ByT5Tokenizer", "OwnTokenizer"])
def test_no_code_of_a_folder_is_run(folder, checkpoint, name):
    place, mark = folder / "tokenizer", folder / "ran"
    own = "class OwnTokenizer(ByT5Tokenizer):\n    pass\n"
    code = f"from transformers import ByT5Tokenizer\nopen({str(mark)!r}, 'w')\n{own}"
    (place / "own.py").write_text(code)
    path = place / "tokenizer_config.json"
    wanted = {"tokenizer_class": name, "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **wanted}))
    try:
        assert open_checkpoint(folder).text().tokenizer.kind != "OwnTokenizer"
    except UserError as error:
        assert "cannot load the tokenizer in" in str(error)
    assert not mark.exists()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"added_tokens": [], "model": {"type": "none"}}'])
def test_a_damaged_tokenizer_is_refused_in_one_line(folder, content):
    (folder / "tokenizer" / "tokenizer.json").write_text(content)
    with pytest.raises(
        UserError, match=r"cannot load the tokenizer in .*; copy it again|tokenizer\.json "
    ) as caught:
        open_checkpoint(folder).text()
    assert "\n" not in str(caught.value)
