"""The tokens that T5's tokenizers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPECIAL = ("<pad>", "</s>", "<unk>")
"""The first tokens, in the order of T5: padding, the end of a prompt, an unknown word."""


NAMES = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
"""As a `tokenizer_config.json` has them."""


def named(settings: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer_config.json` calls them so."""
    return all(settings.get(name) == token for name, token in NAMES.items())
