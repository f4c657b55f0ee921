"""Prompts to embeddings of a fixed number of tokens."""

from __future__ import annotations

import html
from collections.abc import Sequence

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


class TextEncoder:
    """A UMT5 encoder with its tokenizer, giving embeddings of a fixed number of tokens."""

    def __init__(
        self, encoder: nn.Module, tokenizer: Tokenizer, *, tokens: int, lower_case: bool = False
    ) -> None:
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
        """Token numbers and mask, each [B, tokens] int64, of the cleaned prompts; the rest is cut off.

        Raises:
            UserError: for an empty prompt.
        """
        cleaned = [self.clean(prompt) for prompt in prompts]
        if not all(cleaned):
            raise UserError("the prompt is empty; describe what the video shows")
        numbers = torch.full((len(cleaned), self.tokens), self.tokenizer.pad)
        mask = torch.zeros_like(numbers)
        for row, prompt in enumerate(cleaned):
            kept = torch.tensor(self.tokenizer.numbers(prompt, limit=self.tokens))
            numbers[row, : len(kept)] = kept
            mask[row, : len(kept)] = 1
        return numbers, mask

    def fits(self, prompt: str) -> bool:
        """Whether nothing of `prompt` is cut off."""
        return len(self.tokenizer.numbers(self.clean(prompt))) <= self.tokens

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
    hidden: Tensor = encoder(numbers, mask)
    return hidden * mask[..., None].to(hidden.dtype)
