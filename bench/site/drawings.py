"""The documents' drawings as SVG text, with sizes and slots taken from the code that they explain."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from vmla.cache import CacheSpec
from vmla.config import MODEL_CONFIGS, ModelConfig

INK, PAPER, QUIET = "#1d2733", "#ffffff", "#5f6b7a"
SINK, HISTORY, CHUNK, EMPTY = "#f3c969", "#a9cdf0", "#b7e0c0", "#eef1f4"
FONT = "font-family='system-ui, sans-serif'"
WIDE, HIGH = 34, 26
"""Width and height of a slot in the drawing of the window, in pixels."""
SHOWN = 6
"""Chunks that the drawing of the window shows."""


def drawings() -> Iterator[tuple[str, str]]:
    """Each drawing: its file name in `docs`, and its text."""
    config = MODEL_CONFIGS["wan-1.3b"]
    yield "how-it-works.svg", how_it_works()
    yield "window.svg", window(CacheSpec.of(config))
    yield "cache.svg", cache(config)


def how_it_works() -> str:
    """Draw the way from a prompt to a file, through the cache."""
    boxes = [
        _box(10, 30, 130, 46, EMPTY, "prompt", "text encoder"),
        _box(10, 110, 130, 46, EMPTY, "noise", "by seed and chunk"),
        _box(200, 70, 170, 46, CHUNK, "denoiser", "4 or 8 steps for a chunk"),
        _box(430, 70, 130, 46, EMPTY, "decoder", "12 frames"),
        _box(620, 70, 130, 46, EMPTY, "MP4 or stream", "plays while it grows"),
        _box(200, 190, 170, 46, CHUNK, "clean pass", "same weights, no noise"),
        _box(430, 190, 320, 46, HISTORY, "latent cache", "sink and ring: never grows"),
    ]
    arrows = [
        _arrow(140, 53, 200, 84), _arrow(140, 133, 200, 102), _arrow(370, 93, 430, 93),
        _arrow(560, 93, 620, 93), _arrow(285, 116, 285, 190), _arrow(370, 213, 430, 213),
    ]  # fmt: skip
    back = (
        f"<path d='M590 190 V150 H330 V116' fill='none' stroke='{INK}' stroke-width='1.5' "
        "marker-end='url(#tip)'/>"
    )
    said = _text(460, 143, "the next chunk attends to it", QUIET, 12)
    return _svg(760, 250, "How a video is made, chunk by chunk", [*boxes, *arrows, back, said])


def window(spec: CacheSpec) -> str:
    """Which latent frame each slot holds while chunk after chunk is made, and which frames have left."""
    left, top = 90, 64
    parts = [
        _text(left + WIDE * spec.sink / 2, 30, "sink", INK, 12),
        _text(left + WIDE * (spec.sink + spec.history / 2), 30, "history: a ring", INK, 12),
        _text(_after(left, spec) + WIDE * spec.chunk / 2, 30, "made now", INK, 12),
        _text(left + WIDE * spec.slots / 2, 48, "slots, by the latent frame that each holds", QUIET, 11),
    ]
    for number in range(SHOWN):
        frame, y = spec.chunks.start(number), top + number * (HIGH + 8)
        parts.append(_text(left - 46, y + 17, f"chunk {number}", INK, 12))
        for slot, held in enumerate(spec.frame_in_slot(frame)):
            fill = EMPTY if held < 0 else SINK if slot < spec.sink else HISTORY
            parts.append(_slot(left + slot * WIDE, y, fill, "" if held < 0 else str(held)))
        for offset in range(spec.chunks.length(number)):
            parts.append(_slot(_after(left, spec) + offset * WIDE, y, CHUNK, str(frame + offset)))
        positions = spec.chunk_index(frame, spec.chunk).tolist()
        said = f"positions {positions[0]} to {positions[-1]}"
        parts.append(_text(_after(left, spec) + WIDE * spec.chunk + 66, y + 17, said, QUIET, 12))
    return _svg(590, top + SHOWN * (HIGH + 8) + 4, "The window over six chunks", parts)


def cache(config: ModelConfig) -> str:
    """One token's cache in one layer, to scale: keys and values of each head, or one entry."""
    per_head, entry, heads = 2 * config.inner_dim, config.entry_width, config.num_attention_heads
    full = 560
    short = full * entry / per_head
    said = f"per head: {per_head:,} numbers, keys and values of {heads} heads"
    parts = [
        f"<rect x='20' y='34' width='{full}' height='30' fill='{HISTORY}' stroke='{INK}'/>",
        _text(20 + full / 2, 54, said, INK, 13),
        f"<rect x='20' y='92' width='{short:.1f}' height='30' fill='{SINK}' stroke='{INK}'/>",
        f"<text x='{32 + short:.1f}' y='112' {FONT} font-size='13' fill='{INK}'>latent: {entry} numbers, "
        f"{config.kv_lora_rank} of content and {config.qk_rope_head_dim} of a shared rotary key</text>",
    ]  # fmt: skip
    return _svg(600, 140, "What one token leaves in one layer's cache", parts)


def _after(left: int, spec: CacheSpec) -> int:
    """The x coordinate of the chunk that is being made, right of the slots."""
    return left + spec.slots * WIDE + 24


def _svg(width: int, height: int, title: str, parts: list[str]) -> str:
    tip = (
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' "
        f"orient='auto'><path d='M0 0 L8 4 L0 8 z' fill='{INK}'/></marker></defs>"
    )
    size = f"viewBox='0 0 {width} {height}' width='{width}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img'>"
    ground = f"<rect width='{width}' height='{height}' fill='{PAPER}'/>"
    return "\n".join([head, f"<title>{escape(title)}</title>", tip, ground, *parts, "</svg>\n"])


def _box(x: int, y: int, width: int, height: int, fill: str, name: str, what: str) -> str:
    middle = x + width / 2
    return (
        f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='6' fill='{fill}' stroke='{INK}'/>"
        + _text(middle, y + 20, name, INK, 14)
        + _text(middle, y + 37, what, QUIET, 11)
    )


def _slot(x: int, y: int, fill: str, said: str) -> str:
    return f"<rect x='{x}' y='{y}' width='{WIDE}' height='{HIGH}' fill='{fill}' stroke='{INK}'/>" + _text(
        x + WIDE / 2, y + 17, said, INK, 12
    )


def _arrow(x: int, y: int, to_x: int, to_y: int) -> str:
    return f"<path d='M{x} {y} L{to_x} {to_y}' stroke='{INK}' stroke-width='1.5' marker-end='url(#tip)'/>"


def _text(x: float, y: int, said: str, fill: str, size: int) -> str:
    return (
        f"<text x='{x:g}' y='{y}' text-anchor='middle' {FONT} font-size='{size}' fill='{fill}'>"
        f"{escape(said)}</text>"
    )
