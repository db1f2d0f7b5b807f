"""Notebooks for students: the chapters without their solutions. `python -m tools.students` (`make students`).

A solution cell becomes an empty cell "your turn", an answer in words becomes a place to write one. Exercises, hints and
everything else stay; outputs are cleared, so the notebook is run by whoever works with it.
"""

import argparse
import re
import zipfile
from pathlib import Path

import nbformat

from .notebooks import ROOT, chapters, read, repository_address, set_address, write

OUT = ROOT / "_build" / "students"
ARCHIVE = "fusemix-lite-students.zip"

YOUR_TURN = "# Your turn\n"
YOUR_ANSWER = "**Your answer:** …"
_NOTE = """\
*A notebook for students: the solutions are left out and the outputs are cleared. Run it from top to bottom, then work on the
exercises at its end. The chapter with its outputs, and the solutions, are in the book: <{address}>. Text: CC BY 4.0, code: MIT,
by the authors of fusemix-lite.*"""

_FOLD = re.compile(r"<details[^>]*>\s*<summary>(.*?)</summary>.*?</details>\s*", re.DOTALL)


def student_version(chapter: nbformat.NotebookNode, address: str) -> nbformat.NotebookNode:
    """A chapter without solutions, answers and outputs; `address` is where the book and its files are."""
    notebook = nbformat.from_dict(chapter)
    cells = []
    for cell in notebook.cells:
        cells += _code(cell) if cell.cell_type == "code" else _prose(cell, address)
    cells.insert(1, nbformat.v4.new_markdown_cell(_NOTE.format(address=address), id="for-students"))
    notebook.cells = cells
    set_address(notebook, address)
    return notebook


def _code(cell) -> list:
    if "solution" in cell.metadata.get("tags", []):
        empty = nbformat.v4.new_code_cell(YOUR_TURN, id=f"your-turn-{cell.id}", metadata={"tags": ["your-turn"]})
        return [empty]
    cell.outputs, cell.execution_count = [], None
    return [cell]


def _prose(cell, address: str) -> list:
    """The cell without its answers, and a cell to answer in where there was one."""
    answers = []

    def fold(found: re.Match) -> str:
        if "hint" in found[1].lower():
            return found[0]
        answers.append(found[1])
        return ""

    text = _FOLD.sub(fold, cell.source).rstrip()
    # Beside a student's notebook lie the other notebooks, and nothing else of the book.
    cell.source = re.sub(r"\]\(\.\./([\w./-]+)", rf"]({address}/blob/main/\1", text)
    kept = [cell] if text else []
    place = nbformat.v4.new_markdown_cell(YOUR_ANSWER, id=f"your-answer-{cell.id}", metadata={"tags": ["your-turn"]})
    return kept + [place] * bool(answers)


def write_students(folder: Path, address: str, sources: list[Path] | None = None) -> list[Path]:
    """Write the student version of every chapter, and a ZIP of all, into `folder`. Returns the notebooks' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for source in sources or chapters():
        paths.append(folder / source.name)
        write(student_version(read(source), address), paths[-1])
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            # A fixed date: the same notebooks give the same bytes.
            entry = zipfile.ZipInfo(f"fusemix-lite-students/{path.name}", date_time=(2026, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.students", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write into (default: _build/students)")
    parser.add_argument("--repo-url", default=repository_address(), help="address of the repository")
    args = parser.parse_args()
    for path in write_students(args.out, args.repo_url):
        print(path)
    print(args.out / ARCHIVE)


if __name__ == "__main__":
    main()
