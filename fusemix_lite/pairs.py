"""Paired latents, in memory or on disk, with the index that says which y belongs to which x."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .errors import FuseMixLiteError
from .rows import StoredRows
from .store import ItemIds


class LatentPairs:
    """Latents of two modalities: items x, each with any number of rows y (five captions to an image, say).

    A *pair* is a row of y with the row of x that owns it; ``len(pairs)`` counts pairs. Parts are taken by item, so an
    item's captions never end up on both sides of a split.

    Args:
        x: (N, dx) latents, one row an item: tensor, array or anything `numpy.asarray` takes, or `StoredRows`.
        y: (M, dy) latents.
        owner: (M,) integers, the row of x that each y belongs to. None: row i of y belongs to row i of x.
        names: the two modalities, x first.
        item_ids: N names of the items, kept with them.

    Attributes:
        x: (N, dx) float32 tensor on the CPU, or `StoredRows`, which stay on disk.
        y: (M, dy), likewise.
        owner: (M,) int64.
        names: the two modalities.
        item_ids: N names, or None.

    Raises:
        FuseMixLiteError: anything empty, of the wrong shape, not finite, or an owner out of range.
    """

    def __init__(self, x, y, owner=None, names: Sequence[str] = ("image", "text"), item_ids: Sequence[str] | None = None):
        self.names = tuple(names)
        if len(set(self.names)) != 2:
            raise FuseMixLiteError(f"names = {names}: give two different modalities")
        self.x, self.y = _latents(x, self.names[0]), _latents(y, self.names[1])
        self.owner = self._checked_owner(owner)
        self.item_ids = item_ids if item_ids is None or isinstance(item_ids, ItemIds) else tuple(item_ids)
        if self.item_ids is not None and len(self.item_ids) != self.n_items:
            raise FuseMixLiteError(f"{len(self.item_ids)} item ids for {self.n_items} rows of x: give one a row")

    @classmethod
    def from_stores(cls, x_store, y_store, names: Sequence[str] | None = None, in_memory: bool = True) -> "LatentPairs":
        """Join two `LatentStore` by item id; row orders are kept. `names` are the stores' modalities unless given.

        Items of x without a y stay (in retrieval they distract). Rows of y without an x are dropped with a warning.
        Instead of a store either side may be a list of stores of the same items, whose latents are then concatenated,
        as the paper does with two audio encoders.

        With `in_memory` False the latents stay on disk, x and y are `StoredRows`, and `fit` reads the rows of a batch when it
        comes to them: same numbers, and millions of pairs on any machine. Parts (`take`, `split`, …) stay on disk as well;
        `unit`, `mismatched` and `per_item` read theirs into memory, as `loaded` does.

        Raises:
            FuseMixLiteError: an item id occurs twice in `x_store`, the stores share no id, or stores of one side hold
                other items than each other.
        """
        (x_store, x), (y_store, y) = _side_by_side(x_store, in_memory), _side_by_side(y_store, in_memory)
        row_of = {item: row for row, item in enumerate(x_store.item_ids)}
        if len(row_of) < len(x_store.item_ids):
            raise FuseMixLiteError(f"{x_store.path}: an item id occurs twice; x needs one row an item (swap x and y?)")
        owner = torch.from_numpy(np.fromiter((row_of.get(item, -1) for item in y_store.item_ids), np.int64))
        del row_of  # of millions of items it is large
        known = owner >= 0
        if not known.any():
            raise FuseMixLiteError(f"{x_store.path} and {y_store.path} share no item id: use stores of one dataset")
        if not known.all():
            lost = int((~known).sum())
            warnings.warn(f"{lost} of {len(owner)} rows of {y_store.path} dropped: no x of their item", stacklevel=2)
            y, owner = y[known.numpy()], owner[known]
        names = names or (x_store.origin.modality, y_store.origin.modality)
        return cls(x, y, owner, names, x_store.item_ids)

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        (a, b), (N, dx), (M, dy) = self.names, self.x.shape, self.y.shape
        return f"LatentPairs({a}: {N} x {dx}, {b}: {M} x {dy})"

    @property
    def n_items(self) -> int:
        """N, the number of rows of x."""
        return len(self.x)

    @property
    def dims(self) -> dict[str, int]:
        """The latent dimension of each modality, as `FusionModel` takes it."""
        return {self.names[0]: self.x.shape[1], self.names[1]: self.y.shape[1]}

    def take(self, item_index: Sequence[int] | Tensor) -> "LatentPairs":
        """The items of these row numbers of x, in this order, with all of their y rows (in their old order)."""
        index = torch.as_tensor(item_index, dtype=torch.int64)
        if index.numel() and (index.min() < 0 or index.max() >= self.n_items):
            raise FuseMixLiteError(f"take: an item index is out of range; there are {self.n_items} items")
        if len(index.unique()) < len(index):
            raise FuseMixLiteError("take: an item is asked for twice")
        new_row = torch.full((self.n_items,), -1)
        new_row[index] = torch.arange(len(index))
        owner = new_row[self.owner]
        kept = owner >= 0
        ids = self.item_ids
        if isinstance(ids, ItemIds):
            ids = ItemIds([ids[index.numpy()]])
        elif ids is not None:
            ids = [ids[i] for i in index.tolist()]
        return LatentPairs(self.x[index], self.y[kept], owner[kept], self.names, ids)

    def subset(self, n: int, seed: int = 0) -> "LatentPairs":
        """`n` items drawn uniformly, with all of their y rows. With one seed, smaller subsets lie in larger ones."""
        if not 1 <= n <= self.n_items:
            raise FuseMixLiteError(f"subset of {n} items: there are {self.n_items}")
        return self.take(self._random_order(seed)[:n])

    def split(self, fractions: dict[str, float], seed: int = 0) -> dict[str, "LatentPairs"]:
        """Disjoint random parts by item, such as ``{"train": .8, "val": .1, "test": .1}`` (sum at most 1)."""
        ends = np.cumsum([0.0, *fractions.values()])
        if min(fractions.values(), default=0) <= 0 or ends[-1] > 1 + 1e-9:
            raise FuseMixLiteError(f"split: the fractions {fractions} must be positive and sum to 1 at most")
        order, cuts = self._random_order(seed), np.round(ends * self.n_items).astype(int).tolist()
        return {name: self.take(order[a:b]) for name, a, b in zip(fractions, cuts[:-1], cuts[1:], strict=True)}

    def shuffled(self, seed: int = 0) -> "LatentPairs":
        """The null control: each item's y rows move, together, to another item, so that no pair matches."""
        if self.n_items < 2:
            raise FuseMixLiteError("shuffled: one item cannot be mismatched with itself")
        return LatentPairs(self.x, self.y, self._another(seed)[self.owner], self.names, self.item_ids)

    def mismatched(self, first: int, seed: int = 0) -> "LatentPairs":
        """A control for concatenated latents: of every x, the dimensions from `first` on come from another item."""
        if not 0 < first < self.x.shape[1]:
            raise FuseMixLiteError(f"mismatched: first = {first}, the latents have {self.x.shape[1]} dimensions")
        x = _read(self.x)
        x = torch.cat([x[:, :first], x[self._another(seed), first:]], dim=1)
        return LatentPairs(x, self.y, self.owner, self.names, self.item_ids)

    def unit(self) -> "LatentPairs":
        """All latents scaled to norm 1: directions alone."""
        x, y = (F.normalize(_read(z), dim=1) for z in (self.x, self.y))
        return LatentPairs(x, y, self.owner, self.names, self.item_ids)

    def loaded(self) -> "LatentPairs":
        """The same pairs in memory."""
        if isinstance(self.x, Tensor) and isinstance(self.y, Tensor):
            return self
        return LatentPairs(_read(self.x), _read(self.y), self.owner, self.names, self.item_ids)

    def per_item(self) -> tuple[Tensor, Tensor]:
        """One row an item on both sides: x and the mean of its y rows, (N', dx) and (N', dy) float64, of the N' items that
        own a y."""
        counts = torch.bincount(self.owner, minlength=self.n_items)
        x, y = _read(self.x), _read(self.y)
        sums = torch.zeros(self.n_items, y.shape[1], dtype=torch.float64).index_add_(0, self.owner, y.double())
        paired = counts > 0
        return x[paired].double(), sums[paired] / counts[paired, None]

    def joined(self, *others: "LatentPairs") -> "LatentPairs":
        """These items and those of others, one after the other. Ids are kept where all have them. Pairs on disk can be joined
        if they are parts of the same ones."""
        every = [self, *others]
        if any((pairs.names, pairs.dims) != (self.names, self.dims) for pairs in others):
            raise FuseMixLiteError(f"joined: {', '.join(map(repr, every))} are not of one kind")
        starts = [sum(pairs.n_items for pairs in every[:i]) for i in range(len(every))]
        named = all(pairs.item_ids is not None for pairs in every)
        return LatentPairs(
            _stacked([pairs.x for pairs in every]),
            _stacked([pairs.y for pairs in every]),
            torch.cat([pairs.owner + start for pairs, start in zip(every, starts, strict=True)]),
            self.names,
            [item for pairs in every for item in pairs.item_ids] if named else None,
        )

    def _another(self, seed: int) -> Tensor:
        """For each item another one: one cycle through all of them, so that none stays where it was."""
        order = self._random_order(seed)
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        return other

    def _random_order(self, seed: int) -> Tensor:
        return torch.randperm(self.n_items, generator=Generator().manual_seed(seed))

    def _checked_owner(self, owner) -> Tensor:
        if owner is None:
            if len(self.x) != len(self.y):
                raise FuseMixLiteError(f"x has {len(self.x)} rows and y {len(self.y)}: give their owner")
            return torch.arange(len(self.y))
        owner = _tensor(owner)
        if owner.shape != (len(self.y),) or owner.is_floating_point():
            raise FuseMixLiteError(f"owner {tuple(owner.shape)} {owner.dtype}: give {len(self.y)} integers, one a y")
        owner = owner.long()
        wrong = (owner < 0) | (owner >= len(self.x))
        if wrong.any():
            row = int(wrong.int().argmax())
            raise FuseMixLiteError(f"owner[{row}] = {owner[row]} is out of range: x has {len(self.x)} rows")
        return owner


def _side_by_side(stores, in_memory: bool):
    """The first of the stores of one modality, for its items, and the rows of all of them, concatenated: (N, D1 + D2)."""
    several = isinstance(stores, list | tuple)
    stores = list(stores) if several else [stores]
    for other in stores[1:]:
        if other.item_ids != stores[0].item_ids:
            raise FuseMixLiteError(f"{stores[0].path} and {other.path} hold other items: extract both from one dataset")
    arrays = [store.array for store in stores]
    if not in_memory:
        return stores[0], StoredRows(arrays)
    return stores[0], np.concatenate([np.asarray(array) for array in arrays], axis=1) if several else arrays[0]


def _read(z: Tensor | StoredRows) -> Tensor:
    return z.tensor() if isinstance(z, StoredRows) else z


def _stacked(parts: list[Tensor | StoredRows]) -> Tensor | StoredRows:
    first, *others = parts
    return first.stacked(*others) if isinstance(first, StoredRows) else torch.cat([_read(part) for part in parts])


def _tensor(values) -> Tensor:
    """A CPU tensor; arrays are copied, since a memory-mapped one is read-only."""
    return values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _latents(z, name: str) -> Tensor:
    """(rows, dim) float32 CPU tensor of latents, checked. What is on disk was checked when it was written."""
    z = z.to("cpu") if isinstance(z, StoredRows) else _tensor(z).float()
    if z.ndim != 2 or 0 in z.shape:
        raise FuseMixLiteError(f"{name} latents of shape {tuple(z.shape)}: give at least one row and one dimension")
    if isinstance(z, StoredRows):
        return z
    bad = ~z.isfinite().all(dim=1)
    if bad.any():
        first, count = int(bad.int().argmax()), int(bad.sum())
        raise FuseMixLiteError(f"{name} latents: row {first} is NaN or infinite ({count} such rows in all)")
    return z
