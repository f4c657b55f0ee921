"""Pages of the repository outside `docs` as pages of the site, with links that are right in both places."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ADOPTED = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "LOG.md": "log.md",
    "export/README.md": "engines.md",
    "plugins/README.md": "attention-operator.md",
    "vmla/checkpoints/sprites/README.md": "model-card.md",
}
"""Documents that stay where they are in the repository: by their path there, their page in the site."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def home(page: str) -> str:
    """The document of the repository that is the page `page` of the site: both are paths."""
    return next((document for document, name in ADOPTED.items() if name == page), f"docs/{page}")


def adopted(document: str) -> str:
    """The text of a document outside `docs`, without the hub's metadata."""
    return FRONT_MATTER.sub("", (ROOT / document).read_text(encoding="utf-8"))


def relinked(text: str, document: str) -> str:
    """`text` of a document (its path in the repository) with links that fit the site.

    Links to other pages lead to these. What is in the repository and not in the site, such as source code,
    is named by its path from the root instead.
    """

    def link(found: re.Match[str]) -> str:
        mark, said, target = found.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return found[0]
        path, _, place = target.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(document), path))
        page = ADOPTED.get(there) or (there.removeprefix("docs/") if there.startswith("docs/") else None)
        if page is None:
            return f"{said} (`{there}`)" if said.strip("`") != there else said
        return f"{mark}[{said}]({page}{'#' + place if place else ''})"

    return LINK.sub(link, text)
