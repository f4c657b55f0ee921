"""The files around the code: citation, changes, constraints, issue forms, images."""

import ast
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from kit.longest import LONGEST
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_house import ROOMS, imported

import vmla

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def test_every_file_names_the_same_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == vmla.__version__ == cited["version"]
    assert cited["license"] == PROJECT["license"] and cited["authors"]
    assert vmla.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_tests_that_are_begun_first_are_there():
    assert [name for name in LONGEST if not (ROOT / name).exists()] == []


def test_the_constraints_are_within_what_is_allowed():
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = [Requirement(text) for text in PROJECT["dependencies"]]
    for requirement in asked:
        assert requirement.specifier.contains(pinned[requirement.name]), requirement
    assert not any("+" in version for version in pinned.values())


def test_what_is_frozen_is_what_is_installed():
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "freeze"], capture_output=True, text=True, check=True
    )
    frozen = dict(line.split("==") for line in done.stdout.splitlines() if not line.startswith("#"))
    assert frozen["pytest"] == pytest.__version__ and frozen["torch"]
    assert PROJECT["name"] not in frozen


def packages_of(*extras):
    """What `pip install videomla[EXTRA,...]` asks for itself, extras of extras included."""
    found, optional = set(), PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]:
        asked = Requirement(text)
        found |= (
            packages_of(*asked.extras) if asked.name == PROJECT["name"] else {canonicalize_name(asked.name)}
        )
    return found


COME_WITH = {"starlette": "fastapi", "anyio": "fastapi", "onnx_ir": "onnxscript"}
"""What others say that they bring, in their documents too."""
ANYWHERE = {"tensorrt": "tensorrt", "cudnn": "nvidia-cudnn-frontend"}
"""Packages whose modules have another owner here than where they run, or none."""


def strangers(folders, asked):
    """Packages that the code in `folders` imports and that `asked` does not name, with a file of each."""
    owners, found = packages_distributions(), {}
    for path in (each for folder in folders for each in (ROOT / folder).rglob("*.py")):
        for module, _ in imported(ast.parse(path.read_text())):
            top = module.split(".")[0]
            names = {COME_WITH.get(top) or ANYWHERE.get(top) or top} | {*owners.get(top, ())}
            if top not in {*sys.stdlib_module_names, *ROOMS} and not {*map(canonicalize_name, names)} & asked:
                found[top] = str(path.relative_to(ROOT))
    return found


def test_every_package_that_the_code_imports_is_asked_for():
    """One that merely came with another is gone when that one takes its successor."""
    assert strangers(ROOMS, packages_of(*PROJECT["optional-dependencies"])) == {}


def test_the_server_imports_what_its_extra_asks_for():
    assert strangers(["runtime/serve"], packages_of("serve", "otel")) == {}


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(form):
    found = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert found["blank_issues_enabled"] is True
        return
    assert found["name"] and found["description"]
    names = [field["id"] for field in found["body"]]
    assert len(set(names)) == len(names) and all(field["attributes"]["label"] for field in found["body"])


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing_amiss(image):
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint, "install the extra dev"
    done = subprocess.run([hadolint, image], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_an_image_installs_extras_that_there_are(image):
    (extras,) = [
        line.split("[")[1].split("]")[0]
        for line in image.read_text().splitlines()
        if "[" in line and "pip" in line
    ]
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
