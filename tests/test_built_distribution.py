"""Wheel and source distribution, built: what is in them, and what twine says of them."""

import tarfile
import zipfile

import pytest
from kit.files.distributions import built, tracked
from twine.commands.check import check

pytestmark = pytest.mark.cpu

PACKAGES = ("vmla", "plugins", "export", "runtime", "bench")
STAYS = ("bench/results/", "export/README.md", "plugins/README.md")
"""Of the repository alone: measurements and documents."""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    return built(tmp_path_factory.mktemp("distributions"))


def test_the_wheel_holds_the_packages_and_nothing_else(distributions):
    held = set(zipfile.ZipFile(distributions.wheel).namelist())
    described = {name for name in held if name.split("/")[0].endswith(".dist-info")}
    packaged = (str(path) for path in tracked() if path.parts[0] in PACKAGES)
    belong = {path for path in packaged if not path.startswith(STAYS)}
    assert held - described == belong
    assert any(name.endswith("licenses/LICENSE") for name in described)


def test_the_source_distribution_is_the_repository(distributions):
    with tarfile.open(distributions.sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in held if name.startswith("videomla.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert held - made == {str(path) for path in tracked()}


def test_twine_finds_nothing_amiss(distributions):
    assert not check([str(each) for each in distributions], strict=True)
