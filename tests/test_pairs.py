"""Pairs stay pairs: through joining, splitting, subsets and shuffling."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fusemix_lite import FuseMixLiteError, LatentPairs
from fusemix_lite.rows import StoredRows


def toy_pairs(items=20, captions=5, dims=(8, 6), noise=0.1, seed=0, **options):
    """Two linear views of the same hidden factors, `captions` y rows to an item."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    views = [torch.randn(4, d, generator=torch.Generator().manual_seed(d)) for d in dims]  # the same for every seed
    factors, owner = draw(items, 4), torch.arange(items).repeat_interleave(captions)
    x = factors @ views[0] + noise * draw(items, dims[0])
    y = factors[owner] @ views[1] + noise * draw(len(owner), dims[1])
    return LatentPairs(x, y, owner, **options)


def on_disk(pairs, folder):
    """The same pairs, read from files in a folder."""
    for name in "xy":
        np.save(folder / f"{name}.npy", getattr(pairs, name).numpy())
    stored = [StoredRows([np.load(folder / f"{name}.npy", mmap_mode="r")]) for name in "xy"]
    return LatentPairs(*stored, pairs.owner)


def numbered(items=10, captions=3):
    """Latents that tell who they are: x row i is [i], its y rows are [i, 0..captions-1]."""
    owner = torch.arange(items).repeat_interleave(captions)
    y = torch.stack([owner, torch.arange(len(owner)) % captions], 1)
    return LatentPairs(torch.arange(items)[:, None], y, owner, item_ids=[f"item-{i}" for i in range(items)])


def assert_pairs_match(pairs):
    assert torch.equal(pairs.x[pairs.owner, 0], pairs.y[:, 0])
    assert [f"item-{int(i)}" for i in pairs.x[:, 0]] == list(pairs.item_ids)


def store(array, item_ids, modality="image"):
    array = np.array(array, np.float16)
    array.flags.writeable = False  # as a memory-mapped one
    return SimpleNamespace(array=array, item_ids=item_ids, path="store", origin=SimpleNamespace(modality=modality))


def test_attributes():
    pairs = LatentPairs(np.ones((3, 2), np.float16), [[1.0], [2.0]], np.array([2, 0], np.int32), ("audio", "text"))
    assert (len(pairs), pairs.n_items, pairs.names, pairs.dims) == (2, 3, ("audio", "text"), {"audio": 2, "text": 1})
    assert pairs.x.dtype == pairs.y.dtype == torch.float32 and pairs.owner.dtype == torch.int64
    assert repr(pairs) == "LatentPairs(audio: 3 x 2, text: 2 x 1)"
    assert torch.equal(LatentPairs(torch.ones(3, 2), torch.ones(3, 4)).owner, torch.arange(3))


def test_take_keeps_an_item_together():
    pairs = numbered().take([7, 2])
    assert pairs.x[:, 0].tolist() == [7, 2]
    assert pairs.y.tolist() == [[2, 0], [2, 1], [2, 2], [7, 0], [7, 1], [7, 2]]
    assert pairs.owner.tolist() == [1, 1, 1, 0, 0, 0]
    assert_pairs_match(pairs)


def test_split_is_by_item_and_loses_none():
    pairs = numbered(items=50)
    parts = pairs.split({"train": 0.8, "val": 0.1, "test": 0.1}, seed=1)
    assert {name: part.n_items for name, part in parts.items()} == {"train": 40, "val": 5, "test": 5}
    assert sorted(sum((part.x[:, 0].tolist() for part in parts.values()), [])) == list(range(50))
    for part in parts.values():
        assert len(part) == 3 * part.n_items
        assert_pairs_match(part)
    again, other = (pairs.split({"train": 0.8}, seed=seed)["train"].x for seed in (1, 2))
    assert torch.equal(again, parts["train"].x) and not torch.equal(other, again)


def test_subsets_are_nested():
    pairs = numbered()
    small, large = pairs.subset(3, seed=5), pairs.subset(6, seed=5)
    assert torch.equal(small.x, large.x[:3])
    assert len(small) == 9
    assert_pairs_match(small)


def test_shuffled_pairs_never_match():
    pairs = numbered()
    for seed in range(20):
        null = pairs.shuffled(seed)
        assert (null.x[null.owner, 0] != null.y[:, 0]).all()
        assert torch.equal(null.owner.bincount(), pairs.owner.bincount())  # captions still come in their groups
    assert not torch.equal(pairs.shuffled(0).owner, pairs.shuffled(1).owner)


def test_mismatched_second_parts_belong_to_other_items():
    pairs = numbered()
    wide = LatentPairs(torch.cat([pairs.x, pairs.x], dim=1), pairs.y, pairs.owner)
    width = pairs.x.shape[1]
    mixed = wide.mismatched(width, seed=3)
    assert torch.equal(mixed.x[:, :width], pairs.x) and torch.equal(mixed.y, pairs.y)
    assert not (mixed.x[:, width:] == pairs.x).all(1).any()
    assert torch.equal(mixed.x[:, width:].sort(0).values, pairs.x.sort(0).values)  # all are there, elsewhere
    for first in (0, 2 * width):
        with pytest.raises(FuseMixLiteError, match="mismatched"):
            wide.mismatched(first)


def test_unit_latents_keep_their_direction():
    pairs = toy_pairs()
    unit = pairs.unit()
    for z, u in ((pairs.x, unit.x), (pairs.y, unit.y)):
        assert torch.allclose(u.norm(dim=1), torch.ones(len(u))) and torch.allclose(u * z.norm(dim=1, keepdim=True), z)
    assert torch.equal(unit.owner, pairs.owner)


def test_per_item_averages_the_rows_of_an_item():
    pairs = LatentPairs([[1.0], [2.0], [3.0]], [[4.0], [6.0], [9.0]], [2, 2, 0])
    x, y = pairs.per_item()
    assert x.tolist() == [[1.0], [3.0]] and y.tolist() == [[9.0], [5.0]] and y.dtype == torch.float64


def test_joined_parts_are_the_whole():
    pairs = numbered(9)
    parts = [pairs.take(range(2)), pairs.take(range(2, 3)), pairs.take(range(3, 9))]
    whole = parts[0].joined(*parts[1:])
    assert_pairs_match(whole)
    assert torch.equal(whole.x, pairs.x) and torch.equal(whole.owner, pairs.owner) and whole.item_ids == pairs.item_ids
    assert torch.equal(pairs.joined().x, pairs.x)
    with pytest.raises(FuseMixLiteError, match="not of one kind"):
        pairs.joined(toy_pairs())


def test_global_random_state_is_untouched():
    pairs, before = numbered(), torch.get_rng_state()
    pairs.split({"a": 0.5}), pairs.subset(3), pairs.shuffled()
    assert torch.equal(torch.get_rng_state(), before)


def test_join_by_item_id():
    x = store([[0], [1], [2]], ["a", "b", "c"])
    pairs = LatentPairs.from_stores(x, store([[2], [0], [0]], ["c", "a", "a"], "text"))
    assert torch.equal(pairs.x[pairs.owner], pairs.y)
    assert pairs.item_ids == ("a", "b", "c") and pairs.names == ("image", "text")
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        pairs = LatentPairs.from_stores(x, store([[9], [0], [2]], ["z", "a", "c"]), names=("a", "b"))
    assert torch.equal(pairs.x[pairs.owner], pairs.y) and len(pairs) == 2 and pairs.names == ("a", "b")
    with pytest.raises(FuseMixLiteError, match="share no item id"):
        LatentPairs.from_stores(x, store([[9]], ["z"]))
    with pytest.raises(FuseMixLiteError, match="twice"):
        LatentPairs.from_stores(store([[0], [1]], ["a", "a"]), x)


def with_nan(rows, bad):
    z = torch.ones(rows, 2)
    z[bad, 1] = float("nan")
    return z


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((with_nan(5, 3), torch.ones(5, 2)), "image latents: row 3 is NaN"),
        ((torch.ones(5, 2), with_nan(5, 0) * torch.inf), "text latents: row 0 is NaN or infinite .5 such"),
        ((torch.ones(5, 2), torch.ones(4, 2)), "x has 5 rows and y 4"),
        ((torch.ones(5, 2), torch.ones(2, 2), [0, 5]), r"owner\[1\] = 5 is out of range: x has 5"),
        ((torch.ones(5, 2), torch.ones(2, 2), [-1, 0]), r"owner\[0\] = -1"),
        ((torch.ones(5, 2), torch.ones(2, 2), [0, 1, 2]), "owner .3,."),
        ((torch.ones(5, 2), torch.ones(2, 2), [0.0, 1.0]), "integers"),
        ((torch.ones(0, 2), torch.ones(2, 2), [0, 1]), "image latents of shape .0, 2."),
        ((torch.ones(5), torch.ones(5, 2)), "image latents of shape .5,."),
        ((torch.ones(5, 2), torch.ones(5, 0)), "text latents of shape .5, 0."),
        ((torch.ones(5, 2), torch.ones(5, 2), None, ("text", "text")), "two different"),
        ((torch.ones(5, 2), torch.ones(5, 2), None, ("image", "text"), ["a"]), "1 item ids for 5"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(FuseMixLiteError, match=message):
        LatentPairs(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pairs: pairs.subset(11), "there are 10"),
        (lambda pairs: pairs.subset(0), "there are 10"),
        (lambda pairs: pairs.take([10]), "out of range"),
        (lambda pairs: pairs.take([-1]), "out of range"),
        (lambda pairs: pairs.take([1, 1]), "twice"),
        (lambda pairs: pairs.take([]), "at least one"),
        (lambda pairs: pairs.split({}), "positive"),
        (lambda pairs: pairs.split({"a": 0.7, "b": 0.4}), "sum to 1"),
        (lambda pairs: pairs.split({"a": 1.2, "b": -0.4}), "positive"),
        (lambda pairs: pairs.split({"a": 0.01}), "at least one"),
        (lambda pairs: pairs.take([0]).shuffled(), "one item"),
    ],
)
def test_bad_requests(call, message):
    with pytest.raises(FuseMixLiteError, match=message):
        call(numbered())
