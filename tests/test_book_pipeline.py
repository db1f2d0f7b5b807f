"""The pipeline itself: a failing chapter is told clearly, an executed one is cleaned, setup stays off torch."""

import re

import nbformat
import pytest

from tools.book import BookError, execute, fingerprint
from tools.notebooks import chapters, clean, read, setup_source, write


def notebook(*sources: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    cells[0].metadata.tags = ["parameters"]
    return nbformat.v4.new_notebook(cells=cells)


def test_an_executed_chapter_is_clean(tmp_path):
    write(clean(notebook("a = 1", "print(a)\nprint(a + 1)")), tmp_path / "in.ipynb")
    seconds = execute(tmp_path / "in.ipynb", tmp_path / "out" / "in.ipynb")
    done = read(tmp_path / "out" / "in.ipynb")
    assert seconds > 0 and done == clean(read(tmp_path / "out" / "in.ipynb"))
    assert [cell.id for cell in done.cells] == ["cell-0", "cell-1"]
    assert [output.text for output in done.cells[1].outputs] == ["1\n2\n"]
    assert "papermill" not in (tmp_path / "out" / "in.ipynb").read_text()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in.ipynb"]


def test_parameters_arrive_and_are_shown(tmp_path):
    write(clean(notebook("a = 1", "print(a)")), tmp_path / "in.ipynb")
    execute(tmp_path / "in.ipynb", tmp_path / "out" / "in.ipynb", {"a": 5})
    cells = read(tmp_path / "out" / "in.ipynb").cells
    assert "a = 5" in cells[1].source and cells[2].outputs[0].text == "5\n"


def test_a_failing_chapter_names_cell_error_and_place(tmp_path):
    write(clean(notebook("a = 1", "a / 0")), tmp_path / "bad.ipynb")
    with pytest.raises(BookError, match=r"bad.ipynb failed in cell 2: ZeroDivisionError: division by zero") as error:
        execute(tmp_path / "bad.ipynb", tmp_path / "out" / "bad.ipynb")
    assert str(tmp_path / "out" / "bad.ipynb") in str(error.value)
    assert "ZeroDivisionError" in (tmp_path / "out" / "bad.ipynb").read_text()


def test_a_cell_has_a_time_limit(tmp_path):
    write(clean(notebook("a = 1", "import time; time.sleep(60)")), tmp_path / "slow.ipynb")
    with pytest.raises(BookError, match="slow.ipynb.*limit: 2 s"):
        execute(tmp_path / "slow.ipynb", tmp_path / "out" / "slow.ipynb", cell_timeout=2)


def test_clean_removes_traces_and_keeps_what_matters():
    dirty = notebook("a = 1", "1")
    dirty.metadata.papermill = {"duration": 3}
    dirty.cells[1].metadata = nbformat.from_dict({"papermill": {}, "execution": {}, "tags": ["solution"]})
    dirty.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("a\n", "b\n")]
    injected = nbformat.v4.new_code_cell("a = 2", metadata={"tags": ["injected-parameters"]})
    dirty.cells.insert(1, injected)
    cleaned = clean(dirty)
    assert [cell.source for cell in cleaned.cells] == ["a = 1", "1"]
    assert set(cleaned.metadata) == {"kernelspec", "language_info"}
    assert set(cleaned.cells[1].metadata) == {"tags", "jupyter", "cellView", "mystnb"}
    assert [output.text for output in cleaned.cells[1].outputs] == ["a\nb\n"]


def test_setup_cell_quotes_ranges_and_never_installs_torch():
    source = setup_source("https://example.org/x/y")
    assert '"git+https://example.org/x/y"' in source and "--no-deps" in source
    installs = " ".join(line for line in source.splitlines() if "%pip install" in line)
    assert not re.search(r"\btorch\b|==", installs)
    assert re.search(r'"transformers>=\d', installs)
    assert not re.search(r"[<>]", re.sub(r'"[^"]*"', "", installs)), "an unquoted range would be a redirection"


def test_fingerprint_follows_parameters():
    chapter = chapters()[0]
    assert fingerprint(chapter, {}) == fingerprint(chapter, {})
    assert fingerprint(chapter, {}) != fingerprint(chapter, {"profile": "smoke"})
