import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_encoders as tiny
import torch
from PIL import Image

from fusemix_lite import FuseMixLiteError, LatentPairs, LatentStore, cached_latents, extract, extraction, load_encoder

RNG = np.random.default_rng(0)


class Captions:
    """Two captions an item, each made when it is asked for, in `seconds`."""

    def __init__(self, items: int, seconds: float = 0.0):
        self.id, self.rows, self.seconds = f"captions/{items}", 2 * items, seconds

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> str:
        time.sleep(self.seconds)
        return " ".join(tiny.CAPTIONS[index % 5].split()[: 1 + index % 7])

    def fields(self, modality):
        assert modality == "text"
        return [f"item-{index // 2}" for index in range(self.rows)], self


class Lists:
    """A dataset from lists: modality=(ids, values)."""

    def __init__(self, name, **fields):
        self.id, self._fields = name, fields

    def fields(self, modality):
        return self._fields[modality]


@pytest.fixture
def text_folder(tmp_path):
    return tiny.save(tmp_path / "tiny-text", "bert")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(extraction, "ROWS_PER_SHARD", 8)


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def start(code, *arguments, **options):
    """Run code beside this test, in a process of its own that can be killed."""
    header = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
        "from test_extraction import Captions\n"
        "from fusemix_lite import extraction\n"
        "extraction.ROWS_PER_SHARD = 8\n"
    )
    root = Path(__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", header + code, *map(str, arguments)], cwd=root, **options)


def test_latents_are_those_of_encode_with_the_ids_in_order(tmp_path, text_folder):
    dataset, encoder = Captions(15), load_encoder(text_folder)
    store = extract(dataset, encoder, tmp_path / "out", batch_size=3, progress=False)
    ids, values = dataset.fields("text")
    assert store.item_ids == ids and store.array.dtype == np.float16 and store.quarantine == []
    expected = encoder.encode([values[index] for index in range(30)])
    torch.testing.assert_close(torch.from_numpy(store.array[:]).float(), expected, rtol=1e-3, atol=1e-3)
    assert store.origin.encoder_revision == encoder.revision and store.origin.dataset_id == dataset.id
    store.verify()


def test_a_complete_store_is_returned_and_anything_else_refused(tmp_path, text_folder):
    out = tmp_path / "out"
    extract(Captions(15), text_folder, out, progress=False)
    before = contents(out)

    class Unread(Captions):
        def __getitem__(self, index):
            raise AssertionError("nothing is to be read")

    extract(Unread(15), load_encoder(text_folder), out, progress=False)
    assert contents(out) == before
    with pytest.raises(FuseMixLiteError, match="holds 30 items of captions/15 by tiny-text .* not 32 items"):
        extract(Captions(16), text_folder, out, progress=False)
    other = tiny.save(tmp_path / "other", "bag of words")
    with pytest.raises(FuseMixLiteError, match="not 30 items of captions/15 by other"):
        extract(Captions(15), other, out, progress=False)
    (out / "manifest.json").unlink()
    with pytest.raises(FuseMixLiteError, match="choose a new folder"):
        extract(Captions(15), other, out, progress=False)
    os.truncate(out / "shard-00001.safetensors", 99)
    extract(Captions(15), text_folder, out, progress=False)
    assert contents(out) == before


def test_the_cache_does_not_confuse_the_layers_of_an_encoder(tmp_path, text_folder, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path / "cache"))
    stores = {end: cached_latents(Captions(4), f"{text_folder}{end}", progress=False) for end in ("", "@0", "@1")}
    assert len({store.path for store in stores.values()}) == 3
    for end, store in stores.items():
        own = load_encoder(f"{text_folder}{end}").encode([Captions(4)[index] for index in range(8)])
        torch.testing.assert_close(torch.from_numpy(store.array[:]).float(), own, rtol=1e-3, atol=1e-3)
        assert store.origin.encoder_id == f"tiny-text{end}"
    with pytest.raises(FuseMixLiteError, match="by tiny-text@1 .* not 8 items of captions/4 by tiny-text "):
        extract(Captions(4), text_folder, stores["@1"].path, progress=False)


def test_bad_items_go_to_quarantine_and_pairs_stay_aligned(tmp_path):
    pictures, sounds, captions = [], [], []
    for index in range(20):
        pictures.append(tmp_path / f"{index}.png")
        Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(pictures[-1])
        sounds.append(tmp_path / f"{index}.wav")
        soundfile.write(sounds[-1], RNG.normal(0, 0.1, 8_000), 16_000)
        captions.append(f"a {'dog bell clock rain'.split()[index % 4]}")
    os.truncate(pictures[3], 500)
    pictures[12].unlink()
    os.truncate(sounds[9], 500)
    captions[7] = " "
    ids = [f"scene-{index}" for index in range(20)]
    data = Lists("files", image=(ids, pictures), audio=(ids, [str(path) for path in sounds]), text=(ids, captions))
    bad, stores = {}, {}
    for modality, kind in {"image": "dinov2", "audio": "whisper", "text": "bert"}.items():
        encoder = load_encoder(tiny.save(tmp_path / kind, kind))
        out = tmp_path / modality
        with pytest.warns(UserWarning, match=r"of 20 items left out \(first: scene-\d"):
            store = stores[modality] = extract(data, encoder, out, batch_size=5, progress=False)
        bad[modality] = json.loads((out / "quarantine.json").read_text())
        assert store.quarantine == bad[modality] and store.manifest["quarantined"] == len(bad[modality])
        left = [index for index in range(20) if index not in [entry["index"] for entry in bad[modality]]]
        assert store.item_ids == [ids[index] for index in left]
        latents = encoder.encode([data.fields(modality)[1][index] for index in left])
        torch.testing.assert_close(torch.from_numpy(store.array[:]).float(), latents, rtol=1e-3, atol=1e-3)
    places = {modality: [(e["index"], e["item_id"], e["path"]) for e in bad[modality]] for modality in bad}
    assert places == {
        "image": [(3, "scene-3", str(pictures[3])), (12, "scene-12", str(pictures[12]))],
        "audio": [(9, "scene-9", str(sounds[9]))],
        "text": [(7, "scene-7", None)],
    }
    assert "truncated" in bad["image"][0]["reason"] and "No such file" in bad["image"][1]["reason"]
    with pytest.warns(UserWarning, match="dropped"):
        pairs = LatentPairs.from_stores(stores["image"], stores["text"])
    assert len(pairs) == 17


def test_latents_that_are_not_finite_go_to_quarantine_and_overflow_stops(tmp_path, text_folder):
    encoder = load_encoder(text_folder)
    barks = encoder.processor.convert_tokens_to_ids("barks")
    words = encoder.model.embeddings.word_embeddings.weight
    words[barks] = torch.nan
    data = Lists("two", text=(["a", "b"], ["a bell", "a dog barks"]))
    with pytest.warns(UserWarning, match=r"1 of 2 items left out \(first: b, its latent is not finite\)"):
        assert extract(data, encoder, tmp_path / "nan", progress=False).item_ids == ["a"]
    encoder.model.encoder.layer[-1].output.LayerNorm.weight.fill_(1e6)
    with pytest.raises(FuseMixLiteError, match="latent of item a .* overflows float16"):
        extract(data, encoder, tmp_path / "overflow", progress=False)


def test_datasets_without_items_are_refused(tmp_path, text_folder):
    for fields in (([], []), (["a"], ["a bell", "a dog"])):
        with pytest.raises(FuseMixLiteError, match="dataset odd has . ids and . values of text"):
            extract(Lists("odd", text=fields), text_folder, tmp_path / "out", progress=False)
    with pytest.raises(FuseMixLiteError, match="no latent to store, first of all a: "):
        extract(Lists("odd", text=(["a"], [""])), text_folder, tmp_path / "out", progress=False)
    mended = extract(Lists("mended", text=(["a"], ["a bell"])), text_folder, tmp_path / "out", progress=False)
    assert mended.item_ids == ["a"]  # nothing of the failed pass bars the folder


def test_progress_shows_a_rate(tmp_path, text_folder, capsys):
    extract(Captions(15), text_folder, tmp_path / "out")
    shown = capsys.readouterr()
    assert "tiny-text on captions/15: 100%" in shown.err and shown.out == ""
    assert re.search(r"30/30 \[\d\d:\d\d<\d\d:\d\d, +[\d.,]+k? items/s\]", shown.err)  # and how long it will take


def test_killed_and_resumed_gives_the_same_bytes(tmp_path, text_folder):
    extract(Captions(40), text_folder, tmp_path / "whole", batch_size=4, progress=False)
    out = tmp_path / "killed"
    code = "extraction.extract(Captions(40, seconds=0.01), sys.argv[1], sys.argv[2], batch_size=4)"
    for kill in range(3):
        process = start(code, text_folder, out)
        while len(list(out.glob("*.safetensors"))) < 2 * kill + 1 and process.poll() is None:
            time.sleep(0.001)
        time.sleep(RNG.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -9
        assert not (out / "manifest.json").exists()
    kept = {file.name: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    assert 5 <= len(kept) < 10
    extract(Captions(40), text_folder, out, batch_size=4, progress=False).verify()
    assert contents(out) == contents(tmp_path / "whole")
    assert all((out / name).stat().st_mtime_ns == time_ns for name, time_ns in kept.items())


def test_the_cache_is_shared_by_processes_and_found_without_loading(tmp_path, text_folder, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path / "cache"))
    code = (
        "load = extraction.load_encoders\n"
        "extraction.load_encoders = lambda *given: print('loaded', flush=True) or load(*given)\n"
        "extraction.cached_latents(Captions(20, seconds=0.02), sys.argv[1], batch_size=4)"
    )
    processes = [start(code, text_folder, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(printed) == ["", "loaded\n"]  # one worked, the other waited and found the store
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert folder.name.startswith("captions_20--tiny-text--")
    LatentStore.open(folder).verify()

    def load(*arguments):
        raise AssertionError("the encoder is not needed")

    with monkeypatch.context() as patched:
        patched.setattr(extraction, "load_encoders", load)
        assert cached_latents(Captions(20), text_folder).path == folder
    again = extract(Captions(20), text_folder, tmp_path / "again", batch_size=4, progress=False)
    assert contents(again.path) == contents(folder)
    (text_folder / "fusemix_lite.json").write_text('{"pooling": "cls"}')
    assert cached_latents(Captions(20), text_folder, progress=False).path != folder


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path))
    assert extraction.cache_dir() == tmp_path
    monkeypatch.delenv("FUSEMIX_LITE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert extraction.cache_dir() == tmp_path / "fusemix-lite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert extraction.cache_dir() == tmp_path / ".cache" / "fusemix-lite"
