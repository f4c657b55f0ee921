"""Memory of one GPU in a stage, by part, from sizes alone: the parts that FSDP2 shards, and those that it
does not."""

from __future__ import annotations

import math
from dataclasses import replace

from vmla.cache import CacheSpec
from vmla.config import ModelConfig
from vmla.train.recipes.from_checkpoint import DistillationRecipe
from vmla.weights.source import shapes_of

FULL, HALF = 4, 2
"""Bytes of a float32 and of a bfloat16 number."""
ACTIVATIONS_PER_TOKEN = 34
"""Activations of width D that a block holds for each token while its gradients are computed: normalised,
modulated and projected inputs of three sublayers, queries, keys, values, outputs, and two of FFN width."""


def memory_by_part(recipe: DistillationRecipe, name: str, *, gpus: int) -> dict[str, int]:
    """Bytes on each of `gpus` GPUs in stage `name`, by part, and their sum."""
    training, config = getattr(recipe, name), recipe.model
    matching = name in ("distribution", "long")
    dense = replace(config, layout="mha")
    trained = [config, dense if training.whole_scores else config] if matching else [config]
    frozen = {"forcing": [], "consistency": [config, config]}.get(name, trained[-1:])
    learning = sum(_parameters(each) for each in trained)
    still = sum(_parameters(each) for each in frozen)
    # In the consistency stage the average is a network of its own, counted among the frozen ones.
    averaged = 0 if name == "consistency" else _parameters(config)
    parts = {
        "weights, sharded": FULL * (learning + still) // gpus,
        "gradients, sharded": FULL * learning // gpus,
        "AdamW's moments, sharded": 2 * FULL * learning // gpus,
        "average, sharded": FULL * averaged // gpus,
        "gathered blocks": 2 * HALF * max(_block(each) for each in trained + frozen),
        **_of_clips(trained[-1] if matching else config, config, training),
    }
    return {**parts, "all": sum(parts.values())}


def _of_clips(scorer: ModelConfig, config: ModelConfig, training: object) -> dict[str, int]:
    """Bytes that grow with the clips of a micro-batch."""
    clips, chunks = training.clips, training.chunks  # type: ignore[attr-defined]
    copies = getattr(getattr(training, "forcing", None), "copies", 1)
    spec, tokens = CacheSpec.of(config), config.chunk * config.tokens_per_frame
    whole = getattr(training, "whole_scores", False)
    at_once = getattr(training, "at_once", False)
    passes = [chunks * (copies + 1) * tokens, chunks * tokens if whole else 0]
    # Checkpointing stores a block's input for every pass, and one block's activations at a time.
    largest = passes[0] if at_once else max(copies * tokens, passes[1])
    inside = clips * largest * ACTIVATIONS_PER_TOKEN * config.inner_dim
    # A clip in one pass has none; a student's rollout has them all the same.
    cached = 0 if at_once and not hasattr(training, "critic") else chunks
    text = config.num_layers * 2 * clips * config.text_tokens * config.inner_dim
    return {
        "inputs of blocks": HALF * clips * max(passes) * scorer.num_layers * config.inner_dim,
        "one block's inside": HALF * inside,
        "caches, one for each chunk": cached * spec.bytes(clips * (copies + 1), element_size=HALF),
        "keys and values of the text": HALF * text * 2,
    }


def _parameters(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in shapes_of(config).values())


def _block(config: ModelConfig) -> int:
    shapes = shapes_of(replace(config, num_layers=1))
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("blocks."))
