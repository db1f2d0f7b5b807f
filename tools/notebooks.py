"""Chapters as files: their order, their setup cell, and how an executed one is cleaned for the repository."""

import re
import tomllib
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent

#: A path that only one machine has; nothing committed may hold one.
MACHINE_PATH = re.compile(r"/(?:work|tmp|root|home|Users)/[\w.-]+")

# What a cell may carry into the repository: everything else is a trace of one run or of one editor.
_KEPT_CELL_METADATA = ("tags", "jupyter", "cellView", "mystnb")

# How cells with these tags look: folded in JupyterLab and Colab too, and with a label of their own in the book.
_FOLDED = {"setup": "Setup for Colab", "solution": "Solution"}

_SETUP = """\
# On Colab: install the package from its repository (torch stays the one that is there). Elsewhere: nothing to do.
import importlib.util

if importlib.util.find_spec("fusemix_lite") is None:
    %pip install -q {requirements}
    %pip install -q --no-deps "git+{address}"
"""


def project() -> dict:
    """The [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def repository_address() -> str:
    """The address of the repository; pyproject.toml is the one place where it stands."""
    return project()["urls"]["Repository"]


def toc_documents(root: Path = ROOT) -> list[str]:
    """Every document that _toc.yml names, in its order, without suffix."""

    def walk(node) -> list[str]:
        if isinstance(node, list):
            return [name for child in node for name in walk(child)]
        if isinstance(node, dict):
            own = [node[key] for key in ("root", "file") if key in node]
            return own + [name for value in node.values() for name in walk(value)]
        return []

    return walk(yaml.safe_load((root / "_toc.yml").read_text("utf-8")))


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks of the book in the order of _toc.yml."""
    paths = (root / f"{name}.ipynb" for name in toc_documents(root))
    return [path for path in paths if path.exists()]


def setup_source(address: str) -> str:
    """The setup cell of every chapter: the package's own ranges, quoted, without torch, then the package alone."""
    requirements = [f'"{r}"' for r in project()["dependencies"] if not re.match(r"torch\b", r)]
    return _SETUP.format(requirements=" ".join(requirements), address=address).rstrip("\n")


def set_address(notebook: nbformat.NotebookNode, address: str) -> None:
    """Write the setup cell (the one tagged `setup`) for this address."""
    for cell in notebook.cells:
        if "setup" in cell.metadata.get("tags", []):
            cell.source = setup_source(address)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook as it is committed: no timing, no injected parameters, no traces of a machine or an editor.

    Changes the notebook in place and returns it. Cell ids stay; streams that the kernel happened to send in pieces are
    joined; cells tagged `setup` or `solution` are folded in JupyterLab and Colab as they are in the book.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in _KEPT_CELL_METADATA and v})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for tag in _FOLDED.keys() & set(cell.metadata.get("tags", [])):
                cell.metadata.jupyter = {"source_hidden": True}
                cell.metadata.cellView = "form"
                cell.metadata.mystnb = {"code_prompt_show": _FOLDED[tag], "code_prompt_hide": _FOLDED[tag]}
    return notebook


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", "utf-8")


def _joined(outputs: list) -> list:
    joined = []
    for output in outputs:
        same_stream = joined and output.output_type == "stream" == joined[-1].output_type
        if same_stream and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined
