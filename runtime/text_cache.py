"""Cross-attention keys and values, made once per prompt and kept while the prompt stays."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from runtime.engine import Engine


class TextCache:
    """Remembers what the engine made of the latest prompts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prompts: Sequence[str] | None = None
        self._made: Tensor | None = None

    def of(self, prompts: Sequence[str]) -> Tensor:
        """[L, 2, B, tokens, D] for `prompts`, one for each video."""
        if self._made is None or prompts != self._prompts:
            self._made, self._prompts = self._engine.encode_prompt(prompts), prompts
        return self._made
