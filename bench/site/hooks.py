"""Hooks that MkDocs calls while it builds the site: they add pages from outside `docs` and adapt links."""

from __future__ import annotations

from typing import Any

from bench.site.commands import command_reference
from bench.site.pages import ADOPTED, adopted, home, relinked

COMMANDS = "commands.md"


def on_files(files: Any, *, config: Any, **_: Any) -> Any:
    """Add the documents that lie outside `docs`, and the reference of the commands."""
    from mkdocs.structure.files import File

    for document, page in ADOPTED.items():
        files.append(File.generated(config, page, content=adopted(document)))
    files.append(File.generated(config, COMMANDS, content=command_reference()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page, with links that fit the site."""
    name = page.file.src_uri
    return markdown if name == COMMANDS else relinked(markdown, home(name))
