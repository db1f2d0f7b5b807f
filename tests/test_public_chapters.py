"""Chapters at `profile="colab"`, unmodified: on fixtures of the public formats, with small encoders of the public classes.

What stands in for Flickr30K, Clotho, DINOv2, BGE, AST and Whisper comes in by the chapters' own parameter `overrides`, as a
reader's encoders would. Numbers mean nothing here; that every cell runs, and on which data, does.
"""

import json
import os
import subprocess
import sys

import pytest

from tests import public_fixtures, tiny_encoders
from tools.book import execute
from tools.notebooks import ROOT, read

ENCODERS = {
    "image": {"dinov2-a": "dinov2", "dinov2-b": "dinov2"},
    "text": {"bge-a": "bert", "bge-b": "bert"},
    "audio": {"ast": "ast", "whisper": "whisper"},
}
#: The profile's own values but for sizes that fit twelve items, of which two or three are broken.
SMALL = {
    "sizes": [4, 8], "scarce": 4, "train_items": 8, "batch_size": 8, "lengths": [2], "dropouts": [0.2], "depth": 1,
    "shared_dim": 8, "audio_items": [8, 9, 9], "audio_sizes": [4, 8], "audio_lengths": [2], "audio_batch_size": 8,
    "image_layers": [1, 2], "text_layer": 1, "scenes_as": "smoke",
}  # fmt: skip

#: Runs the code cells of chapters in one process, which starts once; what a cell shows is kept as its plain text.
RUN = """
import contextlib, io, json, sys, warnings
from pathlib import Path
import matplotlib
matplotlib.use("Agg")
import IPython.display
from tools.notebooks import read

def main(out, parameters, *chapters):
    warnings.simplefilter("ignore")
    told = {}
    for chapter in map(Path, chapters):
        names, shown = {"__name__": chapter.stem}, []
        IPython.display.display = lambda data, **how: shown.append(data.get("text/plain", ""))
        for cell in read(chapter).cells:
            tags = cell.metadata.get("tags", [])
            if cell.cell_type == "code" and "setup" not in tags:
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(compile(cell.source, f"{chapter.stem}, cell {cell.id}", "exec"), names)
                names |= json.loads(parameters) if "parameters" in tags else {}
                told[f"{chapter.stem[:2]} {cell.id}"] = "\\n".join([printed.getvalue(), *shown])
                shown.clear()
    Path(out).write_text(json.dumps(told))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders with data, encoders and a cache, and the parameters of a chapter that uses them."""
    folder = tmp_path_factory.mktemp("public")
    flickr30k(folder / "data" / "flickr30k")
    for split in ("train", "val", "test"):
        public_fixtures.clotho(folder / "data" / "clotho", split)
    overrides = dict(SMALL)
    for modality, kinds in ENCODERS.items():
        settings = {"pooling": "cls"} if modality == "text" else {}  # as BGE is pooled
        saved = [tiny_encoders.save(folder / "encoders" / name, kind, **settings) for name, kind in kinds.items()]
        overrides[f"{modality}_encoders"] = list(map(str, saved))
    (folder / "run.py").write_text(RUN)
    return folder, {"profile": "colab", "seeds": 2, "device": "cpu", "overrides": overrides}


def flickr30k(folder):
    """Karpathy's JSON with all three splits, and their pictures."""
    texts, images = public_fixtures.captions(public_fixtures.PICTURES, 5), []
    for number, split in enumerate(("train", "val", "test"), 1):
        names = [f"{number}000092{i:03d}.jpg" for i in range(public_fixtures.N)]
        public_fixtures.pictures(folder / "flickr30k-images", names)
        for i, name in enumerate(names):
            images.append(public_fixtures.karpathy_entry(name, texts[i], split, 100 * number + i, None))
    public_fixtures.dump(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})


def environment(folder) -> dict[str, str]:
    return {"FUSEMIX_LITE_DATA": str(folder / "data"), "FUSEMIX_LITE_CACHE": str(folder / "cache")}


def run(place, *numbers, **more) -> dict[str, str]:
    """What the cells of these chapters show."""
    folder, parameters = place
    chapters = [str(next((ROOT / "book").glob(f"{number}-*.ipynb"))) for number in numbers]
    out = folder / "told.json"
    command = [sys.executable, str(folder / "run.py"), str(out), json.dumps(parameters | more), *chapters]
    done = subprocess.run(
        command, env=os.environ | environment(folder) | {"PYTHONPATH": str(ROOT)}, cwd=folder, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_slices_run_on_public_data_and_the_small_world_keeps_its_place(place):
    told = run(place, "03", "04", "05", "09", "10")
    for cell in ("03 live", "04 live", "05 live", "09 live", "10 live"):
        assert "Before the run" in told[cell] and "fusion: 2 runs" in told[cell]
    assert "2 live runs: other scale or data: not compared" in told["04 live-verdict"]
    made = {path.name.split("--")[0] for path in (place[0] / "cache").iterdir()}
    for data in ("flickr30k", "clotho"):
        assert {name.split("-")[1] for name in made if name.startswith(data)} == {"train", "val", "test"}
    assert any(name.startswith("sounding-scenes-v1-audio-text-val-50x5") for name in made)  # what is listened to
    for cell in ("03 scales", "04 scales", "05 scales-table", "09 scales", "10 scales"):
        assert "[lite]" in told[cell] and told[cell].count("Not yet measured") == 2
    for cell in ("04 table-1", "05 table-2"):
        assert "reported (S)" in told[cell] and told[cell].count("not yet measured") == 2


def test_a_whole_record_is_made_on_public_data_in_the_chapter(place):
    """live = "full": the sweep, its figures and tables, and a slice that finds it true."""
    told = run(place, "04", live="full", overrides=place[1]["overrides"] | {"workers": 1})
    assert "2 live runs: as recorded" in told["04 live-verdict"]
    assert told["04 record-tables"].count("dinov2-a + ") == 8  # two text encoders, two schemes, two directions
    assert "our record of other data" in told["04 perfect-reader"]  # a reader of scenes, a record of photos


def test_papermill_takes_overrides(place, monkeypatch, tmp_path):
    """One chapter as a reader runs it: parameters through papermill, whose lists become tuples."""
    folder, parameters = place
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    target = tmp_path / "03.ipynb"
    execute(ROOT / "book/03-fusemix.ipynb", target, parameters)
    (live,) = [cell for cell in read(target).cells if cell.id == "live"]
    text = "".join(output.get("text", "") for output in live.outputs)
    assert "Before the run" in text and "fusion: 2 runs" in text


def test_data_that_are_not_here_are_named_with_their_remedy(place, tmp_path):
    folder, parameters = place
    command = [sys.executable, str(folder / "run.py"), "x", json.dumps(parameters), str(ROOT / "book/03-fusemix.ipynb")]
    env = os.environ | environment(folder) | {"FUSEMIX_LITE_DATA": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode and "FuseMixLiteError: flickr30k" in line and "fusemix-lite data flickr30k" in line
