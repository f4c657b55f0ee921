"""Videos and pictures that somebody else may have written, for PyAV: one regular file and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from plugins.documents.regular_file import opened

if TYPE_CHECKING:
    from av.container import InputContainer

ALONE = {"protocol_whitelist": "none"}
"""A playlist may name other files, and addresses in a network; none of them is opened."""


@contextmanager
def opened_video(path: Path, *, mend: str = "") -> Iterator[InputContainer]:
    """The container in a file, which is neither a pipe that is waited for nor an address.

    Args:
        path: of the file.
        mend: the error's advice if it is missing.

    Raises:
        UserError: if it is missing, not to be read, or a folder, a pipe or a device.
        FFmpegError: if it is neither a video nor a picture.
    """
    import av

    with opened(path, mend=mend) as file, av.open(file, options=ALONE) as container:
        yield container
