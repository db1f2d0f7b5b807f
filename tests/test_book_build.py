"""The book built from the committed chapters: without a warning, without the network, complete."""

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tools.book import build_html, stage
from tools.notebooks import MACHINE_PATH, ROOT, chapters, read, repository_address, toc_documents
from tools.students import ARCHIVE

CHAPTERS = chapters()
RESOURCES = {"script": "src", "img": "src", "audio": "src", "video": "src", "source": "src", "iframe": "src"}
LINKS_THAT_LOAD = {
    "stylesheet",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "icon",
    "modulepreload",
    "manifest",
}


class Page(HTMLParser):
    """Addresses that a page loads by itself, links it offers, and anchors it has."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.loads, self.links, self.anchors, self.no_alt = path, [], [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag in RESOURCES and attributes.get(RESOURCES[tag]):
            self.loads.append(attributes[RESOURCES[tag]])
        if tag == "link" and set((attributes.get("rel") or "").split()) & LINKS_THAT_LOAD:
            self.loads.append(attributes["href"])
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag == "img" and not (attributes.get("alt") or "").strip():
            self.no_alt.append(attributes.get("src"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """HTML of the committed chapters (warnings are errors); the work tree is the same before and after."""
    folder = tmp_path_factory.mktemp("book")
    before = _tree()
    stage(folder / "stage", CHAPTERS, repository_address())
    html = build_html(folder / "stage", folder)
    assert _tree() == before, "building changed the work tree"
    return html


@pytest.fixture(scope="module")
def pages(built) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(built.rglob("*.html")) if "_static" not in path.parts}


def repository_files() -> list[Path]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def _tree() -> str:
    command = ["git", "status", "--porcelain", "--", "book", "data_cards", "_config.yml", "_toc.yml", "references.bib"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_document_of_the_toc_is_a_page(built):
    missing = [name for name in toc_documents() if not (built / f"{name}.html").exists()]
    assert not missing
    assert (built / "index.html").exists()


def test_pages_load_nothing_from_the_network(pages):
    remote = {(path.name, address) for path, page in pages.items() for address in page.loads if _is_remote(address)}
    assert not remote


def test_style_sheets_load_nothing_from_the_network(built):
    for path in built.rglob("*.css"):
        text = path.read_text(errors="replace")
        found = re.findall(r"(?:@import\s+|url\()\s*['\"]?((?:https?:)?//[^'\")\s]+)", text)
        assert not found, f"{path.relative_to(built)}: {found}"


def test_maths_is_shipped(built):
    assert (built / "mathjax" / "tex-svg-full.js").stat().st_size > 2_000_000
    assert (built / "mathjax" / "LICENSE").exists()
    pages = [path.read_text() for path in (built / "book").glob("*.html")]
    with_maths = [text for text in pages if "MathJax" in text]
    assert all("mathjax/tex-svg-full.js" in text for text in with_maths)


def test_links_inside_the_book_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for address in page.loads + page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                broken.append((path.name, address))
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append((path.name, address))
    assert not broken


def test_pictures_have_alt_texts(pages):
    assert not {path.name: page.no_alt for path, page in pages.items() if page.no_alt}


def test_search_knows_every_chapter(built):
    index = (built / "searchindex.js").read_text()
    index = json.loads(index[index.index("{") : index.rindex("}") + 1])
    for chapter in CHAPTERS:
        assert f"book/{chapter.stem}" in index["docnames"]
    assert len(index["terms"]) > 50


def test_every_public_name_is_explained_and_listed_by_step(built, pages):
    import fusemix_lite

    reference = {path.name: page for path, page in pages.items() if path.name.startswith("api")}
    explained = {anchor for page in reference.values() for anchor in page.anchors}
    listed = {address.partition("#")[2] for address in reference["api.html"].links}
    for name in fusemix_lite.__all__:
        assert f"fusemix_lite.{name}" in explained, f"{name} is missing on the pages book/reference/api-*.md"
        assert f"fusemix_lite.{name}" in listed, f"{name} is missing in the overview, book/reference/api.md"


def test_the_reference_shows_no_full_module_paths(built):
    for path in (built / "book/reference").glob("api*.html"):
        assert "Return type" not in path.read_text(), "a colon in `Returns:` makes what stands before it a type"
        signatures = re.findall(r'<dt class="sig.*?</dt>', path.read_text(), re.DOTALL)
        text = " ".join(re.sub(r"<[^>]+>", "", signature) for signature in signatures)
        assert not re.findall(r"\b(?:torch|numpy|pathlib|fusemix_lite|collections)\.[\w.]+", text), path.name


def test_notebooks_for_students_can_be_had(built, pages):
    page = next(page for path, page in pages.items() if path.name == "teaching.html")
    offered = {Path(address).name for address in page.links if "_downloads/" in address}
    assert offered == {chapter.name for chapter in CHAPTERS} | {ARCHIVE}


def test_without_measured_times_the_page_says_so(built):
    assert "without running them" in (built / "book/reference/running.html").read_text()


def test_every_reference_is_in_the_bibliography(built):
    text = (built / "book/bibliography.html").read_text()
    entries = re.findall(r"^@\w+{(.+),$", (built.parents[1] / "stage/references.bib").read_text(), re.MULTILINE)
    assert len(set(entries)) == len(entries) == text.count('class="citation"')


def test_the_issue_button_names_the_page(built):
    page = (built / "book/03-fusemix.html").read_text()
    assert f"{repository_address()}/issues/new?title=Issue%20on%20page%20%2Fbook/03-fusemix.html" in page


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_colab_button_points_at_the_notebook(built, chapter):
    owner_and_name = urlsplit(repository_address()).path
    address = f"https://colab.research.google.com/github{owner_and_name}/blob/main/book/{chapter.name}"
    assert f'href="{address}"' in (built / "book" / f"{chapter.stem}.html").read_text()


def test_another_address_replaces_the_placeholder_everywhere(tmp_path):
    address = "https://github.com/someone/elsewhere"
    stage(tmp_path / "stage", CHAPTERS, address)
    texts = {p: p.read_text() for p in (tmp_path / "stage").rglob("*") if p.suffix in {".md", ".yml", ".ipynb", ".bib"}}
    assert address in texts[tmp_path / "stage" / "_config.yml"]
    assert not [p for p, text in texts.items() if repository_address() in text or "@REPO_URL@" in text]
    for chapter in CHAPTERS:
        assert any(f"git+{address}" in cell.source for cell in read(tmp_path / "stage" / "book" / chapter.name).cells)


def test_the_address_stands_in_one_place():
    holding = {path for path in repository_files() if repository_address().encode() in path.read_bytes()}
    assert holding - set(CHAPTERS) <= {ROOT / "pyproject.toml"}, "the chapters' setup cells are made from pyproject.toml"


def test_pages_and_records_carry_no_path_of_a_machine():
    pages = [path for path in repository_files() if path.suffix in {".md", ".json", ".yml", ".bib", ".svg", ".css"}]
    assert not {path.name: found for path in pages if (found := MACHINE_PATH.findall(path.read_text()))}


def test_the_repository_stays_small():
    assert sum(path.stat().st_size for path in repository_files()) <= 60e6


def test_what_is_built_is_ignored_by_git():
    for path in ("_build/html/index.html", ".venv/bin/python", "_build/executed/x.ipynb"):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0


def _is_remote(address: str) -> bool:
    return urlsplit(address).netloc != ""
