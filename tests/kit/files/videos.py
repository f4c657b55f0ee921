"""Small video files to read."""

import av
import numpy as np


def write_video(path, *, frames=16, rate=16, height=64, width=64, seed=0):
    """A video whose frame i is 10 i bright all over, 255 at most."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "1"}
        for i in range(frames):
            picture = np.full((height, width, 3), min(10 * i + seed, 255), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def write_picture(path, *, side=64, seed=0):
    """A square image of noise, which is returned: [side, side, 3]."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    with av.open(str(path), "w", format="image2") as file:
        stream = file.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = side, side, "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return pixels
