"""Prompts to embeddings, as Wan makes them: a tokenizer, a UMT5 encoder, zeros behind a prompt's end."""

from vmla.text.encoder import TextEncoder, clean_prompt, embed
from vmla.text.small import SmallTextConfig

__all__ = ["SmallTextConfig", "TextEncoder", "clean_prompt", "embed"]
