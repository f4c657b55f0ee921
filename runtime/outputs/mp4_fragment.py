"""Encodes frames as a piece of a fragmented MP4 that depends only on these frames and their position.

Each piece is encoded and muxed afresh and begins with a key frame, so a file may be cut between any
two and continued there, and comes out as if it had never been cut. Muxers count fragments and time
from zero; `place` writes the true numbers (ISO/IEC 14496-12: boxes `mfhd` and `tfdt` of a `moof`).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.outputs import Frames

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext

MUXER = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
ENCODER = {"preset": "veryfast", "tune": "zerolatency", "crf": "18", "threads": "1"}
"""No frame held back; one thread, so that the bytes do not depend on the machine's cores. x264's default
quality is crf 23; at 18 its losses are hard to see, and a viewer sees the model's pictures."""
NO_NOTES = "filter_units=remove_types=6"
"""Drops the 700 bytes in which x264 describes itself at the start of each piece (SEI units)."""


BT601, BT709 = 601, 709
"""Matrices from red, green and blue to luma and chroma; 0 is BT.601 in a file that does not name its
matrix."""
HD_HEIGHT = 720
"""Lines from which on players expect BT.709 where a file says nothing."""
LIMITED, FULL = 1, 2
"""Ranges of luma: 16 to 235, or 0 to 255."""
CODE = {BT601: 6, BT709: 1}
"""Code of a matrix, of its primaries and of its transfer function (ITU-T H.273); 6 is SMPTE 170M."""
SCALER = {0: None, BT601: "ITU601", BT709: "ITU709"}
"""FFmpeg's scaler has its own names for the matrices; None leaves its default."""


class Box(NamedTuple):
    """A box of an MP4: a piece of its bytes."""

    kind: bytes
    start: int
    """Offset of its size field, which its type follows."""
    end: int


def boxes(data: bytes | bytearray, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yield the boxes that follow one another in `data`; an incomplete last one is left out."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
        if size < 8 or start + size > end:
            return
        yield Box(kind, start, start + size)
        start += size


def matrix_for(height: int) -> int:
    """The matrix that players assume for pictures of so many lines, if a file names none."""
    return BT709 if height >= HD_HEIGHT else BT601


def name_colours(context: VideoCodecContext, matrix: int) -> None:
    """Make an encoder's stream name the matrix of its colours; 0 names none."""
    if matrix:
        context.color_range, context.colorspace = LIMITED, CODE[matrix]
        context.color_primaries = context.color_trc = CODE[matrix]


def to_yuv(pixels: NDArray[np.uint8], width: int, height: int, matrix: int) -> VideoFrame:
    """[H, W, 3] red green blue as a picture of that size in luma and subsampled chroma."""
    import av

    picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    picture = picture.reformat(
        width, height, "yuv420p", interpolation="BICUBIC",
        dst_colorspace=SCALER[matrix], src_color_range=FULL if matrix else None,
        dst_color_range=LIMITED if matrix else None,
    )  # fmt: skip
    if matrix:
        picture.colorspace = CODE[matrix]  # the scaler numbers it differently
    return picture


def encode(frames: Frames, *, rate: int, scale: int, matrix: int) -> tuple[bytes, bytearray]:
    """The header of a file of such frames, and [n, H, W, 3] frames as fragments numbered from 1 at time 0.

    Args:
        frames: uint8, red green blue, 0 .. 255.
        rate: frames per second.
        scale: factor by which each frame is enlarged.
        matrix: colour matrix of the conversion, which file and stream name unless it is 0.
    """
    import av
    from av.bitstream import BitStreamFilterContext

    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options=MUXER) as container:
        stream = container.add_stream("libx264", rate=rate, options=ENCODER)
        stream.width, stream.height = frames.shape[2] * scale, frames.shape[1] * scale
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = rate  # a key frame a second at least, for players that join or seek
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        name_colours(stream.codec_context, matrix)
        container.start_encoding()
        notes = BitStreamFilterContext(NO_NOTES, in_stream=stream, out_stream=stream)
        for number, pixels in enumerate(frames):
            picture = to_yuv(pixels, stream.width, stream.height, matrix)
            picture.pts = number
            for packet in stream.encode(picture):
                container.mux(notes.filter(packet))
        for packet in stream.encode(None):
            container.mux(notes.filter(packet))
    data = file.getvalue()
    pieces = list(boxes(data))
    first = next(box.start for box in pieces if box.kind == b"moof")
    last = max(box.end for box in pieces if box.kind == b"mdat")
    return data[:first], bytearray(data[first:last])


def place(header: bytes, fragments: bytearray, *, number: int, seconds: Fraction) -> int:
    """Number `fragments` from `number` on and let them begin at `seconds`; return how many there are."""
    at = header.index(b"mdhd")
    (timescale,) = struct.unpack_from(">I", header, at + 16)  # type, version, two dates before it
    count = 0
    for moof in (box for box in boxes(fragments) if box.kind == b"moof"):
        for box in boxes(fragments, moof.start + 8, moof.end):
            if box.kind == b"mfhd":
                struct.pack_into(">I", fragments, box.start + 12, number + count)
            if box.kind == b"traf":
                _delay(fragments, box, round(seconds * timescale))
        count += 1
    return count


def _delay(fragments: bytearray, traf: Box, ticks: int) -> None:
    """Add `ticks` to the decode time of a track's fragment, which muxers write with 64 bits."""
    for box in boxes(fragments, traf.start + 8, traf.end):
        if box.kind == b"tfdt":
            (time,) = struct.unpack_from(">Q", fragments, box.start + 12)
            struct.pack_into(">Q", fragments, box.start + 12, time + ticks)
