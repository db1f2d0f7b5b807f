"""Notebooks for students: no solution is left in them, and everything else still is."""

import ast
import re
import zipfile

import nbformat
import pytest

from tools.notebooks import chapters, read, write
from tools.students import ARCHIVE, YOUR_ANSWER, YOUR_TURN, student_version, write_students

ADDRESS = "https://example.org/someone/book"
CHAPTERS = chapters()
each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
FOLD = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)


def is_solution(cell) -> bool:
    return "solution" in cell.metadata.get("tags", [])


def split(chapter) -> tuple[list, list]:
    """Solution cells and all other cells of a chapter as committed."""
    cells = read(chapter).cells
    return [c for c in cells if is_solution(c)], [c for c in cells if not is_solution(c)]


def code_of(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@each_chapter
def test_no_line_of_a_solution_survives(chapter):
    solutions, others = split(chapter)
    elsewhere = {line.strip() for cell in others for line in cell.source.splitlines()}
    lines = {line.strip() for cell in solutions for line in cell.source.splitlines()} - elsewhere - {""}
    assert len(lines) >= 5
    left = {line.strip() for cell in student_version(read(chapter), ADDRESS).cells for line in cell.source.splitlines()}
    assert not lines & left


@each_chapter
def test_no_answer_in_words_survives_and_every_hint_does(chapter):
    text = "\n".join(cell.source for cell in student_version(read(chapter), ADDRESS).cells)
    others = [cell.source for cell in split(chapter)[1]]
    told = "\n".join(FOLD.sub("", source) for source in others)  # what the chapter says outside of its folds
    folds = [found for source in others for found in FOLD.findall(source)]
    checked = 0
    for title, body in folds:
        for line in filter(None, map(str.strip, body.splitlines())):
            if line not in told:
                checked += title != "Hint"
                assert (line in text) == (title == "Hint"), f"{title}: {line}"
    assert checked
    assert "<details" not in FOLD.sub("", text) and {title for title, _ in FOLD.findall(text)} <= {"Hint"}


@each_chapter
def test_exercises_and_everything_else_stay(chapter):
    student = {cell.id: cell for cell in student_version(read(chapter), ADDRESS).cells}
    exercises = 0
    for cell in split(chapter)[1]:
        if cell.cell_type == "code":
            kept = student[cell.id]
            same = kept.source == cell.source or "setup" in cell.metadata.tags
            assert same and kept.metadata == cell.metadata and not kept.outputs and kept.execution_count is None
        elif text := FOLD.sub(lambda found: found[0] if found[1] == "Hint" else "", cell.source).strip():
            without_links = re.compile(r"\]\([^)]*\)")
            assert without_links.sub("]", student[cell.id].source) == without_links.sub("]", text)
            exercises += len(re.findall(r"^#+ Exercise \d", text, re.MULTILINE))
    assert exercises >= 2
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in student.values()) == 1


@each_chapter
def test_every_exercise_has_room_for_an_answer(chapter):
    room = {}
    for cell in student_version(read(chapter), ADDRESS).cells:
        if found := re.search(r"^#+ (Exercise \d)", cell.source, re.MULTILINE):
            exercise = room.setdefault(found[1], [])
        elif "your-turn" in cell.metadata.get("tags", []):
            assert cell.source == (YOUR_TURN if cell.cell_type == "code" else YOUR_ANSWER)
            exercise.append(cell.cell_type)
    assert len(room) >= 2 and all(room.values()), room


@each_chapter
def test_it_is_a_notebook_that_compiles_and_leans_on_no_solution(chapter):
    from IPython.core.inputtransformer2 import TransformerManager

    student = student_version(read(chapter), ADDRESS)
    nbformat.validate(student)
    assert len({cell.id for cell in student.cells}) == len(student.cells)
    for source in code_of(student):
        compile(TransformerManager().transform_cell(source), chapter.name, "exec")

    def names(source: str, context: type) -> set[str]:
        tree = ast.parse(TransformerManager().transform_cell(source))
        return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}

    solutions, others = split(chapter)
    made = set().union(*(names(cell.source, ast.Store) for cell in solutions))
    made -= set().union(*(names(cell.source, ast.Store) for cell in others if cell.cell_type == "code"))
    used = set().union(*(names(source, ast.Load) for source in code_of(student)))
    assert not made & used


def test_links_out_of_the_folder_lead_to_the_repository():
    cell = nbformat.v4.new_markdown_cell("[card](../data_cards/a.md), [next](02-b.ipynb)", id="a")
    title = nbformat.v4.new_markdown_cell("# T", id="t")
    cells = student_version(nbformat.v4.new_notebook(cells=[title, cell]), ADDRESS).cells
    assert cells[2].source == f"[card]({ADDRESS}/blob/main/data_cards/a.md), [next](02-b.ipynb)"
    assert ADDRESS in cells[1].source


def test_the_archive_holds_all_and_is_the_same_twice(tmp_path):
    paths = write_students(tmp_path / "a", ADDRESS)
    write_students(tmp_path / "b", ADDRESS)
    assert [path.name for path in paths] == [chapter.name for chapter in CHAPTERS]
    with zipfile.ZipFile(tmp_path / "a" / ARCHIVE) as archive:
        assert {name.split("/")[1]: archive.read(name) for name in archive.namelist()} == {
            path.name: path.read_bytes() for path in paths
        }
    assert (tmp_path / "a" / ARCHIVE).read_bytes() == (tmp_path / "b" / ARCHIVE).read_bytes()


def test_the_chapter_itself_is_left_alone(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# T", id="t"),
            nbformat.v4.new_code_cell("1 + 1", id="s", metadata={"tags": ["solution"]}),
        ]
    )
    before = nbformat.writes(notebook)
    write(student_version(notebook, ADDRESS), tmp_path / "x.ipynb")
    assert nbformat.writes(notebook) == before
