"""Prompts to embeddings of a fixed number of tokens."""

from __future__ import annotations

import html
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plugins.errors import UserError
from vmla.text.tokenizer import Tokenizer


def clean_prompt(prompt: str) -> str:
    """`prompt` as Wan and diffusers' `WanPipeline` clean it before they tokenize it.

    Mojibake is repaired, HTML's entities are unescaped twice, whitespace of any length becomes one space.
    """
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


def check_prompt(prompt: str) -> None:
    """Refuse an empty prompt, or one that is not text.

    Raises:
        UserError: for an empty prompt, or one with bytes that are not UTF-8.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty; describe what the video shows")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        place = error.start + 1
        raise UserError(f"the prompt is not UTF-8 text: character {place} is none; write it again") from error


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """The part of a too long prompt that an encoder does not read."""

    tokens: int
    """Tokens of the whole prompt, its end included."""
    read: int
    """Tokens of it that the encoder reads."""
    text: str
    """The cleaned prompt up to the place where it is cut."""

    def __str__(self) -> str:
        """The text that is cut off, in one sentence for a warning."""
        start = "..." if len(self.text) > ENDING else ""
        return (
            f"the prompt has {self.tokens} tokens, of which the model reads {self.read}: "
            f"it is cut after {start + self.text[-ENDING:]!r}"
        )


ENDING = 40
"""Characters before the cut that a warning shows."""


class PromptTokenizer:
    """Cleans a prompt and cuts it into tokens, of which at most as many as an encoder reads are left."""

    def __init__(
        self, tokenizer: Tokenizer, *, tokens: int, lower_case: bool = False, vocabulary: int | None = None
    ) -> None:
        """An encoder reads `tokens` tokens, whose numbers lie below `vocabulary`, if given; `lower_case` is
        for those trained on lower case alone."""
        self.tokenizer = tokenizer
        self.tokens = tokens
        self._vocabulary = vocabulary
        self._lower_case = lower_case

    def clean(self, prompt: str) -> str:
        """`prompt` as it will be tokenized: cleaned, and in lower case if the encoder was trained on that."""
        cleaned = clean_prompt(prompt)
        return cleaned.lower() if self._lower_case else cleaned

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token numbers and mask, each [B, tokens] int64, of the cleaned prompts; the rest is cut off.

        Raises:
            UserError: for an empty prompt, or one that is not valid Unicode; if the encoder does not know
                the tokens.
        """
        for prompt in prompts:
            check_prompt(prompt)
        cleaned = [self.clean(prompt) for prompt in prompts]
        for text in cleaned:
            check_prompt(text)  # cleaning may leave an empty string
        numbers = torch.full((len(cleaned), self.tokens), self.tokenizer.pad)
        mask = torch.zeros_like(numbers)
        for row, prompt in enumerate(cleaned):
            kept = self._numbers(prompt, limit=self.tokens)
            numbers[row, : len(kept)] = torch.tensor(kept)
            mask[row, : len(kept)] = 1
        return numbers, mask

    def _numbers(self, text: str, limit: int | None = None) -> list[int]:
        """Token numbers of a cleaned text that the encoder knows, at most `limit` of them."""
        numbers = self.tokenizer.numbers(text, limit=limit)
        known = self._vocabulary
        odd = known is not None and not all(0 <= number < known for number in (*numbers, self.tokenizer.pad))
        if odd or (text and not numbers) or (limit is not None and len(numbers) > limit):
            raise UserError("the tokenizer and the text encoder are not of one model; copy both again")
        return numbers

    def fits(self, prompt: str) -> bool:
        """Whether the whole `prompt` is read."""
        return self.cut(prompt) is None

    def cut(self, prompt: str) -> Truncation | None:
        """The part of `prompt` that is not read, None if all of it is."""
        cleaned = self.clean(prompt)
        count = self._count(cleaned)
        if count <= self.tokens:
            return None
        # The longest beginning whose tokens fit: a longer one never has fewer.
        places = range(len(cleaned) + 1)
        end = bisect_right(places, self.tokens, key=lambda place: self._count(cleaned[:place])) - 1
        return Truncation(tokens=count, read=self.tokens, text=cleaned[: max(end, 0)].rstrip())

    def _count(self, text: str) -> int:
        return len(self._numbers(text))


class TextEncoder(PromptTokenizer):
    """A UMT5 encoder with its tokenizer, giving embeddings of a fixed number of tokens."""

    def __init__(
        self, encoder: nn.Module, tokenizer: Tokenizer, *, tokens: int, lower_case: bool = False,
        vocabulary: int | None = None,
    ) -> None:  # fmt: skip
        """Read prompts of at most `tokens` tokens; the rest is passed to `PromptTokenizer`."""
        super().__init__(tokenizer, tokens=tokens, lower_case=lower_case, vocabulary=vocabulary)
        self.encoder = encoder

    def __call__(self, prompts: Sequence[str | None]) -> Tensor:
        """[B, tokens, text width] in the encoder's type; embeddings past a prompt's end are zero.

        None in place of a prompt gives zeros alone, as where training drops a prompt.
        """
        numbers, mask = self.tokenize(["nothing" if prompt is None else prompt for prompt in prompts])
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            embeddings = embed(self.encoder, numbers.to(device), mask.to(device))
            embeddings[[number for number, prompt in enumerate(prompts) if prompt is None]] = 0
        return embeddings


def embed(encoder: nn.Module, numbers: Tensor, mask: Tensor) -> Tensor:
    """The encoder's output [B, tokens, width] with zeros where `mask` is 0 (Wan attends to them)."""
    hidden: Tensor = encoder(numbers, mask)
    return hidden * mask[..., None].to(hidden.dtype)
