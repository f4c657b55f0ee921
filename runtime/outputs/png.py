"""Writes frames into a folder as numbered PNG files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plugins.atomic_files import TEMPORARY_SUFFIX, atomic_write, temporary_path
from plugins.errors import UserError, missing_extra
from runtime.outputs import Clear, Frames, Mark, SinkKind
from runtime.outputs.presence import check_presence

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PICTURE = re.compile(rf"\d{{6,}}\.png({re.escape(TEMPORARY_SUFFIX)}|\.tmp)?|next\.tmp")
"""Names of finished pictures, and of one that is being written, by this version or an earlier one."""


class PngSink:
    """Writes 000000.png, 000001.png, ... into a folder."""

    def __init__(
        self, folder: Path, *, scale: int = 1, after: Mark | None = None, clear: Clear | None = None
    ) -> None:
        """Write into `folder`, each frame enlarged `scale` times; continue `after` an earlier sink's mark.

        `clear` removes older pictures in `folder`, once the first new ones lie there.

        Raises:
            UserError: if Pillow is missing, or a picture before the mark.
        """
        try:
            from PIL import Image
        except ImportError as error:
            raise missing_extra("pillow", "png") from error
        self._images = Image
        self.path, self._scale, self._count = folder, scale, after["frames"] if after else 0
        self._clear, self._known = clear, self._checked() if self._count else None

    def write(self, frames: Frames) -> None:
        """Store [n, H, W, 3] frames, each in a file that appears once it is complete.

        Raises:
            OSError: if one cannot be written, or the folder is no longer at its path.
        """
        if not len(frames):
            return
        if self._known is None:
            self.path.mkdir(exist_ok=True)
            self._known = self.path.stat()
        check_presence(self.path, self._known)
        if self._clear is not None:
            self._replace(frames, self._clear)
            self._clear = None
            return
        for pixels in frames:
            try:
                with atomic_write(self._place(self._count)) as temporary:
                    self._picture(pixels).save(temporary, format="png")
            except FileNotFoundError:
                check_presence(self.path, self._known)
                raise
            self._count += 1

    def _replace(self, frames: Frames, clear: Clear) -> None:
        """Store the first frames in the place of older ones, which stay until all of these are there."""
        places = [self._place(number) for number in range(len(frames))]
        temporaries = [temporary_path(place) for place in places]
        try:
            for temporary, pixels in zip(temporaries, frames, strict=True):
                self._picture(pixels).save(temporary, format="png")
        except OSError:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
            raise
        clear(temporaries)
        for temporary, place in zip(temporaries, places, strict=True):
            temporary.replace(place)
        self._count = len(frames)

    def _checked(self) -> os.stat_result:
        """The status of the folder, once every picture before the mark is found to be there."""
        for number in range(self._count):
            if not self._place(number).is_file():
                raise UserError(f"{self._place(number)} is gone; make {self.path} again with --overwrite")
        return self.path.stat()

    def _place(self, number: int) -> Path:
        return self.path / f"{number:06d}.png"

    def _picture(self, pixels: NDArray[np.uint8]) -> Picture:
        picture = self._images.fromarray(pixels)
        size = (picture.width * self._scale, picture.height * self._scale)
        return picture.resize(size, self._images.Resampling.BICUBIC)

    def mark(self) -> Mark:
        """The number of the next picture."""
        return {"frames": self._count}

    def close(self) -> None:
        """Do nothing: no file stays open between two calls."""


PNG = SinkKind(
    what="a folder for pictures", takes=lambda path: not path.suffix, open=PngSink, pictures=PICTURE
)
