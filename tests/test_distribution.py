"""What is installed is what is here: every module, every file that one of them reads, and nothing else."""

import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

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
