"""Latents that stay on disk and are read as float32 tensors: the rows that are asked for, when they are.

A memory map would do, but not well for a batch of random rows: every page that was touched stays counted as this process's
memory until somebody else needs it, and a disk that is asked for one page after another is slow. `gather` reads instead, and
asks in several threads at a time.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .errors import FuseMixLiteError
from .store import ShardedRows, check_length, remedy

STATISTICS = 2**24  # numbers whose statistics are taken at once: 64 MB
THREADS = 8  # that wait for the disk


class StoredRows:
    """Rows (N, d) of stores, in the place of a tensor in `LatentPairs`.

    It answers to what training and retrieval ask of a tensor: `shape`, `len`, `to(device)`, `index_select` and `split`, the
    last two of which read. Indexing reads nothing: ``rows[index]``, a slice or a mask, gives the same thing with fewer rows.

    Args:
        arrays: (N, d1), (N, d2), … memory-mapped, float16 or float32; side by side they are the rows, d = d1 + d2 + ….
        index: (M,) which rows, in which order. None: all.
        device: where tensors are put.
    """

    dtype, ndim = torch.float32, 2

    def __init__(self, arrays: Sequence[np.ndarray], index: np.ndarray | None = None, device: str | torch.device = "cpu"):
        self._arrays, self._index, self.device = list(arrays), index, torch.device(device)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), sum(array.shape[1] for array in self._arrays)

    def __len__(self) -> int:
        return len(self._arrays[0]) if self._index is None else len(self._index)

    def __repr__(self) -> str:
        return f"StoredRows({len(self)} x {self.shape[1]})"

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray | Tensor) -> "StoredRows":
        index = index.cpu().numpy() if isinstance(index, Tensor) else index
        return StoredRows(self._arrays, self._rows(index), self.device)

    def to(self, device: str | torch.device) -> "StoredRows":
        """The same rows; what is read will be put on `device`."""
        return StoredRows(self._arrays, self._index, device)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Read rows (B,): (B, d) float32. `dim` is 0, as for a tensor."""
        if dim != 0:
            raise ValueError(f"dim = {dim}: only rows can be selected")
        return self._read(self._rows(index.cpu().numpy()))

    def split(self, rows: int) -> Iterator[Tensor]:
        """Read everything, tile by tile: (rows, d) float32, the last one may be smaller."""
        for start in range(0, len(self), rows):
            yield self._read(self._rows(slice(start, min(start + rows, len(self)))))

    def stacked(self, *others: "StoredRows") -> "StoredRows":
        """These rows and others of the same stores, one after the other.

        Raises FuseMixLiteError for rows of other stores.
        """
        every = [self, *others]
        for other in others:
            if not isinstance(other, StoredRows) or [*map(id, self._arrays)] != [*map(id, other._arrays)]:
                raise FuseMixLiteError("latents of different stores on disk: join the stores by LatentStore.merge")
        return StoredRows(self._arrays, np.concatenate([rows._rows(slice(None)) for rows in every]), self.device)

    def tensor(self) -> Tensor:
        """Read everything: (N, d) float32."""
        return torch.cat(list(self.split(max(1, STATISTICS // self.shape[1]))))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows on disk cannot become an array without a copy")
        return self.tensor().numpy().astype(dtype or np.float32, copy=False)

    def std_mean(self) -> tuple[Tensor, Tensor]:
        """Standard deviation (of the population) and mean of every dimension, (d,) each; one tile in memory at a time.

        Of several tiles they are added up in float64, so that the last digits may differ from those of one tensor.
        """
        total = squares = shift = None  # sums of what is left of a number once the first tile's mean is taken off
        for tile in self.split(max(1, STATISTICS // self.shape[1])):
            if len(tile) == len(self):
                return torch.std_mean(tile, dim=0, correction=0)
            tile = tile.double()
            if shift is None:
                shift = tile.mean(0)
                total = squares = torch.zeros_like(shift)
            tile -= shift
            total = total + tile.sum(0)
            squares = squares + tile.square_().sum(0)
        mean = total / len(self)
        return (squares / len(self) - mean**2).clamp(min=0).sqrt().float(), (shift + mean).float()

    def _rows(self, index) -> np.ndarray:
        """Row numbers of the arrays for row numbers of this."""
        if self._index is not None:
            return self._index[index]
        if isinstance(index, slice):
            return np.arange(*index.indices(len(self)))
        index = np.asarray(index, np.int64 if len(index) == 0 else None)
        index = index.nonzero()[0] if index.dtype == bool else index
        if index.size and not -len(self) <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        return np.where(index < 0, index + len(self), index)  # the file is read by offset: it knows no "from the end"

    def _read(self, rows: np.ndarray) -> Tensor:
        parts = [self._moved(torch.from_numpy(gather(array, rows))).float() for array in self._arrays]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _moved(self, part: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return part.to(self.device)
        return part.pin_memory().to(self.device, non_blocking=True)  # so that whoever reads ahead does not wait for the bus


def gather(array: np.ndarray | ShardedRows, rows: np.ndarray) -> np.ndarray:
    """``array[rows]`` for row numbers (B,): (B, d). What is memory-mapped is read from its file, neighbours at once."""
    maps = array.shards if isinstance(array, ShardedRows) else [array]
    if len(rows) == 0 or not hasattr(os, "preadv") or not all(isinstance(part, np.memmap) for part in maps if len(part)):
        return np.asarray(array[rows])
    starts = np.cumsum([0, *map(len, maps)])
    order = rows.argsort(kind="stable")  # places in the result, in the order in which they lie on disk
    found = rows[order]
    home = starts.searchsorted(found, side="right") - 1  # the shard of each
    alone = (np.diff(found) != 1) | (np.diff(order) != 1) | (np.diff(home) != 0)
    first = np.flatnonzero(np.concatenate([[True], alone]))  # of each run of neighbours
    length = np.diff([*first, len(rows)])
    out = np.empty((len(rows), array.shape[1]), array.dtype)
    size, content = out.strides[0], memoryview(out).cast("B")
    runs = np.stack([home[first], found[first] - starts[home[first]], order[first], length], 1)

    def read(part: np.ndarray) -> None:
        shard = file = None
        try:
            for number, row, place, count in part.tolist():
                own = maps[number]
                if number != shard:
                    if file is not None:
                        os.close(file)
                    shard, file = number, os.open(own.filename, os.O_RDONLY)
                    check_length(own, os.fstat(file).st_size)
                into, offset = content[place * size : (place + count) * size], own.offset + row * size
                while len(into):  # one call gives 2 GB at most
                    got = os.preadv(file, [into], offset)
                    if got == 0:
                        raise FuseMixLiteError(f"{own.filename} was cut while it was read: {remedy(own.filename.parent)}")
                    into, offset = into[got:], offset + got
        except OSError as error:
            why = f"{own.filename} cannot be read ({error.strerror or error})"
            raise FuseMixLiteError(f"{why}: see to its disk, or {remedy(own.filename.parent)}") from error
        finally:
            if file is not None:
                os.close(file)

    list(_pool().map(read, np.array_split(runs, THREADS)))
    return out


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS)
