"""Tables of Hugging Face `datasets`, in memory, saved and in parquet, as pairs."""

import json
import sys
from pathlib import Path

import numpy as np
import public_fixtures as small
import pytest

from fusemix_lite import FuseMixLiteError, LatentPairs, extract, fit, hub_data, load_encoder
from fusemix_lite.hub_data import read_hub

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def encoders():
    return {modality: load_encoder(f"lite-{modality}-a", device="cpu") for modality in ("image", "audio", "text")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))


def hub_rows() -> dict:
    texts = small.captions(small.PICTURES, 2)
    content = [{"bytes": small.jpeg(i), "path": None} for i in range(small.N)]
    return {"image": content, "caption": texts, "key": [f"größe {i}" for i in range(small.N)]}


def hub_table(rows: dict):
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def saved(rows: dict, folder: Path, how: str):
    table = hub_table(rows)
    if how == "object":
        return table
    if how == "shuffled":
        order = np.random.default_rng(0).permutation(len(table))
        return table.select(order).select(np.argsort(order))
    if how == "saved to disk":
        table.save_to_disk(str(folder / "saved"))
        return folder / "saved"
    if how == "splits saved to disk":
        datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(str(folder / "saved"))
        return folder / "saved"
    (folder / "data").mkdir()
    half = small.N // 2
    table.select(range(half)).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    table.select(range(half, small.N)).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    table.select(range(2)).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("how", ["object", "shuffled", "saved to disk", "splits saved to disk", "parquet"])
def test_from_a_table_of_the_hub_to_a_fit(how, encoders, tmp_path):
    source = saved(hub_rows(), tmp_path, how)
    split = "train" if how in ("splits saved to disk", "parquet") else None
    dataset = read_hub(source, item="key", split=split)
    ids, values = dataset.fields("image")
    assert list(ids) == [f"größe {i}" for i in range(small.N)] and values[0]() == small.jpeg(0)
    assert dataset.captions[0] == (0, small.captions(small.PICTURES, 2)[0][0]) and len(dataset.texts) == 2 * small.N
    x = small.quiet(extract, dataset, encoders["image"], tmp_path / "x", progress=False)
    y = small.quiet(extract, dataset, encoders["text"], tmp_path / "y", progress=False)
    assert [entry["item_id"] for entry in x.quarantine] == [f"größe {small.CUT}"] and len(y.quarantine) == 1
    shown = [small.plain("image", int(item.split()[1])) for item in x.item_ids]
    assert small.cosine(x.array, encoders["image"].encode(shown)).min() > 0.98
    pairs = small.quiet(LatentPairs.from_stores, x, y)
    result = fit(pairs.take(range(4)), pairs.take(range(4, 8)), steps=3, batch_size=2, shared_dim=16, evals=1, progress=False)
    assert result.model.in_dims == pairs.dims


def test_a_table_has_the_id_of_its_content(tmp_path):
    rows = hub_rows()
    first = read_hub(hub_table(rows)).id
    assert read_hub(saved(hub_rows(), tmp_path, "saved to disk")).id.rsplit("-", 1)[1] == first.rsplit("-", 1)[1]
    other = hub_rows()
    other["image"][3] = {"bytes": small.jpeg(7), "path": None}
    assert read_hub(hub_table(other)).id != first
    turned = hub_table(rows).select(range(small.N - 1, -1, -1))
    assert read_hub(turned).id != first and read_hub(turned).values[0]() == small.jpeg(small.N - 1)


def test_sounds_in_a_table(encoders, tmp_path):
    small.sounds(tmp_path, [f"{i}.wav" for i in range(small.N)])
    content = [{"bytes": (tmp_path / f"{i}.wav").read_bytes(), "path": None} for i in range(3)]
    decoded = {"array": small.samples(6).tolist(), "sampling_rate": 16_000}
    columns = {"caption_1": list("abc"), "caption_2": list("def"), "start": [1, 2, 3]}
    table = datasets.Dataset.from_dict({"audio": content, **columns}).cast_column("audio", datasets.Audio(sampling_rate=16_000))
    dataset = read_hub(table, "audio")
    assert dataset.texts == list("adbecf") and dataset.owners.tolist() == [0, 0, 1, 1, 2, 2]
    store = extract(dataset, encoders["audio"], tmp_path / "x", progress=False)
    for index in range(3):
        assert small.cosine(store.array[index], encoders["audio"].encode([small.plain("audio", index)])[0]) > 0.98
    table = datasets.Dataset.from_dict({"audio": [decoded], "text": ["a drum"]})
    store = extract(read_hub(table, "audio"), encoders["audio"], tmp_path / "y", progress=False)
    assert small.cosine(store.array[0], encoders["audio"].encode([small.plain("audio", 6)])[0]) > 0.999
    table = datasets.Dataset.from_dict({"file": [str(tmp_path / "7.wav"), str(tmp_path / "no.wav")], "text": ["a", "b"]})
    store = small.quiet(extract, read_hub(table, "audio", column="file"), encoders["audio"], tmp_path / "z", progress=False)
    assert [e["item_id"] for e in store.quarantine] == ["00000001"]


def test_rows_with_one_id_are_one_item():
    rows = {"image": hub_rows()["image"][:4], "text": list("abcd"), "photo": [7, 8, 7, 9]}
    dataset = read_hub(hub_table(rows), item="photo")
    assert dataset.items == ["7", "8", "9"] and dataset.captions == [(0, "a"), (1, "b"), (0, "c"), (2, "d")]
    assert [value() for value in dataset.values] == [small.jpeg(i) for i in (0, 1, 3)]


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda folder: hub_table(hub_rows()), {"column": "photo"}, 'no column "photo"; there are image, caption, key'),
        (lambda folder: hub_table(hub_rows()), {"text": "words"}, 'no column "words"'),
        (lambda folder: hub_table(hub_rows()), {"media": "video"}, 'give "image" or "audio"'),
        (lambda folder: hub_table(hub_rows()), {"media": "audio"}, "which column holds the audio"),
        (lambda folder: hub_table(hub_rows()).remove_columns("caption"), {}, "which column holds the captions"),
        (lambda folder: hub_table(hub_rows()).select([]), {}, "holds no row"),
        (lambda folder: {"image": [1]}, {}, "dict is no table"),
        (lambda folder: saved(hub_rows(), folder, "splits saved to disk"), {}, "splits train, test: name one"),
        (lambda folder: saved(hub_rows(), folder, "parquet"), {"split": "val"}, 'no parquet file with "val"'),
        (lambda folder: folder, {}, "holds no data"),
        (lambda folder: folder / "not there", {}, "holds no data"),
    ],
)
def test_a_table_that_does_not_fit_is_named(make, options, message, tmp_path):
    with pytest.raises(FuseMixLiteError, match=message):
        read_hub(make(tmp_path), **options)


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(FuseMixLiteError, match="cannot be read .*write or fetch it again"):
        read_hub(tmp_path / "a.parquet")


def saved_naming(folder: Path, file: str) -> Path:
    """A folder of `save_to_disk` that names a file elsewhere, with a good table there."""
    saved(hub_rows(), folder, "saved to disk")
    (folder / "saved" / "data-00000-of-00001.arrow").rename(folder / "elsewhere.arrow")
    state = json.loads((folder / "saved" / "state.json").read_text())
    state["_data_files"] = [{"filename": file.format(folder=folder)}]
    (folder / "saved" / "state.json").write_text(json.dumps(state))
    return folder / "saved"


@pytest.mark.parametrize("file", ["../elsewhere.arrow", "{folder}/elsewhere.arrow"])
def test_a_saved_table_reads_nothing_outside_of_its_folder(tmp_path, file):
    with pytest.raises(FuseMixLiteError, match="state.json names .*elsewhere.arrow', which leaves the folder"):
        read_hub(saved_naming(tmp_path, file), item="key")


def test_a_saved_dict_names_no_split_outside_of_its_folder(tmp_path):
    saved(hub_rows(), tmp_path, "saved to disk")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "dataset_dict.json").write_text('{"splits": ["../saved"]}')
    with pytest.raises(FuseMixLiteError, match="names the split '../saved', which leaves the folder"):
        read_hub(tmp_path / "splits", item="key", split="../saved")


def test_a_path_in_a_table_of_a_stranger_stays_in_its_folder(tmp_path):
    """A parquet file may name any picture of this machine; a table that its user has made may, too, as it was he who did."""
    (tmp_path / "data").mkdir()
    for place in (tmp_path / "outside.jpg", tmp_path / "data" / "inside.jpg"):
        place.write_bytes(small.jpeg(7))
    named = ["inside.jpg", "../outside.jpg", str(tmp_path / "outside.jpg"), str(tmp_path / "data" / "inside.jpg"), "a\0b"]
    table = datasets.Dataset.from_dict({"image": named, "caption": list("abcde")})
    table.to_parquet(tmp_path / "data" / "a.parquet")
    read = read_hub(tmp_path / "data" / "a.parquet")
    found = []
    for value in read.values:
        try:
            found.append(value())
        except FuseMixLiteError as error:
            assert "which is not in the folder of the table: if you trust it, give the table itself" in str(error)
            found.append(None)
    inside = tmp_path / "data" / "inside.jpg"
    assert found == [inside, None, None, inside, None]
    assert list(read.values.sizes()) == [len(small.jpeg(7)), None, None, len(small.jpeg(7)), None]
    assert read_hub(table).values[2]() == tmp_path / "outside.jpg"


def test_a_table_in_which_no_row_has_bytes(tmp_path):
    """As pandas or pyarrow write it: the column of bytes has no type but null."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.jpg").write_bytes(small.jpeg(7))
    cells = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}]
    parquet.write_table(pa.table({"image": cells, "caption": ["a", "b"]}), tmp_path / "a.parquet")
    read = read_hub(tmp_path / "a.parquet", media="image", column="image")
    assert list(read.values.sizes()) == [len(small.jpeg(7)), None] and read.values[0]() == tmp_path / "a.jpg"


def test_rows_without_an_id_are_not_one_item():
    rows = hub_rows()
    rows["key"][3] = rows["key"][5] = None
    with pytest.raises(FuseMixLiteError, match='table, row 3: no id in "key": all rows without one would be one item'):
        read_hub(hub_table(rows), item="key")


def test_lengths_and_texts_of_a_file_are_looked_at(tmp_path):
    """Arrow takes them from the file as they are: one that is wrong would be read from memory that is not the table's."""
    saved(hub_rows(), tmp_path, "saved to disk")
    file = tmp_path / "saved" / "data-00000-of-00001.arrow"
    content, word = file.read_bytes(), "größe 3".encode()
    assert word in content
    file.write_bytes(content.replace(word, b"gr\xff\xff\xff\xffe 3", 1))
    with pytest.raises(FuseMixLiteError, match="saved cannot be read .*UTF8.*write or fetch it again"):
        read_hub(tmp_path / "saved", item="key")


def test_a_parquet_file_that_unpacks_to_more_than_its_share_is_refused(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [bytes(1_000_000 + k) for k in range(4)], "caption": list("abcd")})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert len(read_hub(tmp_path / "a.parquet")) == 4
    monkeypatch.setattr(hub_data, "AT_LEAST", 1_000_000)
    with pytest.raises(FuseMixLiteError, match="a.parquet would take 4,000,.* bytes, which is out of proportion"):
        read_hub(tmp_path / "a.parquet")


def test_without_the_library_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FuseMixLiteError, match=r'pip install "fusemix-lite\[data\]"'):
        read_hub(tmp_path)
