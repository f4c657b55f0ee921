"""Prompts to embeddings, as Wan makes them: a tokenizer, a UMT5 encoder, zeros behind a prompt's end."""

from vmla.text.encoder import PromptTokenizer, TextEncoder, Truncation, check_prompt, clean_prompt, embed
from vmla.text.small import SmallTextConfig

__all__ = [
    "Cut", "PromptTokenizer", "SmallTextConfig", "TextEncoder", "check_prompt", "clean_prompt", "embed",
]  # fmt: skip
