"""Room on disk: at the limit of streams, a new one removes the session that was left first."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from runtime.serve.edge.settings import ServeSettings
from runtime.serve.streams.stream import Stream

LATER_SECONDS = 60.0
"""Seconds after which to try again, if all streams are watched."""


def longest_unwatched(streams: Iterable[Stream], settings: ServeSettings) -> Stream | None:
    """The session at rest that nobody has watched or asked for the longest, if that is long enough.

    Jobs are never removed to make room: their videos were ordered, and may not have been fetched yet.
    """
    latest = time.monotonic() - settings.limits.spared_seconds
    leavable = [
        one for one in streams
        if one.info.kind == "session" and one.left_at <= latest
        and not (one.viewers or one.resident or one.lock.locked())
    ]  # fmt: skip
    return min(leavable, key=lambda one: one.left_at, default=None)


def seconds_until_room(streams: Iterable[Stream], settings: ServeSettings) -> int:
    """Seconds until the first of `streams` may be removed, if nobody asks for it meanwhile."""
    spared = min(settings.limits.spared_seconds, settings.retention_seconds)
    ends = [
        one.left_at + (spared if one.info.kind == "session" else settings.retention_seconds)
        + (one.info.lease if one.resident else 0.0)
        for one in streams if not one.viewers
    ]  # fmt: skip
    now = time.monotonic()
    return max(1, math.ceil(min(ends, default=now + LATER_SECONDS) - now))
