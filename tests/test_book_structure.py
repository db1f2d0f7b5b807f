"""What every committed chapter keeps to, so that readers, Colab and nbval can rely on it."""

import ast
import html
import re
import subprocess

import pytest

from tools.notebooks import MACHINE_PATH, ROOT, chapters, clean, read, repository_address, setup_source

CHAPTERS = chapters()
PARAMETERS = {"profile", "seeds", "latents", "device", "live", "overrides"}
EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=]+")

pytestmark = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def code_cells(chapter) -> list:
    return [cell for cell in read(chapter).cells if cell.cell_type == "code"]


def prose(chapter) -> list[str]:
    return [cell.source for cell in read(chapter).cells if cell.cell_type == "markdown"]


def markup(chapter) -> list[str]:
    """All HTML outputs of a chapter."""
    outputs = [output for cell in code_cells(chapter) for output in cell.outputs]
    return [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]


def test_every_cell_has_run_in_order_without_error(chapter):
    cells = code_cells(chapter)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.source.strip() for cell in cells)
    for cell in cells:
        assert not [o for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"], cell.source


def test_nbval_compares_at_least_five_cells(chapter):
    skipped = {"nbval-ignore-output", "nbval-skip"}
    compared = [
        cell
        for cell in code_cells(chapter)
        if cell.execution_count and cell.outputs and not tags(cell) & skipped and "NBVAL" not in cell.source
    ]
    assert len(compared) >= 5


def test_one_parameters_cell_with_literals_only(chapter):
    cells = [cell for cell in code_cells(chapter) if "parameters" in tags(cell)]
    assert len(cells) == 1
    names = set()
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1, ast.unparse(statement)
        ast.literal_eval(statement.value)
        names.add(statement.targets[0].id)
    assert names >= PARAMETERS


def test_setup_cell_is_the_common_one(chapter):
    cells = [cell for cell in code_cells(chapter) if "setup" in tags(cell)]
    assert len(cells) == 1 and "hide-input" in tags(cells[0])
    assert cells[0].source == setup_source(repository_address()), "make refresh (or make address) writes it"


def test_it_is_clean(chapter):
    """No timing, no injected cell, no editor's metadata; unique ids; nothing that `make refresh` would change."""
    notebook = read(chapter)
    assert notebook == clean(read(chapter))
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.nbformat_minor >= 5
    assert chapter.stat().st_size <= 1_000_000


def test_it_carries_no_path_of_a_machine(chapter):
    assert not MACHINE_PATH.findall(EMBEDDED.sub("", chapter.read_text()))


def test_no_cell_is_long(chapter):
    """25 lines at most (so no class in a chapter is longer either), none wider than a reader sees without scrolling."""
    for cell in code_cells(chapter):
        lines = cell.source.splitlines()
        assert len(lines) <= 25, cell.source
        assert "setup" in tags(cell) or max(map(len, lines)) <= 100, cell.source


def test_it_says_what_it_is_for(chapter):
    cells = prose(chapter)
    assert cells[0].startswith("# ")
    opening = "\n".join(cells[:3]).lower()
    for word in ("objectives", "prerequisites", "minutes"):
        assert word in opening, f"{word} are missing at the start"
    assert re.search(r"\d+\s+minutes", opening)


def test_it_has_two_to_four_exercises_with_folded_solutions(chapter):
    exercises: list[list] = []
    for cell in read(chapter).cells:
        if cell.cell_type == "markdown" and re.search(r"^#+ Exercise \d", cell.source, re.MULTILINE):
            exercises.append([])
        if exercises:
            exercises[-1].append(cell)
    assert 2 <= len(exercises) <= 4
    for cells in exercises:
        solutions = [cell for cell in cells if "solution" in tags(cell)]
        assert all(cell.cell_type == "code" and "hide-cell" in tags(cell) for cell in solutions)
        assert solutions or any("<details" in cell.source for cell in cells), cells[0].source
    assert any("solution" in tags(cell) for cells in exercises for cell in cells), "at least one solution is run"


def test_every_picture_is_told_in_words(chapter):
    data = [o.data for cell in code_cells(chapter) for o in cell.outputs if "data" in o]
    assert not [d for d in data if "image/png" in d or "image/svg+xml" in d], "figures go through report.show"
    for text in markup(chapter):
        for image in re.findall(r"<img [^>]*>", text):
            assert re.search(r'alt="[^"]{8,}"', image), EMBEDDED.sub("", image)


def test_figures_are_numbered_and_have_caption_and_alt_text(chapter):
    figures = [text for text in markup(chapter) if "fusemix-figure" in text]
    numbers = [int(n) for text in figures for n in re.findall(r"<strong>Figure (\d+)\.", text)]
    assert numbers == list(range(1, len(figures) + 1))
    for text in figures:
        caption = html.unescape(re.search(r"</strong> (.*?)</figcaption>", text).group(1))
        alt = html.unescape(re.search(r'alt="([^"]*)"', text).group(1))
        assert len(caption) >= 30 and len(alt) >= 30 and alt != caption


def test_prose_is_plain_markdown(chapter):
    """MyST directives and roles show raw on GitHub and Colab."""
    for text in prose(chapter):
        assert not re.search(r"```\{|:::\{|\{[a-z:-]+\}`", text), text


def test_it_is_committed_under_its_toc_name_only(chapter):
    on_disk = {path.name for path in (ROOT / "book").glob("*.ipynb")}
    assert on_disk == {path.name for path in CHAPTERS}, "a notebook is missing in _toc.yml"
    ignored = subprocess.run(["git", "check-ignore", "-q", chapter], cwd=ROOT).returncode
    assert ignored != 0
