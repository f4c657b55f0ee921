"""Prompts become a fixed number of embeddings, zero behind their end."""

import pytest
import torch
from kit.measure import assert_close

from plugins.errors import UserError
from runtime.prompts.sources import FixedPrompts
from vmla.text import PromptTokenizer, SmallTextConfig, TextEncoder, clean_prompt
from vmla.text.word_tokenizer import WordTokenizer
from vmla.weights.checkpoint import SHIPPED, open_checkpoint
from vmla.world.caption import read

pytestmark = pytest.mark.cpu

TOKENS, WIDTH = 24, 16
PROMPTS = ["a red star", "two blue rings"]


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    sizes = SmallTextConfig(width=WIDTH, head_width=8, heads=2, ffn_width=16, layers=2)
    encoder, tokenizer = sizes.build()
    return TextEncoder(encoder.eval(), tokenizer, tokens=TOKENS)


def test_every_prompt_has_the_same_number_of_tokens(text):
    for prompts in (["a"], PROMPTS, ["a very long prompt " * 20]):
        assert text(prompts).shape == (len(prompts), TOKENS, WIDTH)


def test_what_lies_behind_the_end_is_zero_and_nothing_else_is(text):
    embedded = text(PROMPTS)
    for prompt, rows in zip(PROMPTS, embedded, strict=True):
        end = len(prompt.encode()) + 1  # the byte tokenizer adds one for the end
        assert (rows[end:] == 0).all()
        assert (rows[:end].abs().sum(dim=1) > 0).all()


def test_padding_does_not_reach_the_prompt(text):
    longer = TextEncoder(text.encoder, text.tokenizer, tokens=2 * TOKENS)
    assert_close(longer(PROMPTS)[:, :TOKENS], text(PROMPTS), rtol=1e-4, atol=1e-5)


def test_each_prompt_of_a_batch_is_encoded_alone(text):
    assert_close(text(PROMPTS[1:]), text(PROMPTS)[1:], rtol=1e-4, atol=1e-5)
    assert (text(PROMPTS)[0] - text(PROMPTS)[1]).abs().max() > 0.1


@pytest.mark.parametrize("untidy", [" a red star", "a  red\tstar\n", "a\u3000red\u00a0star"])
def test_whitespace_is_cleaned(text, untidy):
    assert torch.equal(text([untidy]), text(["a red star"]))
    assert torch.equal(text.tokenize([untidy])[0], text.tokenize(["a red star"])[0])


def test_what_does_not_fit_is_cut_off_at_the_end(text):
    fitting, cut = "x" * (TOKENS - 1), "x" * (TOKENS + 5)
    assert text.fits(fitting)
    assert text.fits(f"  {fitting}  ")
    assert not text.fits(fitting + "x")
    numbers, mask = text.tokenize([cut])
    assert mask.all()
    assert numbers[0, -1] == 1
    assert torch.equal(numbers, text.tokenize([fitting])[0])


@pytest.mark.parametrize("prompts", [[""], ["a red star", " \n\t"]], ids=repr)
def test_an_empty_prompt_is_refused(text, prompts):
    with pytest.raises(UserError, match="the prompt is empty; describe what the video shows"):
        text(prompts)


def test_no_graph_is_kept(text):
    assert all(parameter.requires_grad for parameter in text.encoder.parameters())
    assert not text(PROMPTS).requires_grad


def test_other_scripts_are_read(text):
    assert (text(["紅い星"])[0, :10].abs().sum(dim=1) > 0).all()


UNTIDY = [
    "a cat &amp;amp; a dog",
    "&lt;b&gt;a red star&lt;/b&gt;",
    "it\u2019s \u201cquoted\u201d",
    "a \ufb01ne \ufb02ag",
    "\uff21 \uff46\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48 \u30ab\u30e1\u30e9",
    "cafÃ© au lait",
    "  tabs\tand\r\nlines  ",
    "zero\u200bwidth",
    "\u732b\u304c\u8d70\u308b",
    "A Capital Letter",
    "&nbsp;&eacute;",
]


@pytest.mark.parametrize("prompt", UNTIDY)
def test_prompts_are_cleaned_as_wan_pipeline_cleans_them(text, prompt):
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert clean_prompt(prompt) == prompt_clean(prompt)
    assert torch.equal(text.tokenize([prompt])[0], text.tokenize([prompt_clean(prompt)])[0])


def test_the_shipped_model_and_its_grader_read_capitals_as_small_letters():
    encoder = open_checkpoint(SHIPPED).text()
    small, capital = (
        "a red star bouncing on a navy background",
        "A RED Star bouncing\u00a0on a &quot;Navy&quot; background",
    )
    assert torch.equal(encoder([small]), encoder([small.upper()]))
    assert read(small) == read(small.upper())
    assert encoder.clean(capital) == 'a red star bouncing on a "navy" background'


def test_an_encoder_of_words_as_they_are_written_keeps_capitals(text):
    assert text.clean("A Star") == "A Star"


def test_what_is_too_long_says_how_much_is_read_and_where_it_is_cut(text):
    assert text.cut("x" * (TOKENS - 1)) is None
    cut = text.cut("  a red star " + "x" * 40)
    assert (cut.tokens, cut.read) == (len("a red star ") + 40 + 1, TOKENS)
    assert cut.text == "a red star " + "x" * (TOKENS - 1 - len("a red star "))
    said = str(cut)
    assert f"has {cut.tokens} tokens, of which the model reads {TOKENS}" in said
    assert said.endswith(f"it is cut after {cut.text!r}")


def test_a_tokenizer_of_words_says_where_in_the_text_it_stops():
    reader = PromptTokenizer(WordTokenizer(("a", "red", "star")), tokens=24, lower_case=True)
    cut = reader.cut("A red star, " * 10)
    assert (cut.tokens, cut.read) == (31, 24)
    assert cut.text == "a red star, " * 7 + "a red"  # 23 words and the end


@pytest.mark.parametrize("prompt", ["a red \ud800 star", "\udcff"], ids=ascii)
def test_what_is_no_utf8_is_refused(text, prompt):
    with pytest.raises(UserError, match="the prompt is not UTF-8 text: character"):
        text([prompt])
    with pytest.raises(UserError, match="the prompt is not UTF-8 text"):
        FixedPrompts(prompt)
