"""What the documents say is true: commands run, links lead somewhere, tables are those of the results."""

import importlib
import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path
from unittest.mock import create_autospec

import av
import click
import pytest
from click.testing import CliRunner

from bench.report.readme import DOCUMENTS as TABLED
from bench.report.readme import plots, render
from bench.site.commands import scripts
from plugins.aot.compile import main as compile_kernels
from plugins.aot.tensorrt_plugin import register
from vmla.weights.checkpoint import shipped_names

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[1]
CARDS = [f"vmla/checkpoints/{name}/README.md" for name in shipped_names()]
PAGES = [f"docs/{name}.md" for name in (
    "api", "benchmarks", "concepts", "faq", "options", "python", "quickstart", "results", "running",
    "security", "serve", "study",
)]  # fmt: skip
"""Two have tests of their own, which run every command: `docs/checkpoints.md` and `docs/training.md`."""
FOLDERS = ["export/README.md", "plugins/README.md"]
POLICIES = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "LOG.md", *POLICIES, *PAGES, *FOLDERS, *CARDS]
MADE = ("commands.md",)
"""Pages that only the site has; its test follows links to them."""
FOREIGN = {"--dist", "--address", "--head", "--nproc-per-node", "--no-python", "--build-arg"}
"""Options of pytest, Ray, torchrun and Docker that documents name."""
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = SETTINGS["project"]["scripts"]


def commands():
    """Every command in a fenced block of a document, and every `python -m` in its prose."""
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for block in (block for language, block in blocks if not language):
            found += [part for line in block.splitlines() for part in line.split(" && ")]
        found += [" ".join(line.split()) for line in re.findall(r"`((?:python -m|vmla-\w+)\s[^`]+)`", text)]
    ours = ("vmla-", "python -m bench", "python -m plugins")
    return sorted({line for line in found if line.startswith(ours)})


def entry(words):
    """The click command behind `words`, and its arguments."""
    if words[0] in SCRIPTS:
        module, name = SCRIPTS[words[0]].split(":")
        return getattr(importlib.import_module(module), name), words[1:]
    return importlib.import_module(words[2]).main, words[3:]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one_that_its_program_takes(line, tmp_path, monkeypatch):
    (options,) = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "docs/options.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "video.yaml").write_text(options)  # what `--config` reads
    monkeypatch.chdir(tmp_path)
    command, arguments = entry(shlex.split(line, comments=True))
    context = command.make_context(line.split()[0], list(arguments))
    if isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(rest))
    assert context.command is command


def options(command, above=None, name=None):
    """Those of a command and its subcommands."""
    context = click.Context(command, parent=above, info_name=name, **command.context_settings)
    yield from (each for part in command.get_params(context) for each in (*part.opts, *part.secondary_opts))
    for inner in command.list_commands(context) if isinstance(command, click.Group) else ():
        yield from options(command.get_command(context, inner), context, inner)


def test_every_option_that_is_named_is_one_of_a_command():
    known = {each for name, command in scripts().items() for each in options(command, name=name)} | FOREIGN
    known |= {each for part in compile_kernels.params for each in part.opts}
    for document in ["README.md", "CONTRIBUTING.md", "SECURITY.md", *PAGES, *FOLDERS]:
        named = re.findall(r"(?<![\w-])--[a-z][\w-]*", (ROOT / document).read_text())
        assert set(named) <= known, document


def test_the_example_of_the_plugins_calls_what_there_is(monkeypatch):
    text = (ROOT / "plugins" / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    called = create_autospec(register)
    monkeypatch.setattr("plugins.aot.tensorrt_plugin.register", called)
    exec(compile(code, "plugins/README.md", "exec"), {"Path": Path})
    assert called.call_count == 1


def test_every_command_of_pytest_names_tests_and_marks_that_there_are():
    marks = {mark.split(":")[0] for mark in SETTINGS["tool"]["pytest"]["ini_options"]["markers"]}
    lines = [
        line
        for document in DOCUMENTS
        for line in re.findall(r"python -m pytest ([^`\n]*)", (ROOT / document).read_text())
    ]
    assert len(lines) > 5
    for words in (shlex.split(line, comments=True) for line in lines):
        assert {mark for option, mark in pairwise(words) if option == "-m"} <= marks, words
        assert all((ROOT / word).exists() for word in words if "/" in word), words


def test_the_first_command_makes_its_video(tmp_path, monkeypatch):
    """Ten seconds of it; `test_installed_wheel` makes all three minutes."""
    line = next(line for line in commands() if "--minutes 3 " in line).replace("--minutes 3", "--seconds 10")
    monkeypatch.chdir(tmp_path)
    command, arguments = entry(shlex.split(line))
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    with av.open(str(tmp_path / "star.mp4")) as file:
        frames = sum(1 for _ in file.decode(video=0))
    assert frames == 10 * 16


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
