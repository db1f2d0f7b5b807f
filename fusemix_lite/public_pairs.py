"""One split of a public data set as `extract` takes it: media that stay where they are, and captions.

COCO has 113,287 training pictures, the paper's whole training mix some 5 million pairs. So nothing is opened before it is
asked for: a value is a path, or a small object that opens itself when it is called (`TarMember`, `Cell`), and lists of
them are made on the fly.
"""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import FuseMixLiteError
from .files import encodable
from .public_layouts import Row


@dataclass(frozen=True, eq=False)
class PublicPairs:
    """Media and captions of one split. Made by `open_dataset` and `read_hub`.

    An item is a picture or a sound. Its id is what the data set calls it, the same whichever of its layouts was read.
    """

    name: str  # "coco", or "coco+sbu" for a union
    split: str
    media: str  # "image" or "audio"
    items: Sequence[str] = field(repr=False)  # N ids, unique
    values: Sequence[Path | Callable[[], Any]] = field(repr=False)  # N: Files, TarMembers, Cells or several of them Chained
    texts: Sequence[str] = field(repr=False)  # M captions
    owners: np.ndarray = field(repr=False)  # (M,) int64: the item of each caption

    @cached_property
    def id(self) -> str:
        """A short name that changes with everything that latents depend on: items, captions, sizes of the media.

        Neither the folder nor the times of files are part of it: a copy on another machine keeps its latents, and a file
        that was missing and then came does not.
        """
        digest = hashlib.sha256(self.media.encode())
        for text in chain(self.items, self.texts):
            digest.update(text.encode() + b"\0")
        digest.update(np.ascontiguousarray(self.owners, "<i8").tobytes())
        digest.update(",".join(map(str, self.values.sizes())).encode())
        return f"{self.name}-{self.split}-{digest.hexdigest()[:12]}"

    def __len__(self) -> int:
        """N, the number of items."""
        return len(self.items)

    @property
    def captions(self) -> list[tuple[int, str]]:
        """M of (index of the item, text)."""
        return list(zip(self.owners.tolist(), self.texts, strict=True))

    @property
    def paths(self) -> list[Path]:
        """N paths of the media. Raises FuseMixLiteError where some lie in an archive or a table."""
        paths = list(self.values)
        if not all(isinstance(path, Path) for path in paths):
            raise FuseMixLiteError(f"{self.name}: its media lie in archives and have no paths: leave that data set out")
        return paths

    @property
    def splits(self) -> None:
        """Parts of the items: none, since this is one part. As `FilePairs` has it, for `audit` and `split_items`."""

    @property
    def source(self) -> str:
        """Which data set, for messages."""
        return f"{self.name} ({self.split})"

    def fields(self, modality: str) -> tuple[Sequence[str], Sequence]:
        """Item ids and values: the media, one an item, or for "text" the captions with their item's id."""
        if modality == "text":
            return [self.items[owner] for owner in self.owners.tolist()], self.texts
        if modality != self.media:
            raise FuseMixLiteError(f"no field {modality!r} in {self.name}; there are {self.media}, text")
        return self.items, self.values


class Files(Sequence):
    """Paths below a folder, made when they are asked for: a `Path` takes ten times the room of its name."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = Path(folder), names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Files(self.folder, self.names[index])
        return self.folder / self.names[index]

    def sizes(self) -> Iterator[int | None]:
        """Bytes of each file, None for one that is not there."""
        for name in self.names:
            try:
                yield os.stat(self.folder / name).st_size
            except OSError:
                yield None


@dataclass(frozen=True)
class TarMember:
    """A file in a tar archive, which is read where it lies: nothing is unpacked, so no name in it can do harm.

    Calling it gives its bytes. It can be pickled, so that worker processes may open it.
    """

    archive: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        with open(self.archive, "rb") as opened:
            opened.seek(self.offset)
            content = opened.read(self.size)
        if len(content) < self.size:
            raise FuseMixLiteError(f"{self.archive} is cut short: fetch it again")
        return content


class TarMembers(Sequence):
    """Members of several archives, kept as three arrays: (N,) number of the archive, offset, size."""

    def __init__(self, archives: Sequence[Path], home: np.ndarray, offsets: np.ndarray, lengths: np.ndarray):
        self.archives, self.home, self.offsets, self.lengths = archives, home, offsets, lengths

    def __len__(self) -> int:
        return len(self.home)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return TarMembers(self.archives, self.home[index], self.offsets[index], self.lengths[index])
        archive = self.archives[int(self.home[index])]
        return TarMember(archive, int(self.offsets[index]), int(self.lengths[index]))

    def sizes(self) -> Iterator[int]:
        """Bytes of each member."""
        return iter(self.lengths.tolist())


class Chained(Sequence):
    """Several sequences as one."""

    def __init__(self, parts: Sequence[Sequence]):
        self.parts = list(parts)
        self.starts = [0, *accumulate(map(len, self.parts))]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect_right(self.starts, index) - 1
        return self.parts[part][index - self.starts[part]]

    def sizes(self) -> Iterator[int | None]:
        """Bytes of each value."""
        return chain.from_iterable(part.sizes() for part in self.parts)


class Collected(NamedTuple):
    """Rows put together: N items with the alternatives for their file names, M captions with their owners."""

    items: list[str]
    names: list[tuple[str, ...]]
    texts: list[str]
    owners: np.ndarray

    def only(self, kept: Sequence[int]) -> "Collected":
        """Some of the items, with their captions."""
        place = np.full(len(self.items), -1)
        place[list(kept)] = np.arange(len(kept))
        owners = place[self.owners]
        texts = [text for text, owner in zip(self.texts, owners.tolist(), strict=True) if owner >= 0]
        return Collected([self.items[i] for i in kept], [self.names[i] for i in kept], texts, owners[owners >= 0])


def collect(rows: Iterable[tuple[str, Row]]) -> Collected:
    """Items in order of appearance; an item that appears again brings further captions, as where each has a row.

    `rows` are (where it stands, for errors; row). Raises FuseMixLiteError for one item with two files, and for what is no
    text.
    """
    index_of: dict[str, int] = {}
    names, texts, owners = [], [], []
    for where, row in rows:
        index = index_of.setdefault(encodable(where, row.item), len(index_of))
        if index == len(names):
            names.append(row.names)
        elif names[index][0] != row.names[0]:
            raise FuseMixLiteError(f'{where}: "{row.item}" is {row.names[0]} here, {names[index][0]} above: choose one')
        for text in row.texts:
            if text is not None and not isinstance(text, str):
                raise FuseMixLiteError(f"{where}: {text!r:.40} is no caption: a text is needed")
            texts.append(encodable(where, (text or "").strip()))
            owners.append(index)
    return Collected(list(index_of), names, texts, np.asarray(owners, np.int64))


def union(parts: Sequence[PublicPairs]) -> PublicPairs:
    """Several data sets as one; ids get the name of theirs in front ("coco/…"), so that none can be taken for another.

    Raises FuseMixLiteError for pictures beside sounds.
    """
    first = parts[0]
    if any(part.media != first.media for part in parts):
        raise FuseMixLiteError(f"{' and '.join(part.name for part in parts)} are not of one kind: pictures beside sounds")
    starts = np.cumsum([0, *(len(part) for part in parts)])
    return PublicPairs(
        "+".join(part.name for part in parts),
        first.split,
        first.media,
        [f"{part.name}/{item}" for part in parts for item in part.items],
        Chained([part.values for part in parts]),
        [text for part in parts for text in part.texts],
        np.concatenate([part.owners + start for part, start in zip(parts, starts[:-1], strict=True)]),
    )
