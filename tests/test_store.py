import json
import os

import numpy as np
import pytest

from fusemix_lite import FuseMixLiteError, LatentStore, store
from fusemix_lite.store import LatentOrigin, LatentWriter, ShardedRows

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
    with pytest.raises(FuseMixLiteError, match="shard-00002.safetensors is not what was written.*extract again"):
        opened.verify()
    flip_bit(folder / "shard-00002.safetensors")
    LatentStore.open(folder).verify()
    rewrite_manifest(folder, item_ids=IDS[::-1])
    with pytest.raises(FuseMixLiteError, match="manifest.json and the shards disagree on item ids"):
        LatentStore.open(folder).verify()


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
    assert "\n" not in str(caught.value) and "extract again" in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in WRONG_ENTRIES for value in WRONG_ENTRIES[key]])
def test_a_manifest_that_lies_is_refused(folder, key, value):
    rewrite_manifest(folder, **{key: value})
    with pytest.raises(FuseMixLiteError, match="extract again"):
        LatentStore.open(folder)


@pytest.mark.parametrize("key", ["shape", "dtype", "count", "item_ids", "shards", "encoder_id", "preprocessing_hash"])
def test_a_manifest_without_an_entry_is_refused(folder, key):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FuseMixLiteError, match=f"manifest.json is broken .*{key}"):
        LatentStore.open(folder)
