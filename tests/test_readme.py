"""What the documents say is true: commands run, links lead somewhere, tables are those of the results."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import av
import click
import pytest
from click.testing import CliRunner

from bench.report.readme import DOCUMENTS as TABLED
from bench.report.readme import plots, render
from vmla.weights.checkpoint import shipped_names

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[1]
CARDS = [f"vmla/checkpoints/{name}/README.md" for name in shipped_names()]
PAGES = [f"docs/{name}.md" for name in (
    "api", "benchmarks", "concepts", "faq", "python", "quickstart", "results", "running", "security", "serve"
)]  # fmt: skip
POLICIES = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "LOG.md", *POLICIES, *PAGES, *CARDS]
MADE = ("commands.md",)
"""Pages that only the site has; its test follows links to them."""
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def commands():
    """Every command in a fenced block of a document, and every `python -m` in its prose."""
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for block in (block for language, block in blocks if not language):
            found += [part for line in block.splitlines() for part in line.split(" && ")]
        found += re.findall(r"`((?:python -m|vmla-\w+) [^`]+)`", text)
    return sorted({line for line in found if line.startswith(("vmla-", "python -m bench"))})


def entry(words):
    """The click command behind `words`, and its arguments."""
    if words[0] in SCRIPTS:
        module, name = SCRIPTS[words[0]].split(":")
        return getattr(importlib.import_module(module), name), words[1:]
    return importlib.import_module(words[2]).main, words[3:]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one_that_its_program_takes(line):
    command, arguments = entry(shlex.split(line))
    context = command.make_context(line.split()[0], list(arguments))
    if isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(rest))
    assert context.command is command


def test_the_first_command_makes_a_three_minute_video(tmp_path, monkeypatch):
    line = next(line for line in commands() if "--minutes 3 " in line)
    monkeypatch.chdir(tmp_path)
    command, arguments = entry(shlex.split(line))
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    with av.open(str(tmp_path / "star.mp4")) as file:
        frames = sum(1 for _ in file.decode(video=0))
    assert frames == 3 * 60 * 16


@pytest.mark.parametrize(
    "document, written",
    [("README.md", set()), ("docs/python.md", {"star.mp4", "star.mp4.json", "live.state"})],
)
def test_the_python_example_runs(document, written, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(code.replace('"sprites"', repr(str(checkpoint))), document, "exec"), {})
    shapes = [(12, 64, 64, 3)] * 6 + [(8, 64, 64, 3)]
    assert capsys.readouterr().out.splitlines() == [str(shape) for shape in shapes]
    assert {path.name for path in tmp_path.iterdir()} == written


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    place = ROOT / document
    for target in re.findall(r"\]\(([^)]+)\)", place.read_text()):
        path, _, _ = target.partition("#")
        if path and "://" not in path and path not in MADE:
            assert (place.parent / path).exists(), target


def test_the_plots_are_those_of_the_results():
    drawn = list(plots())
    assert drawn
    for name, text in drawn:
        assert (ROOT / name).read_text() == text, name


def test_the_tables_are_those_of_the_results():
    for document in TABLED:
        text = (ROOT / document).read_text()
        assert "<!-- results: " in text or document in CARDS  # whose model may be compared with no other
        assert render(text) == text, document
