"""Chapters from a checkout that cannot be written, without a home folder, the cache elsewhere: at once, in any order, twice."""

import os
import random
import shutil
import subprocess
import sys

import pytest

from fusemix_lite.extraction import cache_dir
from tests.torture import HEAVY, tries
from tools.notebooks import ROOT, chapters, read

#: Mounts the checkout over itself, read-only, for one process and its children.
SEAL = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@"'

#: A chapter at the smallest scale, its kernel in the folder of the chapters, as in Jupyter.
RUN = """import sys, papermill
from tools.book import set_environment

set_environment()
chapter, out = sys.argv[1:]
parameters = {"profile": "smoke", "seeds": 3}
papermill.execute_notebook(chapter, out, parameters, kernel_name="python3", cwd="book", progress_bar=False)
"""


@pytest.fixture
def sealed(tmp_path):
    """Starts a command in a checkout that it cannot write, without a home folder, its cache and temporary files elsewhere."""
    rights = [] if os.geteuid() == 0 else ["--map-root-user"]
    place = {"HOME": str(ROOT / "home"), "FUSEMIX_LITE_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    others = ("XDG_", "MPL", "IPYTHON", "JUPYTER", "FUSEMIX_LITE_REAL")  # which could stand for what is not there
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}

    def start(*command: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["unshare", "--mount", *rights, "sh", "-c", SEAL, str(ROOT), *command],
            env=kept | place | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    if not shutil.which("unshare") or start("true").wait():
        pytest.skip("no folder can be mounted read-only here")
    told, _ = start("touch", "book/leftover").communicate()
    assert "ead-only" in told and not (ROOT / "book/leftover").exists()
    return start


def two_at_once(processes) -> list[tuple[int, str]]:
    """Exit codes and what was printed, of processes that are started two by two."""
    done, running = [], []
    for process in processes:
        running.append(process)
        if len(running) == 2:
            done.append(_ended(running.pop(0)))
    return done + [_ended(process) for process in running]


def _ended(process: subprocess.Popen) -> tuple[int, str]:
    told, _ = process.communicate()
    return process.returncode, told


@pytest.mark.torture
def test_a_chapter_needs_no_place_but_its_cache(sealed, tmp_path, record_property):
    """At the smallest scale, from an empty cache, two at a time: each runs to its end and shows no warning."""
    chosen = tries(chapters()[1:2], chapters())
    runs = (sealed(sys.executable, "-c", RUN, str(chapter), str(tmp_path / chapter.name)) for chapter in chosen)
    for chapter, (code, told) in zip(chosen, two_at_once(runs), strict=True):
        assert code == 0, f"{chapter.name}: {told[-3000:]}"
        cells = [cell for cell in read(tmp_path / chapter.name).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells)
        assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert any((tmp_path / "cache").glob("*/manifest.json"))
    record_property("faults", len(chosen))


@pytest.mark.torture
def test_what_is_committed_comes_again_in_any_order(sealed, tmp_path, record_property):
    """All chapters against their committed outputs, twice: in random order, then the other way round and two at a time."""
    if not HEAVY:
        pytest.skip("make torture")
    if cache_dir().is_dir():
        shutil.copytree(cache_dir(), tmp_path / "cache")  # the latents are the same anywhere (test_determinism)
    order = [str(chapter.relative_to(ROOT)) for chapter in chapters()]
    random.Random(0).shuffle(order)
    compared = ["-m", "pytest", "--nbval", "--nbval-sanitize-with", "tests/nbval_sanitize.cfg", "--nbval-cell-timeout", "600"]
    for how in (order, [*order[::-1], "-n", "2", "--dist", "loadfile"]):
        code, told = _ended(sealed(sys.executable, *compared, *how))
        assert code == 0, told[-3000:]
    record_property("faults", 2 * len(order))
