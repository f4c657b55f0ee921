"""Into how many splits the keys of a query tile are cut, so that the last wave is not mostly idle."""

from __future__ import annotations

MERGE_KEYS = 640.0
"""Cost of writing and reading one more split of a query tile, in keys attended to. From traffic: 57 MB
twice at 4.8 TB/s, against 1.55 us for 128 keys of a tile on every processor of an H200 (derived from
published rates, not measured)."""

MOST = 8
FEWEST_KEYS = 128
"""A split of fewer keys than this is not worth a program."""


def best_splits(tiles: int, keys: int, processors: int) -> int:
    """The number of splits that takes the least time: waves of programs, plus merging what they write.

    At the published shape (444 tiles) on 132 processors, one split leaves a sixth of them idle.
    """

    def cost(count: int) -> float:
        waves = -(-tiles * count // processors) / count
        merging = count * tiles / processors * MERGE_KEYS / keys if count > 1 else 0.0
        return waves + merging

    return min(range(1, max(1, min(MOST, keys // FEWEST_KEYS)) + 1), key=cost)
