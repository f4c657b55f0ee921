"""The length of a video: minutes, seconds or chunks become a number of chunks and of frames."""

from __future__ import annotations

from plugins.errors import UserError
from runtime.rollout.decoding import Decoding
from vmla.cache import CacheSpec, ChunkLengths
from vmla.config import FRAMES_PER_SECOND
from vmla.vae import Codec, frames_in

DEFAULT_SECONDS = 10.0
"""The length where none is given."""
LONGEST_SECONDS = 24 * 3600.0
"""A day. A rollout could go on for longer, but whoever asks for more has mistyped."""


def length_of(
    decoding: Decoding, *, minutes: float | None, seconds: float | None, chunks: int | None
) -> tuple[int, int]:
    """The number of chunks, and of their frames that belong to the video; ten seconds if nothing is given.

    Raises:
        UserError: for more than one length, or one that cannot be.
    """
    if sum(length is not None for length in (minutes, seconds, chunks)) > 1:
        raise UserError("more than one length; give one of --minutes, --seconds, --chunks")
    lengths, codec = CacheSpec.of(decoding.checkpoint.model_config()).chunks, decoding.sizes()
    wanted = 60 * minutes if minutes is not None else DEFAULT_SECONDS if seconds is None else seconds
    count = chunks or chunks_for(wanted, lengths, codec)
    whole = frames_in(lengths.start(count), codec)
    check_length(whole / FRAMES_PER_SECOND)
    trained = decoding.checkpoint.model_config().absolute_positions
    if 0 < trained < lengths.start(count):
        most = frames_in(trained, codec) / FRAMES_PER_SECOND
        raise UserError(
            f"{decoding.checkpoint.folder} has absolute positions, trained for {trained} latent frames: ask "
            f"for {most:g} s at most, or convert it without --absolute-positions"
        )
    return count, whole if chunks else round(wanted * FRAMES_PER_SECOND)


def chunks_for(seconds: float, chunks: ChunkLengths, codec: Codec) -> int:
    """The fewest chunks that last `seconds`.

    Raises:
        UserError: for a length that `check_length` refuses.
    """
    check_length(seconds)
    latent = 1 + -(-(round(seconds * FRAMES_PER_SECOND) - codec.first_frames) // codec.temporal_ratio)
    return max(1, chunks.count(latent))


def check_length(seconds: float) -> None:
    """Refuse a length that no video can have.

    Raises:
        UserError: unless it is more than nothing and at most a day.
    """
    if not 0 < seconds <= LONGEST_SECONDS:
        raise UserError(f"no video lasts {seconds:g} s; ask for more than 0 and at most {LONGEST_SECONDS:g}")
