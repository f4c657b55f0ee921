"""The documentation's site builds strictly, its links lead somewhere, its reference is the commands' own."""

import re

import click
import pytest

from bench.report.readme import ROOT
from bench.site.commands import command_reference, scripts
from bench.site.drawings import window
from bench.site.pages import ADOPTED, home, relinked
from vmla.cache import CacheSpec

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning ends the build."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    config.plugins.on_shutdown()
    return folder


def test_the_site_builds_strictly_with_every_page(site):
    pages = {path.name for path in site.glob("*.html")}
    documents = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    assert documents | {name.replace(".md", ".html") for name in ADOPTED.values()} <= pages


def test_every_link_within_the_site_leads_somewhere(site):
    for page in site.glob("*.html"):
        text = page.read_text()
        for target in re.findall(r'(?:href|src)="([^"]+)"', text):
            path, _, place = target.partition("#")
            if "://" in target or target.startswith(("data:", "mailto:")) or page.name == "404.html":
                continue
            there = (page.parent / path).resolve() if path else page
            there = there / "index.html" if there.is_dir() else there
            assert there.exists(), f"{page.name}: {target}"
            if place and there.suffix == ".html":
                assert f'id="{place}"' in there.read_text(), f"{page.name}: {target}"


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert not loaded, page.name


def test_the_api_reference_shows_docstrings(site):
    text = (site / "api.html").read_text()
    for said in ("from_pretrained", "LivePrompts", "Bytes of the whole cache"):
        assert said in text


def test_the_reference_names_every_command_and_option():
    reference = command_reference()
    for name, command in scripts().items():
        assert f"## {name}\n" in reference
        context = click.Context(command, info_name=name)
        inner = command.list_commands(context) if isinstance(command, click.Group) else []
        for verb in inner:
            assert f"### {name} {verb}\n" in reference
            for option in command.get_command(context, verb).params:
                if isinstance(option, click.Option):
                    assert f"`{option.opts[0]}`" in reference
    assert "Default: `sprites`" in reference


@pytest.mark.parametrize(
    "document, text, expected",
    [
        ("README.md", "[a](docs/serve.md#x)", "[a](serve.md#x)"),
        ("docs/a.md", "[a](../export/README.md)", "[a](engines.md)"),
        ("export/README.md", "![a](../docs/serve.png)", "![a](serve.png)"),
        ("docs/a.md", "[here](../vmla/cache.py)", "here (`vmla/cache.py`)"),
        ("docs/a.md", "[`vmla/cache.py`](../vmla/cache.py)", "`vmla/cache.py`"),
        ("docs/a.md", "[a](#b) [c](https://example.org/d)", "[a](#b) [c](https://example.org/d)"),
    ],
)
def test_links_fit_the_site(document, text, expected):
    assert relinked(text, document) == expected


def test_a_page_knows_its_document():
    assert home("engines.md") == "export/README.md"
    assert home("serve.md") == "docs/serve.md"


def test_the_window_is_drawn_from_the_cache_itself():
    spec = CacheSpec(sink=1, history=3, chunk=2, tokens_per_frame=1, entry_width=1, layers=1)
    drawn = window(spec)
    assert drawn.count("<rect") == 1 + 6 * (spec.slots + spec.chunk)
    assert "positions 4 to 5" in drawn and "positions 10" not in drawn
