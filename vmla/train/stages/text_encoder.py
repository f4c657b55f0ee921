"""Stage `text`: a small UMT5 encoder learns the meaning of captions, before any picture is seen.

Published models come with a text encoder that was trained on text alone. This is the small
counterpart: a probe that is thrown away reads each object's attributes from the embeddings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmla.text import SmallTextConfig, TextEncoder, embed
from vmla.train.loop.parallel import CPU
from vmla.train.loop.throughput import Meter
from vmla.train.optim.optimizers import TrainingSchedule
from vmla.train.optim.precision import Precision, resolve
from vmla.world.caption import describe, read
from vmla.world.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, draw_scene
from vmla.world.worlds import FIRST, world_named

ATTRIBUTES = {"shape": SHAPES, "colour": tuple(COLOURS), "motion": MOTIONS, "size": SIZES}
OBJECTS = 2
"""The most objects that a caption describes; the encoder's training has a classifier for each."""


@dataclass(frozen=True, kw_only=True)
class TextTraining:
    """Settings of the stage that trains the text encoder."""

    schedule: TrainingSchedule
    captions: int = 64
    """Batch size, in captions."""
    world: str = FIRST.name
    precision: Precision = "auto"
    seed: int = 0


class Probe(nn.Module):
    """One learned question per attribute, answered by a single attention over the embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [len(values) + 1 for values in ATTRIBUTES.values()] * OBJECTS + [len(BACKGROUNDS)]
        self.questions = nn.Parameter(torch.randn(len(sizes), width))
        self.keys = nn.Linear(width, width, bias=False)
        self.answers = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, text: Tensor, mask: Tensor) -> list[Tensor]:
        """text [B, tokens, width], mask [B, tokens] to logits [B, classes] for each question."""
        scores = self.questions @ self.keys(text).transpose(1, 2) / text.shape[-1] ** 0.5
        weights = scores.masked_fill(mask[:, None] == 0, float("-inf")).softmax(-1)
        return [layer(x) for layer, x in zip(self.answers, (weights @ text).unbind(1), strict=True)]


class TextStage:
    """Classification of the objects and attributes in random captions."""

    name = "text"

    def __init__(
        self, text: SmallTextConfig, tokens: int, training: TextTraining, device: torch.device = CPU
    ) -> None:
        torch.manual_seed(training.seed)
        encoder, tokenizer = text.build()
        self.text, self.training, self.schedule = text, training, training.schedule
        self.meter = Meter(resolve(training.precision, device))
        self.encoder = TextEncoder(encoder, tokenizer, tokens=tokens)
        self.model = nn.ModuleDict({"encoder": encoder, "probe": Probe(text.width)}).to(device)
        self.device = device

    def settings(self) -> dict[str, Any]:
        """The settings that determine the result."""
        return {"text": asdict(self.text), "tokens": self.encoder.tokens, "training": asdict(self.training)}

    def loss(self, step: int) -> Tensor:
        """Mean cross-entropy over all questions."""
        settings = self.training
        with self.meter.waiting():
            captions = draw_captions(settings.seed, step, settings.captions, settings.world)
        logits, targets = self.answer(captions)
        losses = [F.cross_entropy(x.float(), y) for x, y in zip(logits, targets, strict=True)]
        return torch.stack(losses).mean()

    def answer(self, captions: list[str]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and true classes [B] of each question."""
        numbers, mask = (part.to(self.device) for part in self.encoder.tokenize(captions))
        narrow = torch.autocast(self.device.type, torch.bfloat16, enabled=self.meter.dtype == torch.bfloat16)
        with self.meter.counting(numbers.shape, tokens=numbers.numel()), narrow:
            text = embed(self.model["encoder"], numbers, mask)
            logits = self.model["probe"](text, mask)
        targets = torch.tensor([truth(caption) for caption in captions], device=self.device)
        return logits, list(targets.unbind(1))


def draw_captions(seed: int, step: int, count: int, world: str = FIRST.name) -> list[str]:
    """The captions of `step`, of training's combinations only."""
    rng = np.random.default_rng([seed, step, 1])
    return [describe(draw_scene(rng, world=world_named(world)), rng) for _ in range(count)]


def truth(caption: str) -> list[int]:
    """The classes of a caption's objects and background; 0 where an object or a size is not mentioned."""
    reading = read(caption)
    classes = []
    for place in range(OBJECTS):
        request = reading.requests[place] if place < len(reading.requests) else None
        for name, values in ATTRIBUTES.items():
            value = getattr(request, name, None)
            classes.append(0 if value is None else values.index(value) + 1)
    return [*classes, list(BACKGROUNDS).index(reading.background or "")]
