"""Public data sets: exactly their published layouts, read, encoded and fitted; and everything that such folders hold wrong."""

import json
import pickle
import re
import shutil
import tarfile
from pathlib import Path

import public_fixtures as small
import pytest
from PIL import Image

from fusemix_lite import FuseMixLiteError, LatentPairs, audit, extract, fit, load_encoder, shards
from fusemix_lite.public_data import lacks, open_dataset
from fusemix_lite.public_pairs import Files, TarMembers
from fusemix_lite.public_sets import DATASETS

ENCODERS = {"image": "lite-image-a", "audio": "lite-audio-a", "text": "lite-text-a"}


@pytest.fixture(scope="module")
def encoders():
    return {modality: load_encoder(name, device="cpu") for modality, name in ENCODERS.items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("FUSEMIX_LITE_DATA", raising=False)


def opened(built: small.Built):
    return small.quiet(open_dataset, built.name, built.split, built.folder)


# every layout


@pytest.mark.parametrize("layout", small.LAYOUTS)
def test_from_a_published_layout_to_a_fit(layout, encoders, tmp_path):
    built = small.LAYOUTS[layout](tmp_path / "data set")
    assert lacks(built.name, built.split, built.folder) is None
    dataset = opened(built)

    # what the list says, in its order, captions with the item that they are of
    ids, values = dataset.fields(built.media)
    assert list(ids) == built.items and len(values) == len(dataset) == len(built.items)
    text_ids, texts = dataset.fields("text")
    flat = [(item, text.strip()) for item, own in zip(built.items, built.captions, strict=True) for text in own]
    assert sorted(zip(text_ids, texts, strict=True)) == sorted(flat) and small.ODD_TEXT in texts
    assert dataset.id.startswith(f"{built.name}-{built.split}-") and re.search(r"-[0-9a-f]{12}$", dataset.id)

    # broken and missing media and empty captions are left out, with a reason, and nothing else is
    x = small.quiet(extract, dataset, encoders[built.media], tmp_path / "x", progress=False)
    y = small.quiet(extract, dataset, encoders["text"], tmp_path / "y", progress=False)
    assert {entry["item_id"]: entry["reason"] for entry in x.quarantine}.keys() == built.broken.keys()
    for entry in x.quarantine:
        assert built.broken[entry["item_id"]] in entry["reason"]
    assert len(y.quarantine) == sum(not text for text in texts) == (1 if any(len(own) > 1 for own in built.captions) else 0)
    assert list(x.item_ids) == [item for item in built.items if item not in built.broken]

    # an odd picture or sound has the latent of what it shows
    scene_of = dict(zip(built.items, built.index, strict=True))
    shown = [small.plain(built.media, scene_of[item]) for item in x.item_ids]
    assert small.cosine(x.array, encoders[built.media].encode(shown)).min() > 0.98

    # pairs stay pairs: every caption lies with its own picture or sound
    pairs = small.quiet(LatentPairs.from_stores, x, y)
    kept = [(item, text) for item, text in zip(text_ids, texts, strict=True) if text]
    told = [(item, text) for item, text in kept if item in set(x.item_ids)]
    assert [pairs.item_ids[owner] for owner in pairs.owner.tolist()] == [item for item, _ in told]
    assert small.cosine(pairs.y, encoders["text"].encode([text for _, text in told])).min() > 0.99

    parts = {name: pairs.take(rows) for name, rows in (("train", range(4)), ("val", range(4, 8)))}
    result = fit(parts["train"], parts["val"], steps=3, batch_size=2, shared_dim=16, evals=1, progress=False)
    assert result.model.in_dims == pairs.dims


def test_a_turned_picture_is_set_upright(encoders, tmp_path):
    built = small.coco_karpathy(tmp_path)
    store = small.quiet(extract, opened(built), encoders["image"], tmp_path / "x", progress=False)
    row = list(store.item_ids).index(built.items[small.TURNED])
    upright = small.PICTURES.image(small.TURNED)
    sideways = encoders["image"].encode([upright.transpose(Image.Transpose.ROTATE_90)])
    assert (
        small.cosine(store.array[row], encoders["image"].encode([upright])[0])
        > 0.99
        > small.cosine(store.array[row], sideways[0])
    )


@pytest.mark.parametrize(
    "group",
    [
        ("coco_karpathy", "coco_lavis"),
        ("visual_genome_captions", "visual_genome_regions"),
        ("sbu_lavis", "sbu_all_json", "sbu_urls"),
        ("cc3m_tsv", "cc3m_tsv_header"),
        ("audiocaps", "audiocaps_number"),
    ],
)
def test_a_data_set_is_the_same_in_all_of_its_layouts(group, tmp_path):
    """So latents that were extracted from one need not be extracted again from another."""
    assert len({opened(small.LAYOUTS[name](tmp_path / name)).id for name in group}) == 1


def test_the_id_is_of_the_content(tmp_path):
    built = small.coco_lavis(tmp_path / "a")
    first = opened(built)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert open_dataset("coco", "train", tmp_path / "copy").id == first.id  # another place, other times
    missing = first.values[small.MISSING]
    missing.write_bytes(small.jpeg(small.MISSING))
    assert opened(built).id != first.id  # a file that came late
    entries = json.loads((tmp_path / "a/annotations/coco_karpathy_train.json").read_text())
    entries[0]["caption"] += "!"
    small.dump(tmp_path / "a/annotations/coco_karpathy_train.json", entries)
    missing.unlink()
    assert opened(built).id != first.id


def test_an_audit_looks_at_a_public_set(tmp_path):
    dataset = opened(small.coco_lavis(tmp_path))
    found = {finding.kind: finding for finding in audit(dataset)}
    assert found["missing files"].example == dataset.items[small.MISSING]
    assert found["empty captions"].example == dataset.items[5]


# shards


def test_a_shard_is_read_once_and_where_it_lies(tmp_path, monkeypatch):
    built = small.cc3m_shards(tmp_path / "cc3m")
    first, before = opened(built), sorted(path.name for path in (tmp_path / "cc3m").iterdir())
    assert isinstance(first.values, TarMembers) and before == sorted(path.name for path in (tmp_path / "cc3m").iterdir())
    member = pickle.loads(pickle.dumps(first.values[0]))
    assert member() == small.jpeg(0) == first.values[0:1][0]()
    monkeypatch.setattr(shards, "_scan", lambda *args: pytest.fail("scanned again"))
    assert opened(built).id == first.id
    monkeypatch.undo()


def test_a_changed_shard_or_a_broken_list_is_scanned_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path / "cache"))
    built = small.cc3m_shards(tmp_path / "cc3m")
    first = opened(built)
    for kept in (tmp_path / "cache" / "shards").iterdir():
        kept.write_text('{"key": ')
    assert opened(built).id == first.id
    texts = small.captions(small.PICTURES, 1)
    texts[9] = ["another caption altogether"]
    small.shard(tmp_path / "cc3m" / "00001.tar", range(7, small.N), texts)
    assert "another caption altogether" in opened(built).texts
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path / "cc3m" / "00000.tar"))  # no folder: nothing can be kept
    assert len(opened(built)) == len(first)


def test_links_and_names_that_leave_the_folder_are_passed_over(tmp_path):
    def hostile(archive):
        small.add(archive, "../../evil.jpg", b"x")
        small.add(archive, "/etc/evil.jpg", b"x")
        link = tarfile.TarInfo("000000099.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        hard = tarfile.TarInfo("000000098.jpg")
        hard.type, hard.linkname = tarfile.LNKTYPE, "000000000.jpg"
        archive.addfile(hard)
        small.add(archive, "000000097.pickle", pickle.dumps({"never": "loaded"}))
        small.add(archive, "000000097.txt", b"a caption without a picture")

    small.shard(tmp_path / "00000.tar", range(7), small.captions(small.PICTURES, 1), hostile)
    with pytest.warns(UserWarning, match="4 links or paths that leave the folder"):
        dataset = open_dataset("cc3m", "train", tmp_path)
    assert len(dataset) == 6 and not any("evil" in item or "9" in item[-2:] for item in dataset.items)


def add_pair(archive, name, content):
    small.add(archive, "9.jpg", b"x")
    small.add(archive, name, content)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda file: file.write_bytes(b"no tar file" * 100), "no whole tar file"),
        (lambda file: file.write_bytes(file.read_bytes()[:3000]), "00000.tar"),
        (lambda file: file.write_bytes(file.read_bytes()[:9000]), "00000.tar"),
        (lambda file: file.write_bytes(b""), "00000.tar"),
        (lambda file: small.shard(file, range(0), []), "holds no image file"),
        (lambda file: small.shard(file, range(2), [["a"]] * 2, lambda a: small.add(a, "000000000.jpg", b"")), "second file"),
        (lambda file: small.shard(file, range(2), [["a"]] * 2, lambda a: small.add(a, "000000000.txt", b"b")), "second file"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, damage, message):
    small.cc3m_shards(tmp_path)
    damage(tmp_path / "00000.tar")
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        open_dataset("cc3m", "train", tmp_path)
    assert "fetch it again" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content",
    [
        ("9.txt", b"caf\xe9"),
        ("9.json", b"{"),
        ("9.json", b"[" * 200_000),
        ("9.json", b'{"caption": 7}'),
        ("9.json", b'{"caption": ["a"]}'),
        ("9.json", b'{"caption": "\\ud800"}'),
    ],
)
def test_a_caption_that_cannot_be_read_is_one_pair_less(tmp_path, name, content):
    """It must not stop a set of millions, nor shift the captions of the others."""
    small.shard(tmp_path / "00000.tar", range(2), [["a"], ["b"]], lambda archive: add_pair(archive, name, content))
    small.shard(tmp_path / "00001.tar", range(2), [["c"], ["d"]])
    for _ in range(2):  # scanned, and from the list that was kept
        with pytest.warns(UserWarning, match="1 captions cannot be read .*the first of them in .*00000.tar, 9:"):
            dataset = open_dataset("cc3m", "train", tmp_path)
        assert list(dataset.texts) == ["a", "b", "", "c", "d"] and dataset.owners.tolist() == [0, 1, 2, 3, 4]
        assert dataset.items[2] == "00000/9" and dataset.values[2]() == b"x" and dataset.values[3]() == small.jpeg(0)


def test_shards_of_the_hub_and_of_validation(tmp_path):
    texts = small.captions(small.PICTURES, 1)
    small.shard(tmp_path / "cc3m-train-00000.tar", range(3), texts)
    small.shard(tmp_path / "cc3m-validation-00000.tar", range(5, 7), texts)
    assert (len(open_dataset("cc3m", "train", tmp_path)), len(open_dataset("cc3m", "val", tmp_path))) == (3, 2)


# what is wrong


def entry(**changes):
    return {"filename": "COCO_val2014_1.jpg", "filepath": "val2014", "split": "test", "sentences": [{"raw": "a"}]} | changes


def karpathy(*entries):
    return json.dumps({"images": list(entries)})


@pytest.mark.parametrize(
    "name, file, content, message",
    [
        ("coco", "dataset_coco.json", '{"images": [', "cannot be read"),
        ("coco", "dataset_coco.json", "[]", 'no list "images"'),
        ("coco", "dataset_coco.json", karpathy({"split": "test"}), 'image 0: no "filename"'),
        ("coco", "dataset_coco.json", karpathy(entry(), entry(sentences="a")), "image 1: a list is missing"),
        ("coco", "dataset_coco.json", karpathy(entry(sentences=[{"raw": 3}])), "image 0: 3 is no caption"),
        ("coco", "dataset_coco.json", karpathy(entry(filepath="../../etc")), "image 0: .*leaves the folder"),
        ("coco", "dataset_coco.json", karpathy(entry(filepath="/etc")), "leaves the folder"),
        ("coco", "dataset_coco.json", karpathy(entry(filename="C:\\evil.jpg", filepath="")), "leaves the folder"),
        ("coco", "dataset_coco.json", karpathy(entry(), entry(filepath="train2014")), "image 1: .*choose one"),
        ("coco", "dataset_coco.json", karpathy(entry(split="train")), 'nothing of split "test"'),
        ("coco", "dataset_coco.json", karpathy(entry(sentences=[{"raw": "\ud800"}])), "not Unicode"),
        ("coco", "coco_karpathy_test.json", '{"image": 1}', "holds no list"),
        (
            "coco",
            "coco_karpathy_test.json",
            '[{"image": "a.jpg", "caption": ["a"]}, {"caption": ["a"]}]',
            'entry 1: no "image"',
        ),
        ("coco", "coco_karpathy_test.json", '[{"image": "../a.jpg", "caption": ["a"]}]', "leaves the folder"),
        ("coco", "coco_karpathy_test.json", '[{"image": "http://x/a.jpg", "caption": ["a"]}]', "is an address"),
        ("flickr30k", "flickr30k_test.json", '[{"image": "../../a.jpg", "caption": ["a"]}]', "leaves the folder"),
        ("visual-genome", "vg_caption.json", '[{"image": "/else/where.jpg", "caption": "a"}]', "leaves the folder"),
        ("visual-genome", "region_descriptions.json", '[{"id": "../2", "regions": []}]', "is no number"),
        ("sbu", "sbu-captions-all.json", '{"image_urls": ["http://x/a.jpg"], "captions": []}', "1 addresses and 0 captions"),
        ("sbu", "sbu-captions-all.json", '{"image_urls": ["http://x/.."], "captions": ["a"]}', "leaves the folder"),
        ("sbu", "SBU_captioned_photo_dataset_urls.txt", "http://x/a.jpg\n", "captions.txt is missing"),
        ("cc3m", "Train_GCC-training.tsv", "a caption\thttp://x\tand more\n", "line 1: 3 cells"),
        ("cc3m", "Train_GCC-training.tsv", b"caf\xe9\thttp://x\n", "line 1: not UTF-8"),
        ("clotho", "clotho_captions_evaluation.csv", "file_name,caption_1\na.wav,b\n", 'no "caption_2"'),
        ("clotho", "clotho_captions_evaluation.csv", 'file_name,caption_1\na.wav,"b\n', "check the quotes"),
        ("clotho", "clotho_captions_evaluation.csv", b"file_name\n\xff\n", "line 2: not UTF-8"),
        ("clotho", "clotho_captions_evaluation.csv", "file_name,caption_1\n../../a.wav,b\n", "leaves the folder"),
        ("audiocaps", "test.csv", "youtube_id,start_time,caption\na,1,b\n", 'no "audiocap_id"'),
        ("audiocaps", "test.csv", "audiocap_id,youtube_id,start_time,caption\n1,../a,1,b\n", "leaves the folder"),
        ("audiocaps", "test.csv", "audiocap_id,youtube_id,start_time,caption\n1,a/b,1,b\n", "no id of a video"),
        ("audiocaps", "test.csv", "audiocap_id,youtube_id,start_time,caption\n1,a,1,b,c\n", "5 cells under 4 columns"),
    ],
)
def test_a_damaged_list_is_named(tmp_path, name, file, content, message):
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    split = "train" if "test" not in {s for layout in DATASETS[name].layouts for s in layout.captions} else "test"
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        open_dataset(name, split, tmp_path)
    assert file.split(".")[0].replace("_urls", "") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("coko", "test", 'no data set "coko"; there are coco'),
        ("coco", "dev", 'coco has no split "dev"; there are test, train, val'),
        ("visual-genome", "test", "there are train"),
        ("coco+coco", "test", "twice"),
        ("coco+", "test", 'no data set ""'),
        ("coco+sbu", "val", 'sbu has no split "val"'),
    ],
)
def test_what_is_asked_for_has_to_exist(tmp_path, name, split, message):
    for ask in (open_dataset, lacks):
        with pytest.raises(FuseMixLiteError, match=message):
            ask(name, split, tmp_path)


# what is missing


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_missing_is_said_in_one_line(name, tmp_path, monkeypatch):
    record = DATASETS[name]
    line = lacks(name, "train", tmp_path)
    for told in (f"{name}: no captions", str(tmp_path), record.size, record.page, record.licence):
        assert told in line
    assert ("fusemix-lite data" in line) == bool(record.remotes) and record.by_hand in line and "\n" not in line
    with pytest.raises(FuseMixLiteError) as caught:
        open_dataset(name, "train", tmp_path)
    assert str(caught.value) == line
    monkeypatch.setenv("FUSEMIX_LITE_DATA", str(tmp_path))
    assert str(tmp_path / name) in lacks(name, "train")


@pytest.mark.parametrize("layout", [name for name in small.LAYOUTS if not name.endswith("shards")])
def test_captions_without_media_are_missing_something_too(layout, tmp_path):
    built = small.LAYOUTS[layout](tmp_path)
    for path in built.folder.rglob("*"):
        if path.suffix in (".jpg", ".wav", ".flac") or re.fullmatch(r"\d+_\d+", path.name):
            path.unlink()
    line = lacks(built.name, built.split, built.folder)
    assert f"{built.name}: no {'pictures' if built.media == 'image' else 'sounds'}" in line


def test_half_of_coco_is_not_its_training(tmp_path):
    """The training list begins with photos of val2014: these alone must not be taken for all, or train2014 is never fetched."""
    small.coco_lavis(tmp_path)
    assert lacks("coco", "train", tmp_path) is None
    shutil.rmtree(tmp_path / "images" / "train2014")
    assert "no pictures" in lacks("coco", "train", tmp_path)
    with pytest.raises(FuseMixLiteError, match="no pictures"):
        open_dataset("coco", "train", tmp_path)


def test_without_a_folder_one_is_asked_for(monkeypatch):
    with pytest.raises(FuseMixLiteError, match="set FUSEMIX_LITE_DATA"):
        lacks("coco", "train")


def test_the_variable_names_the_folder_of_all(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_DATA", str(tmp_path))
    built = small.coco_lavis(tmp_path / "coco")
    assert open_dataset("coco", "train").id == opened(built).id


# unions


def test_a_union_keeps_its_parts_apart(encoders, tmp_path):
    parts = [small.coco_lavis(tmp_path / "coco"), small.cc3m_shards(tmp_path / "cc3m"), small.sbu_urls(tmp_path / "sbu")]
    dataset = small.quiet(open_dataset, "coco+cc3m+sbu", "train", tmp_path)
    ids, values = dataset.fields("image")
    assert list(ids) == [f"{built.name}/{item}" for built in parts for item in built.items] and len(values) == len(ids)
    assert isinstance(values[0], Path) and callable(values[len(parts[0].items)]) and values[-1] == values[len(values) - 1]
    assert [value for value in values[1:3]] == [values[1], values[2]] and len(list(values)) == len(values)
    with pytest.raises(IndexError):
        values[len(values)]
    text_ids, texts = dataset.fields("text")
    assert len(texts) == sum(len(own) for built in parts for own in built.captions)
    assert texts[text_ids.index("cc3m/00000/000000000")] == small.ODD_TEXT
    pairs = small.quiet(
        LatentPairs.from_stores,
        *(small.quiet(extract, dataset, encoders[m], tmp_path / f"latents-{m}", progress=False) for m in ("image", "text")),
    )
    assert pairs.n_items == sum(len(built.items) - len(built.broken) for built in parts)
    assert dataset.id != small.quiet(open_dataset, "cc3m+coco+sbu", "train", tmp_path).id


def test_values_go_to_worker_processes(tmp_path):
    small.coco_lavis(tmp_path / "coco"), small.cc3m_shards(tmp_path / "cc3m")
    values = small.quiet(open_dataset, "coco+cc3m", "train", tmp_path).values
    copied = pickle.loads(pickle.dumps(values))
    assert len(pickle.dumps(values)) < 4000 and [v for v in copied] == [v for v in values]
    assert copied[len(values) - 1]() == small.jpeg(small.N - 1)


def test_a_union_says_everything_that_it_lacks(tmp_path):
    small.coco_lavis(tmp_path / "coco")
    line = lacks("coco+sbu+cc3m", "train", tmp_path)
    assert "coco:" not in line and "sbu: no captions" in line and "cc3m: no captions" in line and "\n" not in line
    with pytest.raises(FuseMixLiteError, match="sbu: no captions"):
        open_dataset("coco+sbu", "train", tmp_path)


def test_pictures_and_sounds_are_no_union(tmp_path):
    small.coco_lavis(tmp_path / "coco"), small.clotho(tmp_path / "clotho")
    with pytest.raises(FuseMixLiteError, match="not of one kind"):
        open_dataset("coco+clotho", "train", tmp_path)
    with pytest.raises(FuseMixLiteError, match="no field 'audio' in coco; there are image, text"):
        open_dataset("coco", "train", tmp_path / "coco").fields("audio")


# the records


@pytest.mark.parametrize("name", DATASETS)
def test_a_record_is_whole(name):
    record = DATASETS[name]
    assert record.media in ("image", "audio") and record.page.startswith("http") and record.layouts and record.overlaps
    assert record.remotes or record.by_hand, "where is it from?"
    assert not record.remotes or record.stated, "who states sizes and checksums?"
    assert set(record.splits) <= {"train", "val", "test"}
    for layout in record.layouts:
        assert set(layout.captions) <= {*record.splits, "all"} and all(layout.captions.values())
    names = [remote.name for remote in record.remotes]
    assert len(set(names)) == len(names) and all(set(remote.splits) & {"train", "val", "test"} for remote in record.remotes)
    for remote in record.remotes:
        assert remote.checksum is None or re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", remote.checksum)
        assert remote.url.startswith("http") and remote.unpack == remote.name.endswith((".zip", ".7z", ".tar.gz"))


def test_paths_are_made_when_they_are_asked_for(tmp_path):
    files = Files(tmp_path, ["a/b.jpg", "c.jpg"])
    assert files[-1] == tmp_path / "c.jpg" and list(files[:1]) == [tmp_path / "a/b.jpg"] and list(files.sizes()) == [None, None]
