"""Videos and pictures inside a page, so that it needs no file beside it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from plugins.documents.regular_file import read_bytes
from plugins.errors import UserError

VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm"}
PICTURES = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".jpg": "image/jpeg"}
LARGEST = 64 * 2**20
"""Bytes of one file: a browser holds the page as a whole."""


def gallery(paths: Sequence[Path]) -> str:
    """The files in their order, each under its name; nothing if there are none.

    Raises:
        UserError: for a file that is missing, too large, or of a kind that browsers do not show.
    """
    figures = "".join(map(_figure, paths))
    return f"<section><h2>Videos and sheets</h2>{figures}</section>" if paths else ""


def _figure(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in VIDEOS and kind not in PICTURES:
        known = ", ".join([*VIDEOS, *PICTURES])
        raise UserError(f"a page shows no {path.suffix or 'such'} files; use one of {known}: {path}")
    data = b64encode(read_bytes(path, largest=LARGEST)).decode()
    if kind in VIDEOS:
        shown = f"<video controls loop muted playsinline src='data:{VIDEOS[kind]};base64,{data}'></video>"
    else:
        shown = f"<img alt='{escape(path.name)}' src='data:{PICTURES[kind]};base64,{data}'>"
    return f"<figure>{shown}<figcaption>{escape(path.name)}</figcaption></figure>"
