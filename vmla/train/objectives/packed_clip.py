"""Which frames each chunk of a training clip sees, and all chunks' velocities from one masked pass.

A pass for each chunk, and one more to commit it, is what a rollout does; on a machine whose processes share
weights, each of those passes gathers all of them. Here one pass does it all (`vmla.packed_sequence`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vmla.cache import CacheSpec
from vmla.packed_sequence import PackedClip

Step = Callable[..., tuple[Tensor, Tensor]]
"""`VideoMLA.forward`, or the same computed in a narrower type."""
Pass = Callable[[Tensor, Tensor, Tensor, PackedClip], Tensor]
"""`VideoMLA.forward_packed`, or the same computed in a narrower type."""


def remembered(spec: CacheSpec, number: int, numbers: Sequence[int]) -> Tensor:
    """`slot_index` of chunk `number` when only the chunks in `numbers` were ever made; a jump forgets.

    Only the sink survives a jump, as it is all that survives in a rollout of that length.
    """
    chunks = spec.chunks
    start = chunks.start(max(n for n in numbers if n <= number and n - 1 not in numbers))
    frames = spec.frame_in_slot(chunks.start(number))
    sink = [frame < spec.sink and chunks.number_of(frame) in numbers for frame in frames]
    kept = [frame >= start or old for frame, old in zip(frames, sink, strict=True)]
    return torch.where(torch.tensor(kept), spec.slot_index(chunks.start(number)), -1)


def predicted(numbers: Sequence[int]) -> list[int]:
    """The chunks among `numbers` that follow the one before them: after a jump a chunk has no history."""
    return [number for number in numbers if number == 0 or number - 1 in numbers]


@lru_cache(maxsize=64)
def pack_clip(spec: CacheSpec, numbers: tuple[int, ...] | range) -> PackedClip:
    """The sequence of all chunks in `numbers` but the last, clean, then the predicted ones, noisy."""
    chunks = spec.chunks
    rows = [(n, frame) for n in (*numbers[:-1], *predicted(numbers)) for frame in chunks.frames_of([n])]
    clean = {frame: row for row, frame in enumerate(chunks.frames_of(numbers[:-1]))}
    seen = {n: _seen(spec, n, numbers) for n in numbers}
    nearer = [(n, frame, place) for n in numbers for frame, place in seen[n] if place != frame]
    again = {(n, frame): column for column, (n, frame, _) in enumerate(nearer)}
    visible = torch.zeros(len(rows), len(nearer) + len(rows), dtype=torch.bool)
    for row, (number, own) in enumerate(rows):
        itself = len(nearer) + row - (own - chunks.start(number))
        visible[row, itself : itself + chunks.length(number)] = True
        for frame, _ in seen[number]:
            visible[row, again.get((number, frame), len(nearer) + clean[frame])] = True
    positions = [place for _, _, place in nearer] + [frame for _, frame in rows]
    repeated = [clean[frame] for _, frame, _ in nearer]
    return PackedClip(torch.tensor(repeated, dtype=torch.int64), torch.tensor(positions), visible)


def _seen(spec: CacheSpec, number: int, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Frames that chunk `number` sees, each with the position that it has when the chunk has its own."""
    start = spec.chunks.start(number)
    slots, shift = remembered(spec, number, numbers).tolist(), spec.shift(start)
    frames = spec.frame_in_slot(start)
    return [(frame, slot + shift) for frame, slot in zip(frames, slots, strict=True) if slot >= 0]


def packed_velocity(
    run: Pass, spec: CacheSpec, text_kv: Tensor, numbers: Sequence[int], noisy: Tensor, clean: Tensor,
    timestep: Tensor,
) -> Tensor:  # fmt: skip
    """Velocities of the predicted chunks, each after clean ones, in float32.

    Args:
        run: one pass over a sequence.
        spec: geometry of the cache, which decides the windows.
        text_kv: [L, 2, B, tokens, D].
        numbers: the chunks of the clip, which may jump once.
        noisy: [B, z, frames, h, w] of the predicted chunks.
        clean: [B, z, frames, h, w] of all chunks but the last.
        timestep: [B, frames] of the noisy frames, 1000 sigma.
    """
    still = timestep.new_zeros(len(timestep), clean.shape[2])
    sequence, times = torch.cat([clean, noisy], dim=2), torch.cat([still, timestep], dim=1)
    velocity = run(sequence, times, text_kv, pack_clip(spec, tuple(numbers)))
    return velocity[:, :, clean.shape[2] :].float()
