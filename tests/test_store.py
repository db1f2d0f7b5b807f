import json
import os
from dataclasses import replace

import numpy as np
import pytest

from fusemix_lite import FuseMixLiteError, LatentStore, store
from fusemix_lite.store import ItemIds, LatentOrigin, LatentWriter, ShardedRows

RNG = np.random.default_rng(0)
LATENTS = RNG.normal(size=(10, 4)).astype(np.float32)
IDS = [f"item-{row // 2}" for row in range(10)]  # two captions an item
ORIGIN = LatentOrigin("world", 10, "text", "lite-text-a", "0123456789abcdef", "fedcba")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A store of three shards with 4, 4 and 2 rows."""
    monkeypatch.setattr(store, "ROWS_PER_SHARD", 4)
    LatentStore.write(tmp_path / "store", LATENTS, IDS, ORIGIN)
    return tmp_path / "store"


def rewrite_manifest(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_store_gives_back_what_was_written(folder):
    opened = LatentStore.open(str(folder))
    assert len(opened) == 10 and opened.dim == 4 and opened.array.shape == (10, 4)
    assert opened.item_ids == IDS and opened.origin == ORIGIN and opened.quarantine == []
    np.testing.assert_array_equal(np.asarray(opened.array), LATENTS)
    opened.verify()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["shape"], manifest["dtype"], manifest["count"]) == ([10, 4], "float32", 10)
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 4, 2]
    assert manifest["encoder_revision"] == "0123456789abcdef" and manifest["dataset_id"] == "world"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "quarantine.json", *(f"shard-0000{number}.safetensors" for number in range(3))
    ]  # fmt: skip


def test_a_store_is_shown_on_one_line(tmp_path, folder):
    """Not with its manifest, which names every item."""
    assert repr(LatentStore.open(folder)) == f"LatentStore({folder}: 10 x 4, text by lite-text-a)"
    assert repr(LatentStore.write(tmp_path / "own", LATENTS, IDS)) == f"LatentStore({tmp_path / 'own'}: 10 x 4)"


def test_shards_are_plain_safetensors(folder):
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(folder / "shard-00001.safetensors")["latents"], LATENTS[4:8])


def test_rows_are_mapped_and_read_only(tmp_path, folder):
    one = LatentStore.write(tmp_path / "one", LATENTS[:3].astype(np.float16), IDS[:3]).array
    assert isinstance(one, np.memmap) and one.dtype == np.float16
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 0
    assert all(isinstance(shard, np.memmap) for shard in LatentStore.open(folder).array.shards)


@pytest.mark.parametrize(
    "index",
    [0, -1, slice(None), slice(3, 9), slice(9, 2, -3), slice(4, 4), [7, 0, 7, -2], np.array([[9, 1], [4, 3]]),
     LATENTS[:, 0] > 0, np.zeros(10, bool)],
    ids=str,
)  # fmt: skip
def test_shards_are_indexed_like_one_array(folder, index):
    rows = LatentStore.open(folder).array
    assert isinstance(rows, ShardedRows)
    np.testing.assert_array_equal(rows[index], LATENTS[index])
    assert rows[index].shape == LATENTS[index].shape and rows[index].dtype == rows.dtype == np.float32


def test_shards_are_one_array_to_numpy(folder):
    rows = LatentStore.open(folder).array
    np.testing.assert_array_equal(np.stack(list(rows)), LATENTS)
    np.testing.assert_allclose(np.mean(rows, axis=0), LATENTS.mean(0))
    assert np.asarray(rows, dtype=np.float64).dtype == np.float64
    for index in (10, -11, [0, 10]):
        with pytest.raises(IndexError):
            rows[index]


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.where(np.arange(40).reshape(10, 4) == 23, np.nan, LATENTS), r"item-2 \(row 1 of the shard\) is not finite"),
        (LATENTS[:9], r"shape \(9, 4\) do not fit 10 item ids"),
        (LATENTS[0], r"shape \(4,\) do not fit"),
        (LATENTS.astype(np.int64), "stored as float16 or float32, not int64"),
        (LATENTS[:0], "do not fit"),
    ],
)
def test_bad_latents_are_refused(tmp_path, monkeypatch, latents, message):
    monkeypatch.setattr(store, "ROWS_PER_SHARD", 4)
    latents = latents if latents.dtype == np.int64 else latents.astype(np.float32)
    with pytest.raises(FuseMixLiteError, match=message):
        LatentStore.write(tmp_path / "store", latents, IDS)


def test_overflow_and_an_empty_store_are_refused(tmp_path):
    writer = LatentWriter(tmp_path / "store", ORIGIN, "float16")
    with pytest.raises(FuseMixLiteError, match="item-0 .* overflows float16: use float32"):
        writer.write(0, 1e6 * np.ones((1, 4), np.float32), IDS[:1])
    reason = {"index": 0, "item_id": "item-0", "path": "a.png", "reason": "truncated"}
    writer.write(0, np.empty((0, 4), np.float32), [], [reason])
    with pytest.raises(FuseMixLiteError, match="no latent to store, first of all item-0: truncated"):
        writer.finish(1)


def test_a_store_is_written_in_any_order_and_finished_later(tmp_path):
    LatentWriter(tmp_path, ORIGIN, "float32").write(1, LATENTS[6:], IDS[6:])
    (tmp_path / "shard-00000.safetensors.tmp").write_bytes(b"a process died here")
    with pytest.raises(FuseMixLiteError, match="manifest.json is missing: no latent store, or not finished"):
        LatentStore.open(tmp_path)
    writer = LatentWriter(tmp_path, ORIGIN, "float32")
    assert not writer.has(0) and writer.has(1)
    with pytest.raises(FuseMixLiteError, match="shard-00000.safetensors is missing"):
        writer.finish(2)
    writer.write(0, LATENTS[:6], IDS[:6])
    np.testing.assert_array_equal(np.asarray(writer.finish(2).array), LATENTS)


def test_a_damaged_shard_of_an_unfinished_store_counts_as_missing(tmp_path):
    LatentWriter(tmp_path, ORIGIN, "float32").write(0, LATENTS, IDS)
    os.truncate(tmp_path / "shard-00000.safetensors", 300)
    assert not LatentWriter(tmp_path, ORIGIN, "float32").has(0)


def test_a_writer_refuses_a_folder_in_use(tmp_path, folder):
    with pytest.raises(FuseMixLiteError, match="in use .*manifest.json"):
        LatentWriter(folder, ORIGIN)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FuseMixLiteError, match="in use .*holiday.jpg"):
        LatentWriter(tmp_path, ORIGIN)
    (folder / "manifest.json").unlink()
    assert LatentWriter(folder, ORIGIN, "float32").has(2)
    other = LatentOrigin("world", 10, "text", "lite-text-b", "", "")
    for origin, dtype in ((other, "float32"), (ORIGIN, "float16")):
        with pytest.raises(FuseMixLiteError, match="shard-00000.safetensors does not hold 10 items of world by lite"):
            LatentWriter(folder, origin, dtype)


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_verify_finds_a_flipped_bit_and_a_stale_manifest(folder):
    flip_bit(folder / "shard-00002.safetensors")
    opened = LatentStore.open(folder)  # the size is right: only the bytes tell
    with pytest.raises(FuseMixLiteError, match="shard-00002.safetensors is not what was written.*verify --repair"):
        opened.verify()
    flip_bit(folder / "shard-00002.safetensors")
    LatentStore.open(folder).verify()
    rewrite_manifest(folder, item_ids=IDS[::-1])
    with pytest.raises(FuseMixLiteError, match="shard-00000.safetensors holds other latents than the manifest says"):
        LatentStore.open(folder)
    with pytest.raises(FuseMixLiteError, match="manifest.json does not say what the shards hold"):
        opened.verify()


SHARD = "shard-00001.safetensors"
FAULTS = {
    "no folder": (lambda f: f.rename(f.with_name("elsewhere")), "manifest.json is missing"),
    "no shard": (lambda f: (f / SHARD).unlink(), f"{SHARD} is missing"),
    "shard cut": (lambda f: os.truncate(f / SHARD, (f / SHARD).stat().st_size - 1), f"{SHARD} is broken .*truncated"),
    "shard empty": (lambda f: os.truncate(f / SHARD, 0), f"{SHARD} is broken"),
    "header cut": (lambda f: os.truncate(f / SHARD, 20), f"{SHARD} is broken .*cut in its header"),
    "shard a link": (lambda f: (f / SHARD).rename(f / "x") and (f / SHARD).symlink_to(f / "x"), "or a link"),
    "other shard": (lambda f: (f / "shard-00002.safetensors").replace(f / SHARD), r"\(2, 4\), not float32 \(4, 4\)"),
    "manifest cut": (lambda f: os.truncate(f / "manifest.json", 100), "manifest.json cannot be read"),
    "manifest a list": (lambda f: (f / "manifest.json").write_text("[]"), "is not of format"),
    "manifest no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json cannot be read"),
    "manifest deep": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json cannot be read"),
    "other version": (lambda f: rewrite_manifest(f, version=3), "is not of format"),
    "ids in version 2": (lambda f: rewrite_manifest(f, version=2), "broken .*item ids in a manifest of version 2"),
}
WRONG_ENTRIES = {
    "shape": [[10, 5], [11, 4], [10], "10", [10, -4], [10, 4.0], [True, 4], None],
    "dtype": ["float16", "object", 3, None],
    "count": [9, None],
    "item_ids": [IDS[1:], list(range(10)), 10, None],
    "dataset_id": [],
    "shards": [
        [],
        None,
        [{}],
        *[
            [{"name": name, "rows": 10, "sha256": ""}]
            for name in ("../shard-00000.safetensors", "/etc/passwd", "..", "", 3, "shard-00001.safetensors")
        ],
        [{"name": "shard-00000.safetensors", "rows": 10, "sha256": ""}],
        [{"name": "shard-00000.safetensors", "rows": 10**30, "sha256": ""}],
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_at_opening(folder, fault):
    breaks, message = FAULTS[fault]
    breaks(folder)
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        LatentStore.open(folder)
    assert "\n" not in str(caught.value)
    assert ("extract again to go on" if fault == "no folder" else f"fusemix-lite verify --repair {folder}") in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in WRONG_ENTRIES for value in WRONG_ENTRIES[key]])
def test_a_manifest_that_lies_is_refused(folder, key, value):
    rewrite_manifest(folder, **{key: value})
    with pytest.raises(FuseMixLiteError, match="verify --repair"):
        LatentStore.open(folder)


@pytest.mark.parametrize("key", ["shape", "dtype", "count", "item_ids", "shards", "encoder_id", "preprocessing_hash"])
def test_a_manifest_without_an_entry_is_refused(folder, key):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FuseMixLiteError, match=f"manifest.json is broken .*{key}"):
        LatentStore.open(folder)


# --- millions of rows, and stores of stores -----------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A store that is too large for ids in its manifest."""
    monkeypatch.setattr(store, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(store, "IDS_IN_MANIFEST", 9)
    return LatentStore.write(tmp_path / "large", LATENTS, IDS, ORIGIN)


def test_ids_of_a_large_store_stay_in_its_shards(large, monkeypatch):
    assert large.manifest["version"] == 2 and "item_ids" not in large.manifest
    assert isinstance(large.item_ids, ItemIds) and large.item_ids == IDS and list(large.item_ids) == IDS
    large.verify()
    monkeypatch.setattr(store, "IDS_IN_MANIFEST", 10)
    small = LatentStore.write(large.path.with_name("small"), LATENTS, IDS, ORIGIN)
    assert small.manifest["version"] == 1 and small.item_ids == IDS
    for file in large.path.glob("shard-*"):
        assert file.read_bytes() == (small.path / file.name).read_bytes()
    reads = []
    plain = store.open_shard
    monkeypatch.setattr(store, "open_shard", lambda file: reads.append(file.name) or plain(file))
    opened = LatentStore.open(large.path)
    reads.clear()
    assert opened.array[7].tolist() == LATENTS[7].tolist() and reads == []  # opened and used without reading an id
    assert opened.item_ids[7] == opened.item_ids[-3] == IDS[7] and len(reads) == 3


def test_a_large_store_whose_ids_are_no_strings_is_refused(large):
    file = large.path / "shard-00001.safetensors"
    file.write_bytes(file.read_bytes().replace(b'\\"item-2\\", ', b'          2, '))
    with pytest.raises(FuseMixLiteError, match="shard-00001.safetensors is broken .*item ids must be strings"):
        LatentStore.open(large.path)


def test_item_ids_are_a_list_to_look_at():
    names = ["a", "", "ü/猫.jpg", "\ud800", "a"]
    ids = ItemIds([names[:2], [], names[2:]])
    assert len(ids) == 5 and list(ids) == names == ids[:] and ids[-1] == "a" and ids[1:3] == names[1:3]
    assert ids[[2, 0, 2]] == ids[np.array([2, 0, 2])] == [names[2], "a", names[2]]
    assert ids == names == ids and ids == ItemIds([names]) and ids != names[:-1] and ids != [*names[:-1], "b"]
    assert ItemIds([["ab", "c"]]) != ItemIds([["a", "bc"]]) and ids != "aü" and "猫" not in ids and "" in ids
    assert ids.index("ü/猫.jpg") == 2 and repr(ItemIds([])) == "ItemIds(0)" and "5: 'a'" in repr(ids)
    with pytest.raises(IndexError):
        ids[5]


@pytest.fixture
def parts(tmp_path, folder):
    """Two stores of one encoder, of different data sets; of the second one item was left out."""
    origin = LatentOrigin("sea", 5, "text", "lite-text-a", "0123456789abcdef", "fedcba")
    writer = LatentWriter(tmp_path / "sea", origin, "float32")
    left_out = {"index": 3, "item_id": "item-3", "path": None, "reason": "empty"}
    writer.write(0, LATENTS[:4] + 1, ["item-0", "item-1", "item-2", "item-4"], [left_out])
    return LatentStore.open(folder), writer.finish(1)


def check_merged(merged, prefixes=("", "sea/")):
    np.testing.assert_array_equal(np.asarray(merged.array), np.concatenate([LATENTS, LATENTS[:4] + 1]))
    sea = ["item-0", "item-1", "item-2", "item-4"]
    assert list(merged.item_ids) == [prefixes[0] + item for item in IDS] + [prefixes[1] + item for item in sea]
    assert merged.origin.items == 15 and merged.origin.dataset_id == f"{prefixes[0]}world+{prefixes[1]}sea"
    left_out = {"index": 13, "item_id": f"{prefixes[1]}item-3", "path": None, "reason": "empty"}
    assert merged.quarantine == [left_out] and merged.manifest["quarantined"] == 1
    merged.verify()


def test_stores_of_one_encoder_are_merged(tmp_path, parts):
    merged = LatentStore.merge(parts, tmp_path / "merged", ["", "sea/"])
    check_merged(merged)
    before = {file.name: file.stat().st_mtime_ns for file in merged.path.iterdir()}
    LatentStore.merge([str(part.path) for part in parts], tmp_path / "merged", ["", "sea/"])
    assert {file.name: file.stat().st_mtime_ns for file in merged.path.iterdir()} == before
    with pytest.raises(FuseMixLiteError, match="holds 15 items of world.sea/sea .* choose another folder"):
        LatentStore.merge(parts, tmp_path / "merged", ["a/", "b/"])
    (merged.path / "manifest.json").unlink()  # as if it had died
    (merged.path / "shard-00001.safetensors").unlink()
    check_merged(LatentStore.merge(parts, tmp_path / "merged", ["", "sea/"]))
    again = LatentStore.merge([merged, merged], tmp_path / "again", ["one/", "two/"])
    assert len(again) == 28 and again.quarantine[1]["index"] == 28 and again.item_ids[14] == "two/item-0"


def test_stores_that_do_not_go_together_are_not_merged(tmp_path, parts):
    world, sea = parts
    for given, prefixes, message in (
        (parts, None, f"{world.path} and {sea.path} share the item id 'item-0': give prefixes"),
        (parts, ["a", "a"], "share the item id 'aitem-0'"),
        (parts, ["a"], "2 stores, 1 prefixes"),
        ([world], None, "1 stores"),
    ):
        with pytest.raises(FuseMixLiteError, match=message):
            LatentStore.merge(given, tmp_path / "out", prefixes)
    others = {
        "encoder_id lite-text-b": (replace(ORIGIN, encoder_id="lite-text-b"), LATENTS),
        "encoder_revision ffff": (replace(ORIGIN, encoder_revision="ffff"), LATENTS),
        "preprocessing_hash eeee": (replace(ORIGIN, preprocessing_hash="eeee"), LATENTS),
        "precision bf16": (replace(ORIGIN, precision="bf16"), LATENTS),
        "dimension 3": (ORIGIN, LATENTS[:, :3]),
        "dtype float16": (ORIGIN, LATENTS.astype(np.float16)),
    }
    for number, (what, (origin, latents)) in enumerate(others.items()):
        other = LatentStore.write(tmp_path / f"other-{number}", latents, [f"new-{i}" for i in range(10)], origin)
        key, value = what.split()
        message = rf"{world.path} is by lite-text-a \({key} .*{other.path} is by lite-text-[ab] \({key} {value}"
        with pytest.raises(FuseMixLiteError, match=message):
            LatentStore.merge([world, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["prefix of the other", "rows of the first", "not merged"])
def test_breaks_of_merging_are_found(tmp_path, parts, broken):
    if broken == "prefix of the other":
        merged = LatentStore.merge(parts, tmp_path / "merged", ["sea/", ""])
    elif broken == "rows of the first":
        merged = LatentStore.merge([parts[0], parts[0]], tmp_path / "merged", ["", "sea/"])
    else:
        merged = parts[0]
    with pytest.raises(AssertionError):
        check_merged(merged)
