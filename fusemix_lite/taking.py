"""The rows of a batch, where latents are in memory and where they are on disk: `taking` gives what takes them.

Both kinds are called with row numbers (B,) and return (B, d). `ahead` tells them what will be asked for next, which only
matters where something has to be read.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .rows import StoredRows


class KeptMemory:
    """Takes rows of a tensor (N, d) into memory that the next call overwrites.

    On a CPU a large batch in fresh memory costs more than copying its rows does. A GPU's allocator keeps memory by itself.
    """

    def __init__(self, z: Tensor):
        self._z, self._kept = z, z.new_empty(0, z.shape[1])

    def __call__(self, rows: Tensor) -> Tensor:
        if self._z.device.type != "cpu":
            return self._z.index_select(0, rows)
        if len(self._kept) < len(rows):
            self._kept = self._z.new_empty(len(rows), self._z.shape[1])
        return torch.index_select(self._z, 0, rows, out=self._kept[: len(rows)])

    def ahead(self, rows: Tensor) -> None:
        """Nothing to do: all of it is here."""


class ReadAhead:
    """Takes rows of `StoredRows` (N, d); those that were told of are read in a thread, while the batch before is worked on.

    What reading raises is raised when the rows are asked for.
    """

    def __init__(self, z: StoredRows):
        self._z, self._reader = z, ThreadPoolExecutor(1)
        self._coming: tuple[Tensor, Future] | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        told, self._coming = self._coming, None
        if told is not None and torch.equal(told[0][: len(rows)], rows):  # a step may want the first of them only
            return told[1].result()[: len(rows)]
        return self._z.index_select(0, rows)

    def ahead(self, rows: Tensor) -> None:
        """Begin to read rows."""
        on_gpu = self._z.device.type == "cuda"
        # A thread has a stream of its own: what it copies must come after these row numbers, and before it is computed with.
        order = torch.cuda.stream(torch.cuda.current_stream(self._z.device)) if on_gpu else nullcontext()
        self._coming = rows, self._reader.submit(self._read, rows, order)

    def _read(self, rows: Tensor, order: AbstractContextManager) -> Tensor:
        with order:
            return self._z.index_select(0, rows)


def taking(z: Tensor | StoredRows) -> KeptMemory | ReadAhead:
    """What takes rows of z (N, d)."""
    return ReadAhead(z) if isinstance(z, StoredRows) else KeptMemory(z)
