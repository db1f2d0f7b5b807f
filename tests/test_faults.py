"""The page *What can go wrong*: every row names tests that there are, every heavy proof has a row, counts come from a run."""

import ast
import json

import pytest
import yaml

from tests import same_again
from tools import fragments, torture
from tools.notebooks import ROOT

PARTS = yaml.safe_load((ROOT / "book/faults.yml").read_text())
ROWS = [row for part in PARTS for row in part["faults"]]
NAMED = {name for row in ROWS for name in ([row["test"]] if isinstance(row["test"], str) else row["test"])}


def named_in(path) -> dict[str, bool]:
    """Every test of a file: its id, and whether it is marked `torture`."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            found[f"tests/{path.name}::{node.name}"] = any(mark.startswith("pytest.mark.torture") for mark in marks)
    return found


TESTS = {name: heavy for path in sorted((ROOT / "tests").glob("test_*.py")) for name, heavy in named_in(path).items()}
HEAVY = {name for name, heavy in TESTS.items() if heavy}


def test_rows_are_whole_and_their_tests_exist():
    assert all(part["faults"] for part in PARTS), "a part without a row"
    for row in ROWS:
        assert set(row) == {"fault", "happens", "test"} and row["fault"].strip() and row["happens"].strip(), row
        assert "|" not in row["fault"] + row["happens"], f"a bar would end the cell: {row['fault']}"
    assert NAMED <= set(TESTS), f"no such test: {sorted(NAMED - set(TESTS))}"


def test_every_heavy_proof_has_a_row():
    assert HEAVY <= NAMED, f"a proof that no reader hears of: {sorted(HEAVY - NAMED)}"


def test_the_record_is_of_the_proofs_that_there_are():
    proofs = json.loads(torture.RECORD.read_text())["proofs"]
    assert set(proofs) <= HEAVY, f"no such proof any more: {sorted(set(proofs) - HEAVY)}"
    assert len(proofs) > len(HEAVY) / 2
    assert all(at["passed"] for at in proofs.values())
    assert all(at.keys() & set(torture.KINDS) for at in proofs.values()), "a proof that does not count"
    assert sum(at.get("inputs", 0) for at in proofs.values()) >= 10_000


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_x" name="test_a[1]"><properties><property name="inputs" value="7"/></properties></testcase>
<testcase classname="tests.test_x" name="test_a[2]"><properties><property name="inputs" value="3"/></properties></testcase>
<testcase classname="tests.test_x" name="test_b">
<failure/><properties><property name="faults" value="5"/></properties></testcase>
<testcase classname="tests.test_x" name="test_c"><skipped/></testcase>
<testcase classname="tests.test_y" name="test_d"><error/></testcase>
</testsuite></testsuites>"""


def test_the_page_counts_all_heavy_proofs():
    assert sum(map(fragments._heavy, (ROOT / "tests").glob("test_*.py"))) == len(HEAVY)


def test_counts_of_a_report(tmp_path):
    found = torture.counted(REPORT)
    assert found == {
        "tests/test_x.py::test_a": {"passed": True, "inputs": 10},
        "tests/test_x.py::test_b": {"passed": False, "faults": 5},
        "tests/test_y.py::test_d": {"passed": False},
    }
    path = tmp_path / "record.json"
    torture.keep(path, found, whole=True)
    torture.keep(path, {"tests/test_x.py::test_b": {"passed": True, "faults": 6}}, whole=False)
    kept = json.loads(path.read_text())
    assert kept["proofs"]["tests/test_x.py::test_b"] == {"passed": True, "faults": 6} and len(kept["proofs"]) == 3
    torture.keep(path, {}, whole=True)
    assert json.loads(path.read_text())["proofs"] == {}


@pytest.mark.parametrize("tests", ["tests/test_x.py::test_b", ["tests/test_x.py::test_a", "tests/test_x.py::test_b"]])
def test_the_page_shows_rows_and_counts(tests):
    parts = [{"part": "Disks", "faults": [{"fault": "full", "happens": "said\nso", "test": tests}]}]
    record = {"command": "make torture", "proofs": torture.counted(REPORT), "machine": torture_machine()}
    assert "2 other proofs have only been tried lightly" in fragments.torture(record, heavy=5)
    page = fragments.faults(parts, record, "https://address")
    assert "### Disks" in page and "| full | said so<br>*Proved by:* [" in page and "5 faults" in page
    assert "[b](https://address/blob/main/tests/test_x.py) (5 faults)" in page
    assert ("10 inputs" in page) == (len(tests) == 2)
    told = fragments.torture(record, heavy=3)
    assert "**5 faults** were injected and **10 inputs** tried by 3 proofs, of which **2 failed**" in told
    assert "lightly" not in told
    assert "not been run yet" in fragments.torture({}, heavy=3)
    assert "faults" not in fragments.faults(parts, {}, "x").split("Proved by")[1]


def torture_machine():
    return {"processor": "P", "cores": 2, "system": "Linux", "python": "3.11", "torch": "2"}


def test_what_differs_elsewhere_is_told():
    import torch

    one = {"ranks": torch.tensor([1, 2]), "fit, none: history": torch.tensor([1.0, 2.0]), "latents a/shard": torch.tensor([1])}
    other = {**one, "fit, none: history": torch.tensor([1.0, 2.5]), "latents a/shard": torch.tensor([2])}
    runs = {"runs of the book": torch.tensor([[50.0, 40.0]]), "as recorded": torch.tensor([[50.0, 40.5]])}
    record = same_again.compared({"1 thread": one | runs, "2 threads": other | runs, "AVX2": one | runs})
    assert record["results"] == 3 and record["same"] == {"2 threads": 1, "AVX2": 3}
    assert record["recall_off"]["2 threads"] == 0.5
    page = fragments.same_again(record)
    assert "| the loss along a fit | 2e-01 | the same |" in page and "| latents, as stored | other bytes | the same |" in page
    assert "ranks" not in page and "Of 3 results the same to the bit: 1 under 2 threads, 3 under AVX2." in page
    assert "0.5 under AVX2" in page and "Not measured yet" in fragments.same_again({})


def test_the_record_of_what_differs_is_of_the_settings_that_there_are():
    record = json.loads(same_again.RECORD.read_text())
    first, *others = same_again.SETTINGS
    assert record["first"] == first and list(record["same"]) == others and set(record["recall_off"]) == {first, *others}
