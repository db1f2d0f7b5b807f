"""Arrays that somebody else made become pairs, or one line says why not."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusemix_lite import FuseMixLiteError, LatentStore, load_array, load_latent_pairs
from fusemix_lite.store import LatentOrigin

X = np.arange(12, dtype=np.float32).reshape(4, 3)  # item i is [3i, 3i+1, 3i+2]
OWNER = np.array([0, 0, 1, 2, 3, 3], np.int32)
Y = np.stack([OWNER, np.arange(6)], 1).astype(np.float16)
IDS = ["a", "b", "c", "d"]


@pytest.fixture
def pack(tmp_path):
    arrays = {"x": X, "y": Y, "owner": OWNER}
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "pack.safetensors")
    return f"{tmp_path / 'pack.safetensors'}"


def write_store(folder, rows, ids, modality):
    return LatentStore.write(folder, rows, ids, LatentOrigin("world", len(ids), modality, "e", "r", "p")).path


def write_json(file, content):
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_every_kind_of_spec_gives_the_array(tmp_path, pack):
    np.save(tmp_path / "x.npy", X)
    save_file({"only": torch.from_numpy(X)}, tmp_path / "one.safetensors")
    store = write_store(tmp_path / "store", X, IDS, "image")
    for spec in (f"{pack}:x", tmp_path / "x.npy", tmp_path / "one.safetensors", store, str(store)):
        array = load_array(spec)
        assert isinstance(array, np.ndarray) and array.dtype == np.float32
        np.testing.assert_array_equal(array, X)
    assert load_array(f"{pack}:y").dtype == np.float16 and load_array(f"{pack}:owner").dtype == np.int32


def test_bfloat16_becomes_float32(tmp_path):
    save_file({"x": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    array = load_array(tmp_path / "x.safetensors")
    assert array.dtype == np.float32 and array.tolist() == [[1.5, -2.0]]


@pytest.mark.skipif(os.name == "nt", reason="no colons in names there")
def test_colons_in_paths_are_no_keys(tmp_path):
    folder = tmp_path / "12:30"
    folder.mkdir()
    save_file({"k:1": torch.from_numpy(X), "z": torch.zeros(1)}, folder / "x.safetensors")
    np.testing.assert_array_equal(load_array(f"{folder}/x.safetensors:k:1"), X)
    with pytest.raises(FuseMixLiteError, match="12:30/x.safetensors holds several arrays"):
        load_array(folder / "x.safetensors")
    with pytest.raises(FuseMixLiteError, match=r"^C:\\x.safetensors does not exist"):
        load_array("C:\\x.safetensors:k")


def break_off(file):
    file.write_bytes(file.read_bytes()[:-5])


def test_what_cannot_be_read_is_named_with_a_remedy(tmp_path, pack):
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.save(tmp_path / "cut.npy", X)
    break_off(tmp_path / "cut.npy")
    with open(tmp_path / "zip.npy", "wb") as opened:
        np.savez(opened, x=X, y=Y)
    save_file({"x": torch.from_numpy(X)}, tmp_path / "cut.safetensors")
    break_off(tmp_path / "cut.safetensors")
    save_file({}, tmp_path / "none.safetensors")
    torch.save({"x": X}, tmp_path / "x.pt")
    (tmp_path / "no store").mkdir()
    cases = {
        f"{pack}:z": 'pack.safetensors holds no "z": give .* one of owner, x, y$',
        pack: "pack.safetensors holds several arrays: give .* one of owner, x, y$",
        "none.safetensors": "none.safetensors holds no array",
        "nowhere.npy": "nowhere.npy does not exist: give FILE.safetensors:KEY",
        "nowhere.safetensors:x": "nowhere.safetensors does not exist",
        "pickled.npy": r"pickled.npy cannot be read as .npy .*allow_pickle=False",
        "words.npy": "words.npy holds <U1, not numbers",
        "cut.npy": "cut.npy cannot be read",
        "zip.npy": "zip.npy is an .npz archive",
        "cut.safetensors": "cut.safetensors cannot be read as safetensors",
        "x.pt": "x.pt is of an unknown kind: give FILE.safetensors:KEY, FILE.npy or",
        "no store": "manifest.json is missing",
    }
    for spec, message in cases.items():
        with pytest.raises(FuseMixLiteError, match=message) as caught:
            load_array(tmp_path / spec)
        assert "\n" not in str(caught.value)


def test_pairs_without_a_split(pack):
    pairs = load_latent_pairs(f"{pack}:x", f"{pack}:y", f"{pack}:owner")["all"]
    assert pairs.names == ("image", "text") and pairs.item_ids is None
    assert pairs.owner.tolist() == OWNER.tolist()
    np.testing.assert_array_equal(pairs.x, X)
    named = load_latent_pairs(f"{pack}:x", f"{pack}:x", names=("audio", "text"))["all"]
    assert named.names == ("audio", "text") and named.owner.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("as_object", [False, True])
def test_a_split_by_place(tmp_path, pack, as_object):
    parts = ["test", "train", "train", "test"]
    content = {"split": parts, "items": IDS, "captions": 5} if as_object else parts
    split = write_json(tmp_path / "split.json", content)
    pairs = load_latent_pairs(f"{pack}:x", f"{pack}:y", f"{pack}:owner", split)
    assert list(pairs) == ["test", "train"]
    assert pairs["test"].x[:, 0].tolist() == [0, 9] and pairs["train"].x[:, 0].tolist() == [3, 6]
    for part in pairs.values():  # y knows which x it was made for
        assert (part.x[part.owner, 0] / 3).tolist() == part.y[:, 0].tolist()
    assert pairs["test"].item_ids == (("a", "d") if as_object else None)


def test_stores_are_joined_by_item_id_and_so_is_their_split(tmp_path):
    x = write_store(tmp_path / "x", X[[3, 0, 1]], ["d", "a", "b"], "audio")  # c could not be encoded
    y = write_store(tmp_path / "y", Y, [IDS[i] for i in OWNER], "text")
    split = write_json(tmp_path / "split.json", {"items": IDS, "split": ["train", "test", "train", "train"]})
    with pytest.warns(UserWarning, match="1 of 6 rows"):
        pairs = load_latent_pairs(x, y, split=split)
    assert pairs["train"].item_ids == ("d", "a") and pairs["test"].item_ids == ("b",)
    assert pairs["train"].names == ("audio", "text")
    assert pairs["train"].y.tolist() == [[0, 0], [0, 1], [3, 4], [3, 5]]
    assert pairs["train"].owner.tolist() == [1, 1, 0, 0]
    write_json(split, ["train"] * 4)
    with pytest.warns(UserWarning), pytest.raises(FuseMixLiteError, match='splits 4 items, but x has 3 rows: .* "items"'):
        load_latent_pairs(x, y, split=split)
    write_json(split, {"items": IDS[:2], "split": ["train", "test"]})
    with pytest.warns(UserWarning), pytest.raises(FuseMixLiteError, match='no part for 1 items of x, "d" among them'):
        load_latent_pairs(x, y, split=split)


def test_a_store_with_an_owner_keeps_its_item_ids(tmp_path, pack):
    x = write_store(tmp_path / "x", X, IDS, "")
    pairs = load_latent_pairs(x, f"{pack}:y", f"{pack}:owner")["all"]
    assert pairs.item_ids == tuple(IDS) and len(pairs) == 6
    y = write_store(tmp_path / "y", Y, [IDS[i] for i in OWNER], "")
    assert load_latent_pairs(x, y)["all"].names == ("image", "text")  # stores that do not say


def test_a_part_without_pairs_is_left_out(tmp_path, pack):
    split = write_json(tmp_path / "split.json", ["train", "unused", "train", "train"])
    np.save(tmp_path / "owner.npy", np.array([0, 0, 2, 2, 3, 3]))
    with pytest.warns(UserWarning, match='part "unused" left out: none of its 1 items has a text'):
        assert list(load_latent_pairs(f"{pack}:x", f"{pack}:y", tmp_path / "owner.npy", split)) == ["train"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "holds no split"),
        ('{"split": {"train": [0]}}', "holds no split"),
        ("[]", "holds no split"),
        ('["train", "train", 3, "test"]', "holds no split"),
        ('["train", "test"]', "splits 2 items, but x has 4 rows"),
        ('{"split": ["a", "a", "b", "b"], "items": ["x"]}', '"items" must hold one name for each of the 4'),
    ],
)
def test_a_split_that_does_not_fit(tmp_path, pack, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(FuseMixLiteError, match=f"split.json.*{message}"):
        load_latent_pairs(f"{pack}:x", f"{pack}:y", f"{pack}:owner", tmp_path / "split.json")
    with pytest.raises(FuseMixLiteError, match="nowhere.json is missing"):
        load_latent_pairs(f"{pack}:x", f"{pack}:y", f"{pack}:owner", tmp_path / "nowhere.json")


def test_an_owner_of_floats_is_refused(tmp_path, pack):
    np.save(tmp_path / "owner.npy", OWNER.astype(float))
    with pytest.raises(FuseMixLiteError, match="give 6 integers"):
        load_latent_pairs(f"{pack}:x", f"{pack}:y", tmp_path / "owner.npy")
