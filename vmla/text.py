"""Prompts to embeddings, through transformers' UMT5 encoder and a tokenizer, as Wan does it."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plugins.errors import UserError

SPECIAL = ("<pad>", "</s>", "<unk>")
"""The first tokens, in the order of T5: padding, the end of a prompt, an unknown word."""
BETWEEN_WORDS = r"[\s,.;]+"
"""As for `vmla.world.caption.read`, to which punctuation means nothing either."""
FAST = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""One class of transformers: what its version 4 calls it, and its version 5."""


@dataclass(frozen=True, kw_only=True)
class SmallTextConfig:
    """Sizes of the small model's UMT5 encoder, and what it reads."""

    width: int = 128
    head_width: int = 32
    heads: int = 4
    ffn_width: int = 256
    layers: int = 2
    words: tuple[str, ...] = ()
    """What it knows, in lower case, each a token; all others are one. None: it reads bytes."""

    def __post_init__(self) -> None:
        for word in self.words:
            if not word or word in SPECIAL or re.split(BETWEEN_WORDS, word.lower()) != [word]:
                raise UserError(f"{word!r} is no word of a prompt in lower case")
        if len(set(self.words)) != len(self.words):
            raise UserError("a word is named twice")

    def build(self) -> tuple[nn.Module, Any]:
        """A fresh encoder and its tokenizer: transformers' own classes."""
        # Direct module paths: the package's front door takes a second longer.
        from transformers.models.umt5.configuration_umt5 import UMT5Config
        from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

        tokenizer = word_tokenizer(self.words) if self.words else tokenizer_class("ByT5Tokenizer")()
        config = UMT5Config(
            vocab_size=len(tokenizer),
            d_model=self.width,
            d_kv=self.head_width,
            num_heads=self.heads,
            d_ff=self.ffn_width,
            num_layers=self.layers,
            dropout_rate=0.0,
        )
        return UMT5EncoderModel(config), tokenizer


def tokenizer_class(name: str | None) -> Any:
    """The class that loads a tokenizer saved as `name`; `AutoTokenizer` where it is not one of ours."""
    if name == "ByT5Tokenizer":
        from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

        return ByT5Tokenizer
    if name in FAST:
        from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def word_tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of whole words, whatever their case; it ends a prompt as T5 does."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing

    pad, end, unknown = SPECIAL
    numbers = {word: number for number, word in enumerate([*SPECIAL, *words])}
    inner = Tokenizer(WordLevel(numbers, unk_token=unknown))
    inner.normalizer = Lowercase()
    inner.pre_tokenizer = Split(Regex(BETWEEN_WORDS), "removed")
    inner.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, numbers[end])])
    special = {"pad_token": pad, "eos_token": end, "unk_token": unknown}
    inputs = ["input_ids", "attention_mask"]
    return tokenizer_class(FAST[0])(tokenizer_object=inner, model_input_names=inputs, **special)


def clean_prompt(prompt: str) -> str:
    """`prompt` as Wan and diffusers' `WanPipeline` clean it before they tokenize it.

    Mojibake is repaired, HTML's entities are unescaped twice, whitespace of any length becomes one space.
    """
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


class TextEncoder:
    """A UMT5 encoder with its tokenizer, giving embeddings of a fixed number of tokens."""

    def __init__(self, encoder: nn.Module, tokenizer: Any, *, tokens: int, lower_case: bool = False) -> None:
        """`lower_case` is for encoders that have only ever seen small letters."""
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.tokens = tokens
        self._lower_case = lower_case

    def clean(self, prompt: str) -> str:
        """What is tokenized of `prompt`."""
        cleaned = clean_prompt(prompt)
        return cleaned.lower() if self._lower_case else cleaned

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token numbers and mask, each [B, tokens] int64, of the cleaned prompts.

        Raises:
            UserError: for an empty prompt.
        """
        cleaned = [self.clean(prompt) for prompt in prompts]
        if not all(cleaned):
            raise UserError("the prompt is empty; describe what the video shows")
        batch = self.tokenizer(
            cleaned, padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        return batch["input_ids"], batch["attention_mask"]

    def fits(self, prompt: str) -> bool:
        """Whether nothing of `prompt` is cut off."""
        return len(self.tokenizer(self.clean(prompt))["input_ids"]) <= self.tokens

    def __call__(self, prompts: Sequence[str | None]) -> Tensor:
        """[B, tokens, text width] in the encoder's type; what lies behind a prompt's end is zero.

        None in place of a prompt tells the model nothing: zeros alone.
        """
        numbers, mask = self.tokenize(["nothing" if prompt is None else prompt for prompt in prompts])
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            embeddings = embed(self.encoder, numbers.to(device), mask.to(device))
            embeddings[[number for number, prompt in enumerate(prompts) if prompt is None]] = 0
        return embeddings


def embed(encoder: nn.Module, numbers: Tensor, mask: Tensor) -> Tensor:
    """The encoder's output [B, tokens, width] with zeros where `mask` is 0 (Wan attends to them)."""
    hidden: Tensor = encoder(input_ids=numbers, attention_mask=mask).last_hidden_state
    return hidden * mask[..., None].to(hidden.dtype)
