"""A folder of numbered pictures."""

from __future__ import annotations

import re
from pathlib import Path

from plugins.atomic_files import atomic_write
from plugins.errors import missing_extra
from runtime.outputs import Frames, Mark
from runtime.outputs.kind import SinkKind

PICTURE = re.compile(r"\d{6,}\.png(\.tmp)?|next\.tmp")
"""Names of pictures, and of one that was being written when its process was killed."""


class PngSink:
    """Writes 000000.png, 000001.png, ... into a folder."""

    def __init__(self, folder: Path, *, scale: int = 1, after: Mark | None = None) -> None:
        """Write into `folder`, each frame enlarged `scale` times; go on `after` the mark of another sink.

        Raises:
            UserError: if Pillow is missing.
        """
        try:
            from PIL import Image
        except ImportError as error:
            raise missing_extra("pillow", "png") from error
        self._image = Image
        self.path, self._scale, self._count = folder, scale, after["frames"] if after else 0

    def write(self, frames: Frames) -> None:
        """Store [n, H, W, 3] frames, each at once."""
        if not self._count:
            self.path.mkdir(exist_ok=True)
        for pixels in frames:
            picture = self._image.fromarray(pixels)
            size = (picture.width * self._scale, picture.height * self._scale)
            with atomic_write(self.path / f"{self._count:06d}.png") as aside:
                picture.resize(size, self._image.Resampling.BICUBIC).save(aside, format="png")
            self._count += 1

    def mark(self) -> Mark:
        """The number of the next picture."""
        return {"frames": self._count}

    def close(self) -> None:
        """Nothing is open."""


PNG = SinkKind(
    what="a folder for pictures", takes=lambda path: not path.suffix, open=PngSink, pictures=PICTURE
)
