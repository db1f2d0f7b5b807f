"""Latents that stay on disk: the same numbers as in memory, without the memory."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from test_pairs import toy_pairs

from fusemix_lite import FuseMixLiteError, LatentPairs, LatentStore, audit, fit, retrieval, rows, store
from fusemix_lite.rows import StoredRows, gather

QUICK = {"steps": 12, "batch_size": 8, "shared_dim": 5, "progress": False}


@pytest.fixture(params=[7, 1000], ids=["several shards", "one shard"])
def stored(tmp_path, monkeypatch, request):
    """Two stores, of 20 items and of 100 rows of them."""
    monkeypatch.setattr(store, "ROWS_PER_SHARD", request.param)
    pairs, ids = toy_pairs(), [f"item-{i}" for i in range(20)]
    x = LatentStore.write(tmp_path / "x", pairs.x.numpy().astype(np.float16), ids)
    y = LatentStore.write(tmp_path / "y", pairs.y.numpy().astype(np.float16), [ids[i] for i in pairs.owner])
    return x, y


@pytest.fixture
def both(stored):
    """The same pairs in memory and on disk."""
    return [LatentPairs.from_stores(*stored, names=("image", "text"), in_memory=in_memory) for in_memory in (True, False)]


def test_rows_are_counted_from_the_end_as_in_a_tensor(both):
    in_memory, on_disk = both
    for index in ([-1], [-20, 3, -2, 19], [0, -1]):
        assert torch.equal(on_disk.x[index].tensor(), in_memory.x[index])
    for index in ([20], [-21], [0, 99]):
        with pytest.raises(IndexError, match="of 20"):
            on_disk.x[index]
    assert len(on_disk.x[[]]) == 0


def same(in_memory, on_disk):
    assert isinstance(on_disk.x, StoredRows) and isinstance(on_disk.y, StoredRows)
    assert torch.equal(on_disk.x.tensor(), in_memory.x) and torch.equal(on_disk.y.tensor(), in_memory.y)
    assert torch.equal(on_disk.owner, in_memory.owner) and list(on_disk.item_ids) == list(in_memory.item_ids)
    assert (len(on_disk), on_disk.dims, repr(on_disk)) == (len(in_memory), in_memory.dims, repr(in_memory))


def check_gather(read):
    """Rows in any order, several times, neighbours and strangers, of one shard and of several."""
    generator = np.random.default_rng(0)
    for array in (ARRAYS["shards"], ARRAYS["one"]):
        for index in ([3], range(50), [49, 0, 7, 7, 8, 6, 21, 20], range(49, -1, -1), generator.integers(0, 50, 300), []):
            index = np.array(index, np.int64)
            found = read(array, index)
            assert found.dtype == np.float16 and found.shape == (len(index), 3)
            np.testing.assert_array_equal(found, ARRAYS["plain"][index])


ARRAYS = {}


@pytest.fixture(autouse=True, scope="module")
def arrays(tmp_path_factory):
    plain = np.arange(150, dtype=np.float16).reshape(50, 3)
    with pytest.MonkeyPatch.context() as patched:
        for name, size in (("one", 100), ("shards", 7)):
            patched.setattr(store, "ROWS_PER_SHARD", size)
            ARRAYS[name] = LatentStore.write(tmp_path_factory.mktemp(name) / "s", plain, [str(i) for i in range(50)]).array
    ARRAYS["plain"] = plain


def test_rows_are_read_from_files():
    check_gather(gather)
    check_gather(lambda array, index: np.asarray(array)[index])


BREAKS = {
    "in the order of the disk": lambda array, index: gather(array, np.sort(index)),
    "each row once": lambda array, index: gather(array, np.unique(index)),
    "next to it": lambda array, index: gather(array, (index + 1) % 50),
    "of the first shard": lambda array, index: gather(array, index % 7),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_breaks_of_reading_are_found(broken):
    with pytest.raises(AssertionError):
        check_gather(BREAKS[broken])


def test_without_positioned_reads_the_map_is_used(monkeypatch):
    monkeypatch.delattr(rows.os, "preadv", raising=False)
    check_gather(gather)


def test_a_shard_that_was_cut_is_an_error(tmp_path):
    opened = LatentStore.write(tmp_path / "s", np.ones((9, 4), np.float16), [str(i) for i in range(9)])
    file = tmp_path / "s" / "shard-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(
        FuseMixLiteError, match="shard-00000.safetensors is not as long as when it was opened: run fusemix-lite verify"
    ):
        gather(opened.array, np.array([0, 8]))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A store of eight shards, to break."""
    monkeypatch.setattr(store, "ROWS_PER_SHARD", 7)
    return LatentStore.write(tmp_path / "own", ARRAYS["plain"], [str(i) for i in range(50)])


READS = {
    "slice": lambda rows: rows[20:],
    "rows": lambda rows: rows[[3, 49]],
    "all": np.asarray,
    "gather": lambda rows: gather(rows, np.array([3, 49])),
}


@pytest.mark.parametrize("read", READS)
def test_shards_that_are_cut_under_an_open_store_are_errors(own, read):
    """And neither zeros nor the end of the process (SIGBUS)."""
    for file in own.path.glob("shard-*"):
        os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(FuseMixLiteError, match="shard-0000.* is not as long as when it was opened: run fusemix-lite verify"):
        READS[read](own.array)


def test_a_map_outlives_the_name_of_its_file(own):
    kept = own.array[:]
    for file in own.path.glob("shard-*"):
        file.unlink()
    np.testing.assert_array_equal(own.array[:], kept)
    with pytest.raises(FuseMixLiteError, match="cannot be read .No such file.* run fusemix-lite verify --repair"):
        gather(own.array, np.array([3]))


def test_a_read_that_comes_in_pieces_goes_on(monkeypatch):
    """One call gives no more than 2 GB, and may give less."""
    plain = os.preadv
    monkeypatch.setattr(rows.os, "preadv", lambda file, into, offset: plain(file, [into[0][:5]], offset))
    check_gather(gather)
    monkeypatch.setattr(rows.os, "preadv", lambda file, into, offset: 0)
    with pytest.raises(FuseMixLiteError, match="was cut while it was read"):
        gather(ARRAYS["one"], np.array([3]))


@pytest.mark.parametrize(
    "index",
    [slice(None), slice(3, 9), slice(9, 2, -3), [4, 0, 4], torch.tensor([7, 2]), torch.arange(20) % 3 == 0, np.arange(5)],
    ids=str,
)
def test_indexing_chooses_as_a_tensor_would_and_reads_nothing(both, monkeypatch, index):
    x, z = both[0].x, both[1].x
    monkeypatch.setattr(rows, "gather", None)
    chosen = z[index][[1, 0]]
    monkeypatch.undo()
    expected = torch.from_numpy(x.numpy()[index.numpy() if isinstance(index, torch.Tensor) else index].copy())
    assert torch.equal(chosen.tensor(), expected[[1, 0]]) and z[index].shape == tuple(expected.shape)
    assert torch.equal(z[index].index_select(0, torch.tensor([1, 1])), expected[[1, 1]])
    assert [len(tile) for tile in z.split(8)] == [8, 8, 4] and torch.equal(torch.cat(list(z.split(8))), x)
    with pytest.raises(ValueError, match="only rows"):
        z.index_select(1, torch.tensor([0]))


def test_parts_stay_on_disk(both):
    parts = [partial(LatentPairs.take, item_index=[5, 0, 19]), partial(LatentPairs.subset, n=7, seed=2), LatentPairs.shuffled]
    for part in parts:
        same(*map(part, both))
    fractions = {"train": 0.5, "val": 0.25}
    for name, part in both[1].split(fractions, 3).items():
        same(both[0].split(fractions, 3)[name], part.take(range(part.n_items)))
    for memory, disk in zip(both[0].per_item(), both[1].per_item(), strict=True):
        assert torch.equal(memory, disk)
    for read in (LatentPairs.loaded, LatentPairs.unit, partial(LatentPairs.mismatched, first=3)):
        memory, disk = read(both[0]), read(both[1]).loaded()
        assert torch.equal(memory.x, disk.x) and torch.equal(memory.y, disk.y)
    np.testing.assert_array_equal(np.asarray(both[1].x), both[0].x)
    memory, disk = (pairs.take([3, 4]).joined(pairs.take([9]), pairs) for pairs in both)
    same(memory, disk)
    assert torch.equal(both[0].joined(both[1]).x, torch.cat([both[0].x] * 2))


def test_parts_of_different_stores_are_not_joined(stored):
    one, other = (LatentPairs.from_stores(LatentStore.open(stored[0].path), stored[1], ("a", "b"), False) for _ in range(2))
    with pytest.raises(FuseMixLiteError, match="different stores on disk: join the stores by LatentStore.merge"):
        one.joined(other)


def test_stores_side_by_side(stored):
    x, y = stored
    memory, disk = (LatentPairs.from_stores([x, x], [y, y], ("a", "b"), in_memory=m) for m in (True, False))
    same(memory, disk)
    assert disk.dims == {"a": 16, "b": 12}


def test_rows_without_an_owner_are_dropped(stored, tmp_path):
    x = LatentStore.write(tmp_path / "few", np.asarray(stored[0].array)[3:9], stored[0].item_ids[3:9])
    for in_memory in (True, False):
        with pytest.warns(UserWarning, match="70 of 100 rows"):
            assert len(LatentPairs.from_stores(x, stored[1], ("a", "b"), in_memory)) == 30


@pytest.mark.parametrize(
    "options",
    [{}, {"augment": "none"}, {"standardize": True}, {"mask_negatives": True, "mix_probability": 0.5, "per": "pair"}],
    ids=str,
)
def test_fit_gives_the_same_model_bit_for_bit(both, options):
    memory, disk = (fit(pairs, pairs.subset(9), **QUICK, **options) for pairs in both)
    assert memory.history == disk.history and memory.best_step == disk.best_step
    for a, b in zip(memory.model.state_dict().values(), disk.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert retrieval(memory.model, both[0]) == retrieval(disk.model, both[1])


def test_statistics_of_many_tiles_are_those_of_one(both, monkeypatch):
    std, mean = torch.std_mean(both[0].y.double(), dim=0, correction=0)
    for numbers in (6, 42, 100):  # one row a tile, seven, sixteen
        monkeypatch.setattr(rows, "STATISTICS", numbers)
        found = both[1].y.std_mean()
        torch.testing.assert_close(found, (std.float(), mean.float()), rtol=1e-6, atol=1e-6)


def test_an_audit_does_not_look_at_pairs_on_disk(both):
    memory, disk = ({"train": pairs, "test": pairs.take([0, 1])} for pairs in both)
    assert len(audit(None, memory)) == 1 and audit(None, disk) == []


MEMORY = """
import resource, sys
import numpy as np, torch
from fusemix_lite import LatentPairs, LatentStore, fit

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

fit(LatentPairs(np.eye(64), np.eye(64)), steps=1, batch_size=8, depth=0, shared_dim=8, progress=False)  # libraries
before = peak()
x = LatentStore.open(sys.argv[1])
pairs = LatentPairs.from_stores(x, x, ("a", "b"), in_memory=False)
fit(pairs, steps=8, batch_size=256, depth=0, shared_dim=8, standardize=True, progress=False)
print((peak() - before) // 2**20)
"""


def test_millions_of_pairs_need_no_memory(tmp_path):
    """400 MB on disk would be 1.6 GB in memory, x and y in float32; statistics and batches of them take a tenth of that."""
    rng, dim, shards = np.random.default_rng(0), 1024, 100
    block = rng.normal(size=(2048, dim)).astype(np.float16)
    writer = store.LatentWriter(tmp_path / "x", store.LatentOrigin("noise", 2048 * shards, "a", "", "", ""))
    for number in range(shards):
        writer.write(number, block, [f"{number}/{row}" for row in range(2048)])
    writer.finish(shards)
    assert sum(file.stat().st_size for file in (tmp_path / "x").glob("shard-*")) > 400 * 2**20
    found = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "x"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 350
