"""The heavy proofs: `make torture` (half an hour on two cores). Kills, broken files and hostile input, many times over.

Runs the tests marked `torture` with all their tries, and keeps in book/results/torture.json what each has tried and whether it
passed; the page *What can go wrong* is made from that. `make test` runs the same tests with a few tries each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from .notebooks import ROOT

RECORD = ROOT / "book/results/torture.json"
KINDS = ("faults", "inputs")  # what a proof may count, by `record_property`


def torture(selected: list[str], workers: int) -> int:
    """Run the proofs (all, or those of `selected` test files and ids); returns pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "torture", *(selected or ["tests"]), f"--junitxml={report}"]
        command += ["-o", "junit_family=xunit1", "--durations", "12"]
        command += ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
        code = subprocess.run(command, cwd=ROOT, env=os.environ | {"FUSEMIX_LITE_TORTURE": "1"}).returncode
        found = counted(report.read_text(encoding="utf-8")) if report.exists() else {}
    if code == 0 or found:
        keep(RECORD, found, whole=not selected)
        tried = ", ".join(f"{sum(at.get(kind, 0) for at in found.values()):,} {kind}" for kind in KINDS)
        failed = [name for name, at in found.items() if not at["passed"]]
        print(f"{len(found)} proofs, {tried}, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    return code


def counted(report: str) -> dict[str, dict]:
    """What each test of a JUnit report has tried: "tests/test_x.py::test_y" -> its counts, and whether it passed.

    The cases of a parametrised test count together. What was skipped has tried nothing and is left out.
    """
    found: dict[str, dict] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        name = f"{case.get('classname').replace('.', '/')}.py::{case.get('name').partition('[')[0]}"
        at = found.setdefault(name, {"passed": True})
        at["passed"] &= case.find("failure") is None and case.find("error") is None
        for told in case.iter("property"):
            if told.get("name") in KINDS:
                at[told.get("name")] = at.get(told.get("name"), 0) + int(told.get("value"))
    return found


def keep(path: Path, found: dict[str, dict], whole: bool) -> None:
    """Put counts into the record; those of other proofs stay, unless all have run."""
    from fusemix_lite.bench import machine

    proofs = {} if whole or not path.exists() else json.loads(path.read_text("utf-8"))["proofs"]
    content = {"command": "make torture", "machine": machine(), "proofs": dict(sorted((proofs | found).items()))}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.torture", description=__doc__.splitlines()[0])
    parser.add_argument("selected", nargs="*", metavar="TEST", help="test files or ids; all if there is none")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    args = parser.parse_args()
    return torture(args.selected, args.workers)


if __name__ == "__main__":
    sys.exit(main())
