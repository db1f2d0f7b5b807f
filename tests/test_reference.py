"""The reference part: it is made from what the code and the files know, and says nothing that they do not."""

import inspect
import json
import re

import nbformat
import pytest
import yaml

import fusemix_lite
from fusemix_lite.bench import machine
from tools import book, fragments
from tools.notebooks import ROOT, chapters, read, toc_documents

PAGES = sorted((ROOT / "book/reference").glob("*.md"))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
MACHINE = {"processor": "A Processor", "cores": 2, "system": "Linux", "python": "3.11.7", "torch": "2.13.0"}


def prose(chapter) -> str:
    return "\n".join(cell.source for cell in read(chapter).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("name", fusemix_lite.__all__)
def test_every_public_name_has_a_docstring_of_its_own(name):
    value = getattr(fusemix_lite, name)
    if callable(value):
        text = value.__doc__ or ""
        assert len(text.strip()) >= 20 and not text.startswith(f"{name}("), "dataclasses make up a docstring of their own"
    else:  # plain data: the page explains it
        page = (ROOT / "book/reference/api-method.md").read_text() + (ROOT / "book/reference/api-book.md").read_text()
        assert re.search(rf"py:data:: {name}\n.*?\n\n   \w.{{20}}", page, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_names_of_the_module_on_a_page_exist(page):
    for name in re.findall(r"`fl\.(\w+)", page.read_text()):
        assert name in fusemix_lite.__all__, name


def test_symbols_of_the_notation_that_are_arguments_are_arguments():
    known = set()
    for function in (fusemix_lite.fit, fusemix_lite.fusemix, fusemix_lite.FusionModel, fusemix_lite.FusionAdapter):
        known |= set(inspect.signature(function).parameters)
    text = (ROOT / "book/reference/notation.md").read_text()
    for name in ("zx", "zy", "alpha", "batch_size", "in_dims", "in_dim", "shared_dim", "expansion", "depth"):
        assert f"`{name}`" in text and name in known, name


def glossary() -> dict[tuple[str, ...], str]:
    """The entries of the glossary: terms -> text."""
    block = re.search(r"```{glossary}\n:sorted:\n\n(.*?)```", (ROOT / "book/reference/glossary.md").read_text(), re.DOTALL)[1]
    entries = {}
    for entry in block.strip().split("\n\n"):
        lines = entry.splitlines()
        terms = tuple(line for line in lines if not line.startswith(" "))
        entries[terms] = " ".join(line.strip() for line in lines if line.startswith(" "))
    return entries


@pytest.mark.parametrize(("terms", "text"), glossary().items(), ids=lambda value: value[0] if isinstance(value, tuple) else "")
def test_a_term_is_met_where_the_glossary_says(terms, text):
    assert terms and len(text) > 40
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    assert links, "where is it met?"
    for link in links:
        target = (ROOT / "book/reference" / link).resolve()
        met = prose(target) if target.suffix == ".ipynb" else target.read_text()
        assert any(re.search(rf"\b{re.escape(term)}", met, re.IGNORECASE) for term in terms), link


def test_versions_are_those_of_the_constraints(tmp_path, monkeypatch):
    pins = (ROOT / "constraints.txt").read_text()
    shown = re.findall(r"\| ([\w-]+) \| ([\w.]+) \|$", fragments.versions(), re.MULTILINE)
    shown = [row for row in shown if row != ("package", "version")]
    assert len(shown) >= 15 and all(f"\n{name}=={version}\n" in pins for name, version in shown)
    (tmp_path / "constraints.txt").write_text(pins.replace("\ntorch==", "\ntorch==9"))
    monkeypatch.setattr(fragments, "ROOT", tmp_path)
    assert "| torch | 9" in fragments.versions()


def test_times_name_the_machine_and_not_its_name():
    import platform

    assert set(machine()) == set(MACHINE)
    node = platform.node()
    assert not node or node not in json.dumps(machine())
    first, second = chapters()[:2]
    measured = {
        first.name: {"seconds": 61.4, "parameters": {}, "machine": MACHINE},
        second.name: {"seconds": 8.7, "parameters": {"profile": "smoke"}, "machine": MACHINE},
    }
    table = fragments.times(measured)
    assert f"(../{first.name}) | 61 |" in table and f"(../{second.name}) | 9 |" in table
    assert "| **all** | **70** |" in table
    assert "A Processor, 2 cores" in table and "profile smoke" in table and "(lite)" in table


def test_without_times_the_page_says_so():
    assert "without running them" in fragments.times({}) and "|" not in fragments.times({})


def test_a_build_measures_times_and_keeps_them(tmp_path, monkeypatch):
    """Chapters are executed for a build, and their times reach the pages; KEEP=1 takes both from the build before."""
    staged, runs = [], []

    def execute(source, target, parameters):
        runs.append(source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("{}")
        return 10.0 + len(runs)

    monkeypatch.setattr(book, "BUILD", tmp_path / "_build")
    monkeypatch.setattr(book, "execute", execute)
    monkeypatch.setattr(book, "stage", lambda folder, notebooks, address, measured: staged.append(measured))
    monkeypatch.setattr(book, "build_html", lambda staged, out: tmp_path)
    for keep in (False, True, False):
        book.build(None, "https://example.org", keep)
    count = len(chapters())
    seconds = [[made["seconds"] for made in measured.values()] for measured in staged]
    assert len(runs) == 2 * count  # the second build ran nothing
    assert seconds[0] == seconds[1] == [11.0 + i for i in range(count)] and seconds[2] != seconds[1]
    assert all(made["machine"] == machine() for made in staged[1].values())


def test_the_citation_is_that_of_the_cff_file():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = cff["references"]
    text = fragments.citation("https://example.org/book")
    assert f"{{{cff['title']}}}" in text and f"{{{cff['version']}}}" in text and "https://example.org/book" in text
    assert f"{{{paper['title']}}}" in text and paper["url"] in text and f"{{{paper['year']}}}" in text
    assert all(author["family-names"] in text for author in paper["authors"])
    assert cff["version"] == fusemix_lite.__version__


def test_every_module_is_listed_with_what_it_holds():
    rows = fragments.modules("https://example.org").splitlines()[2:]
    names = {path.stem for path in (ROOT / "fusemix_lite").glob("*.py")} - {"__init__"}
    assert {re.match(r"\| \[`(\w+)`\]", row)[1] for row in rows} == names
    for row in rows:
        assert len(row.split(" | ")[1]) > 20, f"a module without a docstring: {row}"


def test_the_course_lists_every_chapter_with_minutes_and_exercises():
    rows = [row for row in fragments.course().splitlines() if row.startswith("| [")]
    assert len(rows) == len(chapters())
    for row, chapter in zip(rows, chapters(), strict=True):
        assert re.search(rf"\(\.\./{chapter.name}\) \| \d+ \| [2-4] \| .*students/{chapter.name}>`", row)


def test_the_course_plan_names_exercises_that_exist():
    text = (ROOT / "book/reference/teaching.md").read_text()
    sessions = re.findall(r"^### \d\. .*?(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert len(sessions) >= 6
    for session in sessions:
        home = re.search(r"\*\*At home:\*\* (.*?)\n\n", session, re.DOTALL)[1]
        chapter = ROOT / "book" / re.search(r"\]\(\.\./([\w-]+\.ipynb)\)", session)[1]
        existing = set(re.findall(r"^#+ Exercise (\d)", prose(chapter), re.MULTILINE))
        assert set(re.findall(r"\d", home)) <= existing and re.search(r"\d", home), session


def test_every_card_is_a_page_and_listed():
    listed = (ROOT / "book/reference/cards.md").read_text()
    for card in (ROOT / "data_cards").glob("*.md"):
        assert f"(../../data_cards/{card.name})" in listed and f"data_cards/{card.stem}" in toc_documents()


def test_papers_that_chapters_link_to_are_in_the_bibliography():
    known = set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", (ROOT / "references.bib").read_text()))
    linked = {number for chapter in chapters() for number in re.findall(r"arxiv\.org/abs/([\d.]+\d)", prose(chapter))}
    assert linked and linked <= known, linked - known


def test_the_changelog_tells_of_this_version_and_of_what_comes():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = [heading.split(" – ")[0] for heading in headings]
    assert fusemix_lite.__version__ in versions and versions[0] in ("Unreleased", fusemix_lite.__version__)
    assert all(re.search(r" – \d{4}-\d\d-\d\d$", heading) for heading in headings if heading != "Unreleased")


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_what_github_takes(form):
    content = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert content == {"blank_issues_enabled": True}  # the issue button opens a plain one
        return
    assert {"name", "description", "body"} <= set(content) <= {"name", "description", "title", "labels", "body"}
    ids = [field["id"] for field in content["body"]]
    assert len(set(ids)) == len(ids)
    for field in content["body"]:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes"} and field["attributes"]["label"]
        assert bool(field["attributes"].get("options")) == (field["type"] in {"dropdown", "checkboxes"})
        assert set(field) <= {"type", "id", "attributes", "validations"}
    assert any(field.get("validations", {}).get("required") for field in content["body"])


def test_a_chapter_without_minutes_would_be_noticed(tmp_path, monkeypatch):
    empty = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T", id="t")])
    path = tmp_path / "x.ipynb"
    nbformat.write(empty, path)
    monkeypatch.setattr(fragments, "chapters", lambda: [path])
    with pytest.raises(TypeError):
        fragments.course()
