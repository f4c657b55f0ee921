"""The small model's text encoder: its sizes and its vocabulary."""

from __future__ import annotations

import re
from dataclasses import dataclass

from plugins.errors import UserError
from vmla.text.byte_tokenizer import ByteTokenizer
from vmla.text.special import SPECIAL
from vmla.text.tokenizer import Tokenizer
from vmla.text.umt5 import UMT5Config, UMT5Encoder
from vmla.text.word_tokenizer import BETWEEN_WORDS, WordTokenizer


@dataclass(frozen=True, kw_only=True)
class SmallTextConfig:
    """Sizes of the small model's UMT5 encoder, and its vocabulary."""

    width: int = 128
    head_width: int = 32
    heads: int = 4
    ffn_width: int = 256
    layers: int = 2
    words: tuple[str, ...] = ()
    """Words that it knows, in lower case, each a token; all others share one. If there are none, it reads
    bytes."""

    def __post_init__(self) -> None:
        for word in self.words:
            if not word or word in SPECIAL or re.split(BETWEEN_WORDS, word.lower()) != [word]:
                raise UserError(f"{word!r} is not a word of a prompt in lower case")
        if len(set(self.words)) != len(self.words):
            raise UserError("a word is named twice")

    def build(self) -> tuple[UMT5Encoder, Tokenizer]:
        """A fresh encoder and its tokenizer."""
        tokenizer: Tokenizer = WordTokenizer(self.words) if self.words else ByteTokenizer()
        config = UMT5Config(
            vocab_size=len(tokenizer),
            d_model=self.width,
            d_kv=self.head_width,
            num_heads=self.heads,
            d_ff=self.ffn_width,
            num_layers=self.layers,
        )
        return UMT5Encoder(config), tokenizer
