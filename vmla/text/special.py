"""The tokens that T5's tokenizers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPECIAL = ("<pad>", "</s>", "<unk>")
"""The first tokens, in the order of T5: padding, the end of a prompt, an unknown word."""


NAMES = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
"""Their keys in a `tokenizer_config.json`."""


def named(settings: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer_config.json` gives these tokens these names."""
    return all(settings.get(name) == token for name, token in NAMES.items())
