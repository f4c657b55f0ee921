"""What is installed is what is here: every module, every file that one of them reads, and nothing else."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages

from runtime.cli.serve import main

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[1]
PACKAGES = ("vmla", "plugins", "export", "runtime", "bench")
STAYS = ("bench/results/", "vmla/train/recipes/parts/", "export/README.md", "plugins/README.md")
"""Of the repository alone: measurements, parts of an unfinished training, documents."""


@pytest.fixture(scope="module")
def setuptools_settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def files_of(package):
    found = (
        path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return [path for path in found if not str(path.relative_to(ROOT)).startswith(STAYS)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_installed(package, setuptools_settings):
    installed = set(find_packages(str(ROOT), include=setuptools_settings["packages"]["find"]["include"]))
    folders = {path.parent for path in files_of(package) if path.suffix == ".py"}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert names <= installed, "a folder of modules needs an __init__.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_that_a_module_reads_is_installed(package, setuptools_settings):
    patterns = setuptools_settings["package-data"][package]
    taken = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    others = {path for path in files_of(package) if path.suffix != ".py"}
    assert others <= taken
    assert (ROOT / package / "py.typed") in taken


def test_nothing_else_is_a_package(setuptools_settings):
    installed = find_packages(str(ROOT), include=setuptools_settings["packages"]["find"]["include"])
    assert {name.partition(".")[0] for name in installed} == set(PACKAGES)


def test_what_others_read_of_the_project_is_well_formed():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["version"], citation["license"]) == (
        "1.2.0",
        version,
        "Apache-2.0",
    )
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    for form in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")):
        told = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= told.keys()
        assert all(field["attributes"]["label"] for field in told["body"])


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_runs_the_server_with_options_that_it_has(name):
    lines = (ROOT / name).read_text().splitlines()
    words = [
        json.loads(line.split(maxsplit=1)[1]) for line in lines if line.startswith(("ENTRYPOINT", "CMD"))
    ]
    (command, *options), more = words
    assert command == "vmla-serve"
    known = {option for each in main.params for option in each.opts}
    assert {word for word in (*options, *more) if word.startswith("--")} <= known
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r"/src\[([a-z,]+)\]", "\n".join(lines))
    assert set(asked.split(",")) <= extras.keys()
