"""The chapter about real data in both of its states: with latents (made up here, in the form of the real ones) and without."""

import json
import os

import pytest
import torch

from fusemix_lite import LatentPairs, real
from tools.book import execute
from tools.notebooks import ROOT, read

CHAPTER = ROOT / "book/06-real-photos-and-sounds.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both sets as files: 200 / 50 / 50 items whose two sides see the same four factors, and nobody's data."""
    out = tmp_path_factory.mktemp("latents")
    for seed, (name, known) in enumerate(real.REAL.items()):
        g = torch.Generator().manual_seed(seed)
        to_x, to_y = torch.randn(4, 24, generator=g), torch.randn(4, 16, generator=g)
        parts = {}
        for part, n in {"train": 200, "val": 50, "test": 50}.items():
            owner = torch.arange(n).repeat_interleave(known.captions)
            factors = torch.randn(n, 4, generator=g)
            x = factors @ to_x + 0.3 * torch.randn(n, 24, generator=g)
            y = factors[owner] @ to_y + 0.3 * torch.randn(len(owner), 16, generator=g)
            parts[part] = LatentPairs(x, y, owner, known.names)
        real.write_real(parts, out, name)
    return out


def texts(notebook) -> dict[str, str]:
    """What each code cell shows, as plain text."""
    shown = {}
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        shown[cell.id] = "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)
    return shown


def test_with_latents_slices_run_live(folder, tmp_path, monkeypatch):
    """Another scale and other data than the record's: everything runs, nothing is compared."""
    monkeypatch.delenv("FUSEMIX_LITE_REAL", raising=False)
    target = tmp_path / CHAPTER.name
    execute(CHAPTER, target, {"profile": "smoke", "seeds": 2, "latents": str(folder)})
    shown = texts(read(target))
    for cell, name in (("photo-live", "flickr8k"), ("notes-live", "philharmonia")):
        lines = [line for line in shown[cell].splitlines() if "not compared" in line]
        assert len(lines) == 4 and all(name in line for line in lines), shown[cell]
        assert "nothing was run" not in shown[cell]
        assert f"{name} {{" in shown["reduced-live"]
    monkeypatch.setenv("FUSEMIX_LITE_REAL", str(folder))
    assert all(real.data_digest(name) in shown["state"] for name in real.REAL)


def test_committed_outputs_are_those_of_a_reader_without_the_latents():
    shown = texts(read(CHAPTER))
    assert shown["state"].count("not here") == 2 and not shown["reduced-live"]
    for cell in ("photo-live", "notes-live"):
        assert "nothing was run" in shown[cell] and "recorded on" in shown[cell]
    for cell in ("recall", "lead-figure", "lead-table", "longer", "notes-recall", "notes-figure", "wording"):
        assert "recorded on 20" in shown[cell].lower() and " seeds" in shown[cell]


@pytest.mark.skipif(not os.environ.get("FUSEMIX_LITE_REAL"), reason="FUSEMIX_LITE_REAL is not set")
@pytest.mark.parametrize("name", real.REAL)
def test_nothing_of_the_data_is_in_the_chapter(name):
    content = json.loads(real.find_latents(name).with_suffix(".json").read_text(encoding="utf-8"))
    paths = [item if isinstance(item, str) else item["path"] for item in content["items"]]
    text = CHAPTER.read_text(encoding="utf-8").lower()
    telling = {entry.lower().strip(" .") for entry in (*content["captions"], *paths) if len(entry) > 15}
    assert len(telling) > 5000 and not [entry for entry in telling if entry in text]
