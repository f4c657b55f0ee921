"""The nodes' calls into ComfyUI; its modules exist only inside it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from runtime.outputs import Frames

PREVIEW_PIXELS = 512
"""The longer side of a preview, at most."""


class Progress:
    """The bar below a node, with the newest frame as its preview; ends the node when the user says so."""

    def __init__(self, chunks: int) -> None:
        """Show progress through a video of `chunks` chunks."""
        self._bar: Any = import_module("comfy.utils").ProgressBar(chunks)
        self._management: Any = import_module("comfy.model_management")
        self._made = 0

    def show(self, frames: Frames) -> None:
        """Advance by one chunk [n, H, W, 3] and show its last frame.

        Raises:
            Exception: ComfyUI's own, if the user has cancelled.
        """
        from PIL import Image

        self._made += 1
        preview = ("JPEG", Image.fromarray(frames[-1]), PREVIEW_PIXELS)
        self._bar.update_absolute(self._made, preview=preview)
        self._management.throw_exception_if_processing_interrupted()


def next_output(prefix: str, width: int, height: int) -> tuple[Path, dict[str, str]]:
    """The next free MP4 file of that prefix in ComfyUI's output folder, and how its page names the file."""
    paths: Any = import_module("folder_paths")
    folder, name, counter, below, _ = paths.get_save_image_path(
        prefix, paths.get_output_directory(), width, height
    )
    file = f"{name}_{counter:05}_.mp4"
    return Path(folder) / file, {"filename": file, "subfolder": below, "type": "output"}
