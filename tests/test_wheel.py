"""What readers install: a wheel that is whole without the repository, and small."""

import json
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.notebooks import ROOT, setup_source

LOOK = """
import json, pathlib, fusemix_lite as fl
from fusemix_lite import claims, encoders, experiments, records, reported
home = pathlib.Path(fl.__file__).parent
assert records.RESULTS == home / "_results", records.RESULTS
made = [records.Record.load(path.stem).content["name"] for path in (records.RESULTS / "lite").glob("*.json")]
for name in encoders.LITE_ENCODERS:
    encoders.resolve_encoder(name)
print(json.dumps({"home": str(home), "records": made, "claims": len(claims.load_claims()), "version": fl.__version__,
                  "reported": len(reported.load_reported("image-text-retrieval"))}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from what git knows (a stray file must not get in, a forgotten one is missed), without a network."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", out, source]
    subprocess.run(pip, check=True)
    return next(out.glob("*.whl"))


def test_the_wheel_works_where_nobody_has_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "", "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["home"] == str(tmp_path / "site" / "fusemix_lite")
    assert sorted(told["records"]) == sorted(path.stem for path in (ROOT / "book/results/lite").glob("*.json"))
    assert told["claims"] > 0 and told["reported"] > 0


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith(("fusemix_lite/", "fusemix_lite-")) for name in names)
    assert not [name for name in names if name.endswith((".ipynb", ".pyc", ".pt", ".pkl"))]
    assert wheel.stat().st_size <= 25e6  # weights of the encoders, the adapters and, later, a generator: 20 MB


def test_the_wheel_declares_what_the_setup_cell_installs(wheel):
    """On Colab the package comes with --no-deps: the setup cell must name all its dependencies but torch."""
    opened = zipfile.ZipFile(wheel)
    metadata = opened.read(next(n for n in opened.namelist() if n.endswith(".dist-info/METADATA"))).decode()
    declared = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, re.MULTILINE)
    cell = re.findall(r'"([\w.-]+[<>=~][^"]+)"', setup_source("https://example.org/x/y"))
    assert {canonicalize_name(Requirement(line).name) for line in declared} - {"torch"} == {
        canonicalize_name(Requirement(line).name) for line in cell
    }
