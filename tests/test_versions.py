"""Versions outside of the declared ranges are said, in Python and on the command line, before anything is imported."""

import subprocess
import sys
import tomllib
import warnings
from email.message import Message
from pathlib import Path

import pytest

from fusemix_lite import versions
from fusemix_lite.cli import main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def installed(monkeypatch):
    """Say what is installed and what is declared."""
    there = {}

    def version(name):
        if name not in there:
            raise versions.PackageNotFoundError(name)
        return there[name]

    def declare(*lines, python=">=3.11", **packages):
        declared = Message()
        declared["Requires-Python"] = python
        for line in lines:
            declared["Requires-Dist"] = line
        monkeypatch.setattr(versions, "metadata", lambda name: declared)
        there.update(packages)
        versions.warn_once.cache_clear()

    monkeypatch.setattr(versions, "version", version)
    yield declare
    versions.warn_once.cache_clear()


def test_what_is_installed_here_is_inside():
    assert versions.outside() == []


@pytest.mark.parametrize(
    ("found", "fine"),
    [("5.0", True), ("5.23.0", True), ("5.0.0rc1", False), ("4.57.1", False), ("6.0.0", False), ("6.0.0.dev0", False)],
)
def test_a_range_has_a_lower_and_an_upper_end(installed, found, fine):
    installed("transformers>=5,<6", transformers=found)
    told = versions.outside()
    assert told == [] if fine else told == [f"transformers {found} is outside of <6,>=5: pip install 'transformers<6,>=5'"]


@pytest.mark.parametrize("found", ["2.13.0+cpu", "2.14.0.dev20260101", "2.4.0"])
def test_builds_and_nightlies_are_inside(installed, found):
    installed("torch>=2.4", torch=found)
    assert versions.outside() == []


def test_optional_packages_count_once_and_only_where_they_are(installed):
    lines = ['timm>=1.0.20; extra == "timm"', 'timm>=1.0.20; extra == "test"', 'datasets>=3; extra == "data"']
    installed(*lines, timm="0.9.16")
    assert versions.outside() == ["timm 0.9.16 is outside of >=1.0.20: pip install 'timm>=1.0.20'"]


def test_python_has_a_range_as_well(installed):
    installed(python=">=99")
    assert len(versions.outside()) == 1 and versions.outside()[0].endswith("is outside of >=99: take another one")


def test_without_metadata_nothing_is_said(monkeypatch):
    def missing(name):
        raise versions.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "metadata", missing)
    assert versions.outside() == []


def test_python_warns_once_at_the_first_name(installed):
    import fusemix_lite as fl

    installed("torch>=99", torch="2.13.0")
    told = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fl.__getattr__("symmetric_infonce")  # what the first use of a name calls
        told.append([one for one in caught if "has not been tested" in str(one.message)])
    (first,), second = told
    assert "torch 2.13.0 is outside of >=99" in str(first.message) and first.filename == __file__
    assert second == []


def test_the_command_says_so(installed, capsys, tmp_path):
    installed("numpy>=99", numpy="2.4")
    assert main(["data", "--list"]) == 0
    assert "note: fusemix-lite has not been tested with this: numpy 2.4 is outside of >=99" in capsys.readouterr().err


def test_declared_ranges_are_those_of_the_metadata():
    """`outside` reads the metadata of what is installed: they have to be those of this checkout."""
    declared = versions.metadata(versions.NAME).get_all("Requires-Dist")
    plain = {line.replace(" ", "") for line in declared if ";" not in line}
    from packaging.requirements import Requirement

    def key(line):
        return Requirement(line).name.lower().replace("_", "-"), str(Requirement(line).specifier)

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(map(key, plain)) == sorted(map(key, wanted)), "make setup installs what pyproject.toml says now"


def test_help_stays_free_of_it():
    code = "import sys; from fusemix_lite import cli; cli._parser(); print('packaging' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"], done.stderr
