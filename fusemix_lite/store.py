"""A store of latents: a folder of safetensors shards that are memory-mapped and look like one array.

    store/
      shard-00000.safetensors   latents (n, D); its metadata say whose they are, so that each shard stands for itself
      shard-00001.safetensors   …
      quarantine.json           items left out: index, item_id, path, reason
      manifest.json             shape, dtype, count, dataset, encoder, sha256 of every shard, item ids; written last

The manifest of a store of more than `IDS_IN_MANIFEST` rows (version 2) holds no item ids: they are in the shards, and read
from there when somebody asks. Both versions are opened.

Every file is written aside and renamed, so that a file with its final name is whole and a folder with a manifest is
complete. Whoever writes holds the lock beside the folder (`hold_lock`). Only safetensors and JSON are read, and what a manifest
says is checked before it is used. `verifying` finds out what became of a store, and repairs it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .disk import ASIDE, as_json, not_written, read_json, sha256, sync_folder, write_aside
from .errors import FuseMixLiteError
from .untrusted import HEADER

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy

FORMAT = "fusemix-lite latents"
VERSIONS = (1, 2)  # with the item ids in the manifest, and without
ROWS_PER_SHARD = 2048
IDS_IN_MANIFEST = 100_000  # rows: as many ids are read in a moment, 5 million would take seconds and half a gigabyte
LARGEST_DIM = 2**20  # numbers of a latent: more is an error, or an attempt to take memory

MANIFEST, QUARANTINE = "manifest.json", "quarantine.json"

_CODES = {"float16": "F16", "float32": "F32"}  # dtype -> its name in safetensors


@dataclass(frozen=True)
class LatentOrigin:
    """Where latents come from. Two stores with equal origins hold the same latents."""

    dataset_id: str
    items: int  # rows that the dataset offers, those in quarantine included
    modality: str
    encoder_id: str
    encoder_revision: str
    preprocessing_hash: str
    precision: str = "fp32"  # of the encoder's matrix products

    def __str__(self) -> str:
        how = "" if self.precision == "fp32" else f" in {self.precision}"
        return f"{self.items} items of {self.dataset_id} by {self.encoder_id} ({self.encoder_revision[:12]}){how}"

    def as_dict(self) -> dict:
        """What files hold of it; precision only where it is not fp32, as it was before there was a choice."""
        return {key: value for key, value in vars(self).items() if (key, value) != ("precision", "fp32")}


class ItemIds(Sequence):
    """N strings in one piece of UTF-8: 5 million take 150 MB, in a list 450. Read-only; a slice or an array gives a list.

    `pieces` are lists of strings, one after another.
    """

    def __init__(self, pieces: Iterable[Sequence[str]]):
        texts, lengths = [], [np.zeros(1, np.int64)]
        for piece in pieces:
            encoded = [item.encode("utf-8", "surrogatepass") for item in piece]
            texts.append(b"".join(encoded))
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        self._text, self._ends = b"".join(texts), np.concatenate(lengths).cumsum()  # (N + 1,)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> str | list[str]:
        starts, ends = self._ends[:-1][index], self._ends[1:][index]
        if starts.ndim == 0:
            return self._text[starts:ends].decode("utf-8", "surrogatepass")
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return [self._text[start:end].decode("utf-8", "surrogatepass") for start, end in spans]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 1 << 16):
            yield from self[start : start + (1 << 16)]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ItemIds):
            return self._text == other._text and np.array_equal(self._ends, other._ends)
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    def __repr__(self) -> str:
        return f"ItemIds({len(self)}: {self[0]!r}, …)" if len(self) else "ItemIds(0)"


class ShardedRows:
    """Rows (N, D) of several memory-mapped arrays behind one index. Read-only.

    `rows[i]`, `rows[a:b]` and `rows[indices or mask]` read only what they return; `np.asarray(rows)` reads everything.
    """

    def __init__(self, shards: Sequence[np.ndarray]):
        self.shards = list(shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])  # (S + 1,)
        self.shape = (int(self._starts[-1]), shards[0].shape[1])
        self.dtype = shards[0].dtype
        self.ndim = 2
        self._rows = np.arange(len(self))  # settles negative indices, steps, masks and what is out of range

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        rows = self._rows[index]
        flat = rows.reshape(-1)
        out = np.empty((flat.size, self.shape[1]), self.dtype)
        home = np.searchsorted(self._starts, flat, side="right") - 1  # the shard of each row
        order = np.argsort(home, kind="stable")  # places in `out`, those of one shard side by side
        shards, first = np.unique(home[order], return_index=True)
        for shard, start, stop in zip(shards, first, [*first[1:], len(order)], strict=False):
            mine = order[start:stop]
            check_length(self.shards[shard])
            out[mine] = self.shards[shard][flat[mine] - self._starts[shard]]
        return out.reshape(*rows.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of several shards cannot become one array without a copy")
        for shard in self.shards:
            check_length(shard)
        return np.concatenate(self.shards, dtype=dtype or self.dtype)


@dataclass(frozen=True, eq=False)
class LatentStore:
    """Latents (N, D) and the item id of each row. Open one with `LatentStore.open`.

    `array` is mapped into memory: the rows are read when they are used. Files of a store are replaced, never changed, so that
    a store stays readable while it is repaired or deleted. Only somebody who shortens a file in place, under an open store, can
    make the system end the process (SIGBUS), as with every memory map.
    """

    path: Path
    manifest: dict
    array: np.ndarray | ShardedRows  # (N, D), float16 or float32, memory-mapped

    @classmethod
    def open(cls, path: str | Path) -> "LatentStore":
        """Open a complete store.

        The manifest and the size of each shard are checked here; `verify` checks the bytes as well.
        Raises FuseMixLiteError naming the file at fault and the remedy.
        """
        path = Path(path)
        manifest = read_manifest(path / MANIFEST)
        origin, item_ids = origin_of(manifest), manifest.get("item_ids")
        arrays, start = [], 0
        for shard in manifest["shards"]:
            array, metadata = open_shard(path / shard["name"])
            expected = (shard["rows"], manifest["shape"][1])
            if array.shape != expected or array.dtype.name != manifest["dtype"]:
                found = f"{array.dtype} {array.shape}, not {manifest['dtype']} {expected}"
                raise FuseMixLiteError(f"{path / shard['name']} holds {found}: {remedy(path)}")
            named = metadata["item_ids"] if item_ids is None else item_ids[start : start + len(array)]
            if origin_of(metadata) != origin or metadata["item_ids"] != named:
                raise FuseMixLiteError(f"{path / shard['name']} holds other latents than the manifest says: {remedy(path)}")
            arrays.append(array)
            start += len(array)
        return cls(path, manifest, arrays[0] if len(arrays) == 1 else ShardedRows(arrays))

    @classmethod
    def write(
        cls, path: str | Path, latents: np.ndarray, item_ids: Sequence[str], origin: LatentOrigin | None = None
    ) -> "LatentStore":
        """Store latents (N, D), float16 or float32, that are already there; one item id a row.

        Of two processes or threads that write to one folder the second waits, and is refused: the folder is in use.
        """
        path, latents = Path(path), np.asarray(latents)
        if latents.ndim != 2 or len(latents) != len(item_ids):
            raise FuseMixLiteError(f"{path}: latents of shape {latents.shape} do not fit {len(item_ids)} item ids")
        origin = origin or LatentOrigin("", len(item_ids), "", "", "", "")
        with hold_lock(path):
            writer = LatentWriter(path, origin, latents.dtype.name, locked=True)
            starts = range(0, len(latents), ROWS_PER_SHARD)
            for number, start in enumerate(starts):
                stop = start + ROWS_PER_SHARD
                writer.write(number, latents[start:stop], item_ids[start:stop])
            return writer.finish(len(starts))

    @cached_property
    def item_ids(self) -> Sequence[str]:
        """The item of each row; an item with several captions has several rows."""
        return self.manifest["item_ids"] if "item_ids" in self.manifest else ItemIds(self._ids_by_shard())

    @property
    def dim(self) -> int:
        """Latent dimension D."""
        return self.array.shape[1]

    @property
    def origin(self) -> LatentOrigin:
        """Which dataset and which encoder the latents come from."""
        return origin_of(self.manifest)

    @property
    def quarantine(self) -> list[dict]:
        """Items left out at extraction, each with index, item_id, path (or None) and reason."""
        return read_quarantine(self.path)

    def __len__(self) -> int:
        return self.array.shape[0]

    def __repr__(self) -> str:
        (N, D), origin = self.array.shape, self.origin
        whose = f", {origin.modality} by {origin.encoder_id}" if origin.encoder_id else ""
        return f"LatentStore({self.path}: {N} x {D}{whose})"

    def verify(self) -> None:
        """Read every byte again. Raises FuseMixLiteError if anything is not as it was written, naming the first such file and
        the remedy; `fusemix_lite.verify` lists them all."""
        from .verifying import verify

        if faults := verify(self.path):
            more = f" ({len(faults) - 1} more: fusemix_lite.verify)" if len(faults) > 1 else ""
            raise FuseMixLiteError(f"{faults[0]}{more}")

    @classmethod
    def merge(
        cls, stores: Sequence["LatentStore | str | Path"], out: str | Path, prefixes: Sequence[str] | None = None
    ) -> "LatentStore":
        """One store of the rows of several, in their order: different data sets, or disjoint parts of one, by one encoder.

        Item ids must differ between the stores; `prefixes` (one a store, such as "coco/") are put before them. Captions have
        to be merged with the prefixes of their pictures. Shards are copied, so `out` stands for itself; a merge that was
        stopped goes on, and one that is there already is returned.

        Raises FuseMixLiteError for stores of different encoders, dimensions or dtypes, naming them, and for an id that two
        stores share.
        """
        out, stores = Path(out), [cls.open(store) if isinstance(store, str | Path) else store for store in stores]
        prefixes = [""] * len(stores) if prefixes is None else list(prefixes)
        if len(stores) < 2 or len(prefixes) != len(stores):
            raise FuseMixLiteError(f"merge: {len(stores)} stores, {len(prefixes)} prefixes: give two or more, a prefix each")
        _check_alike(stores)
        holder: dict[str, LatentStore] = {}  # of each id
        for store, prefix in zip(stores, prefixes, strict=True):
            for item in store.item_ids:
                other = holder.setdefault(prefix + item, store)
                if other is not store:
                    both = f"{other.path} and {store.path} share the item id {prefix + item!r}"
                    raise FuseMixLiteError(f"merge: {both}: give prefixes, or leave one of them out")
        del holder
        origins = [store.origin for store in stores]
        origin = replace(
            origins[0],
            dataset_id="+".join(prefix + origin.dataset_id for prefix, origin in zip(prefixes, origins, strict=True)),
            items=sum(origin.items for origin in origins),
        )
        with hold_lock(out):
            if (out / MANIFEST).exists():
                return open_same(out, origin)
            writer = LatentWriter(out, origin, stores[0].array.dtype.name, locked=True)
            number = offset = 0
            for store, prefix in zip(stores, prefixes, strict=True):
                for shard in store.manifest["shards"]:
                    if not writer.has(number):
                        array, metadata = open_shard(store.path / shard["name"])
                        check_length(array)
                        left_out = [
                            entry | {"index": entry["index"] + offset, "item_id": prefix + entry["item_id"]}
                            for entry in metadata["quarantine"]
                        ]
                        writer.write(number, array, [prefix + item for item in metadata["item_ids"]], left_out)
                    number += 1
                offset += store.origin.items
            return writer.finish(number)

    def _ids_by_shard(self) -> Iterator[list[str]]:
        return (open_shard(self.path / shard["name"])[1]["item_ids"] for shard in self.manifest["shards"])


class LatentWriter:
    """Writes a store shard by shard, in any order, over as many processes' lives as it takes.

    Whole shards that are already there are kept (`has` tells which), damaged ones count as missing. A writer holds the lock of
    its folder until it has finished, is closed, or is gone; a second one of another process or thread is refused. `locked`: the
    caller holds it (several processes may then share a folder, each with a rank of its own: no two may write one shard). With
    `append`, shards of another version of the data set do no harm: `check_older` tells those that `adopt` can take over.

    Raises FuseMixLiteError if the folder holds something else, or is being written.
    """

    def __init__(
        self, path: str | Path, origin: LatentOrigin, dtype: str = "float16", append: bool = False, locked: bool = False
    ):
        if dtype not in _CODES:
            raise FuseMixLiteError(f"latents are stored as {' or '.join(_CODES)}, not {dtype}")
        self.path, self.origin, self.dtype = Path(path), origin, np.dtype(dtype)
        self._done: set[int] = set()
        self._older: set[int] = set()
        self._lock = None if locked else hold_lock(self.path, wait=False)
        try:
            self._take_stock(append)
        except BaseException:
            self.close()
            raise

    def _take_stock(self, append: bool) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(self.path, error) from error
        for file in sorted(self.path.iterdir()):
            if file.suffix == ASIDE or file.name == QUARANTINE or (append and file.name == MANIFEST):
                continue  # left by a process that died, or of a smaller store; written again
            if shard_number(file.name) is None:
                raise FuseMixLiteError(f"{self.path} is in use (it holds {file.name}): choose a new folder")
            self.look(shard_number(file.name), append)

    def close(self) -> None:
        """Let others write to the folder."""
        if self._lock is not None:
            self._lock.lock.release()

    def has(self, number: int) -> bool:
        """Whether this shard is there and whole."""
        return number in self._done

    def look(self, number: int, append: bool = False) -> bool:
        """Whether this shard is there and whole by now, from whoever. Raises FuseMixLiteError if it is of another store."""
        file = self.path / shard_name(number)
        if number in self._done or not file.exists():
            return number in self._done
        try:
            array, metadata = open_shard(file)
        except FuseMixLiteError:
            return False  # damaged; written again
        found = origin_of(metadata)
        older = found != self.origin and (append or number in self._older)
        if older:
            found = replace(found, dataset_id=self.origin.dataset_id, items=self.origin.items)
        if found != self.origin or array.dtype != self.dtype:
            remedy = "choose a new folder"
            raise FuseMixLiteError(f"{file} does not hold {self.origin} in {self.dtype}: {remedy}")
        (self._older if older else self._done).add(number)
        return not older

    def check_older(self, shards: Sequence[range], item_ids: Sequence[str]) -> set[int]:
        """Which shards of a smaller version of the data set can be taken over: those that are whole.

        `shards` are the indices of the items of each shard, `item_ids` those of the whole data set. The last shard of the
        smaller version may end early; it is encoded again, so that the bytes are those of a store made at once.

        Raises FuseMixLiteError if a shard holds other items.
        """
        whole = set()
        for number in sorted(self._older):
            _, metadata = open_shard(self.path / shard_name(number))
            indices = shards[number] if number < len(shards) else range(0)
            held = indices[: len(metadata["item_ids"]) + len(metadata["quarantine"])]
            if not holds(metadata, held, item_ids):
                grown, older = f"{self.origin.dataset_id} does not begin with the items of", origin_of(metadata).dataset_id
                raise FuseMixLiteError(f"{grown} {older}, which {self.path} holds: choose a new folder")
            if len(held) == len(indices):
                whole.add(number)
        return whole

    def adopt(self, number: int) -> None:
        """Take over a shard of a smaller version of the data set: give it this store's name."""
        array, metadata = open_shard(self.path / shard_name(number))
        self.write(number, array, metadata["item_ids"], metadata["quarantine"])

    def write(self, number: int, latents: np.ndarray, item_ids: Sequence[str], quarantine: Sequence[dict] = ()) -> None:
        """Write one shard: latents (n, D), all finite, with one item id a row. n may be 0."""
        from safetensors.numpy import save

        if self._lock is not None and not self._lock.lock.is_locked:
            raise FuseMixLiteError(f"{self.path}: this writer has finished, and another one may be at work: make a new one")
        file = self.path / shard_name(number)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(latents, dtype=self.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            why = f"overflows {self.dtype}: use float32" if np.isfinite(latents[row]).all() else "is not finite"
            raise FuseMixLiteError(f"{file}: the latent of item {item_ids[row]} (row {row} of the shard) {why}")
        metadata = {**self.origin.as_dict(), "item_ids": list(item_ids), "quarantine": list(quarantine)}
        _write(file, save({"latents": stored}, {"fusemix_lite": json.dumps(metadata)}))
        self._done.add(number)

    def finish(self, count: int) -> LatentStore:
        """Write quarantine.json and the manifest over shards 0 … `count` - 1, and open the store."""
        manifest, quarantine = describe(self.path, count, self.origin, self.dtype.name)
        if not manifest["count"]:
            for number in range(count):  # they hold nothing, and would bar the folder to the data set once it is mended
                (self.path / shard_name(number)).unlink()
            why = f", first of all {quarantine[0]['item_id']}: {quarantine[0]['reason']}" if quarantine else ""
            raise FuseMixLiteError(f"{self.path}: no latent to store{why}")
        for file in self.path.glob("*" + ASIDE):  # of processes that died: every other one has written all it had to
            with suppress(OSError):  # now, as nobody looks for them where there is a manifest
                file.unlink()
        write_description(self.path, manifest, quarantine)
        sync_folder(self.path.parent)
        self.close()
        return LatentStore.open(self.path)


def hold_lock(folder: Path, rank: int = 0, wait: bool = True) -> "AcquireReturnProxy":
    """Take the lock that whoever writes a store holds, for a `with`.

    It is a file beside the folder, which does no harm when it is left: a process that dies lets go of it. `rank`: of several
    processes that write different shards of one store. Raises FuseMixLiteError if somebody has it, unless `wait`.
    """
    from filelock import FileLock, Timeout

    real = folder.resolve()  # "." has no name, and whoever comes by a link is to wait for the same lock
    file = real.with_name(f"{real.name}{f'.{rank}' if rank else ''}.lock")
    if file.is_symlink():  # older versions of filelock empty what it leads to
        raise FuseMixLiteError(f"{file} is a link: delete it")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(file, thread_local=False).acquire(timeout=-1 if wait else 0)
    except NotImplementedError:  # of older versions of filelock; newer ones make do without the system
        raise FuseMixLiteError(f"{file} cannot be locked: its file system has no locks; choose a folder on another") from None
    except (Timeout, RuntimeError):  # of this very thread
        raise FuseMixLiteError(f"{folder} is being written by another process or thread: wait, or choose another") from None
    except OSError as error:
        raise not_written(file, error) from error


def describe(
    folder: Path, count: int, origin: LatentOrigin, dtype: str, hashes: Mapping[int, str] | None = None, version: int = 2
) -> tuple[dict, list[dict]]:
    """The manifest and the quarantine of shards 0 … `count` - 1, which follow from what these hold.

    `hashes`: their sha256 where it is known. `version` 1: item ids are in the manifest, however many.
    """
    shards, item_ids, quarantine, rows, dim = [], [], [], 0, 0
    for number in range(count):
        file = folder / shard_name(number)
        array, metadata = open_shard(file)
        shards.append({"name": file.name, "rows": len(array), "sha256": hashes[number] if hashes else sha256(file)})
        rows, dim = rows + len(array), array.shape[1]
        item_ids = item_ids + metadata["item_ids"] if rows <= IDS_IN_MANIFEST or version == 1 else []
        quarantine += metadata["quarantine"]
    manifest = {
        "format": FORMAT,
        "version": 1 if item_ids else 2,
        **origin.as_dict(),
        "shape": [rows, dim],
        "dtype": dtype,
        "count": rows,
        "quarantined": len(quarantine),
        "shards": shards,
        **({"item_ids": item_ids} if item_ids else {}),
    }
    return manifest, quarantine


def holds(metadata: dict, indices: Sequence[int], item_ids: Sequence[str]) -> bool:
    """Whether a shard is about the items of these indices, those that were left out included, in their order."""
    left_out = {entry["index"] for entry in metadata["quarantine"]}
    kept = [item_ids[index] for index in indices if index not in left_out]
    gone = [(index, item_ids[index]) for index in indices if index in left_out]
    return metadata["item_ids"] == kept and [(entry["index"], entry["item_id"]) for entry in metadata["quarantine"]] == gone


def write_description(folder: Path, manifest: dict, quarantine: list[dict]) -> None:
    """Write what `describe` gives, the manifest last: a folder that has one is complete."""
    _write(folder / QUARANTINE, as_json(quarantine))
    _write(folder / MANIFEST, as_json(manifest))


def _write(file: Path, content: bytes) -> None:
    try:
        write_aside(file, content)
    except OSError as error:
        raise not_written(file, error) from error


def remedy(folder: Path) -> str:
    """What helps against a damaged file of a store, for messages."""
    return f"run fusemix-lite verify --repair {folder}"


def open_same(path: Path, origin: LatentOrigin, may_append: bool = False) -> LatentStore:
    """The complete store of a folder. Raises FuseMixLiteError unless its latents are of this origin; `may_append`: to whoever
    has a smaller version of the data set there, appending is named as a remedy."""
    store = LatentStore.open(path)
    if store.origin != origin:
        own = store.origin
        alike = replace(own, dataset_id=origin.dataset_id, items=origin.items) == origin
        grown = may_append and alike and own.items < origin.items
        append = ", or append (append=True, --append) if the data have only grown at their end" if grown else ""
        raise FuseMixLiteError(f"{path} holds {store.origin}, not {origin}: choose another folder, or delete this one{append}")
    return store


def _check_alike(stores: Sequence[LatentStore]) -> None:
    """Raise FuseMixLiteError unless all are by one encoder, with the same preprocessing, precision, dimension and dtype."""

    def kind(store: LatentStore) -> dict:
        own = {key: value for key, value in vars(store.origin).items() if key not in ("dataset_id", "items")}
        return own | {"dimension": store.dim, "dtype": store.array.dtype.name}

    first = kind(stores[0])
    for store in stores[1:]:
        other = kind(store)
        key = next((key for key in first if first[key] != other[key]), None)
        if key is not None:
            pair = ((stores[0], first), (store, other))
            named = ", ".join(f"{s.path} is by {own['encoder_id']} ({key} {str(own[key])[:12]})" for s, own in pair)
            raise FuseMixLiteError(f"merge: {named}: latents of different encoders do not mix; extract one of them again")


def read_manifest(file: Path) -> dict:
    """The manifest, with everything in it checked that opening a store relies on."""
    if not file.is_file():
        raise FuseMixLiteError(f"{file} is missing: no latent store, or not finished (extract again to go on)")
    if file.is_symlink():
        raise FuseMixLiteError(f"{file} is a link: {remedy(file.parent)}")
    remedies = remedy(file.parent)
    manifest = read_json(file, remedies)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") not in VERSIONS:
        raise FuseMixLiteError(f'{file} is not of format "{FORMAT}", version {" or ".join(map(str, VERSIONS))}: {remedies}')
    try:
        origin_of(manifest)
        count, dim = manifest["shape"]
        rows = [shard["rows"] for shard in manifest["shards"]]
        if not all(type(number) is int and number >= 0 for number in (count, dim, *rows)) or dim > LARGEST_DIM:
            raise ValueError("shape and rows must be whole numbers, none of them absurd")
        if manifest["version"] == 2 and "item_ids" in manifest:
            raise ValueError("item ids in a manifest of version 2")
        named = len(manifest["item_ids"]) if manifest["version"] == 1 else count
        if not count == sum(rows) == manifest["count"] == named:
            raise ValueError("shape, count, item ids and rows of the shards disagree")
        _check_ids(manifest.get("item_ids", []))
        for number, shard in enumerate(manifest["shards"]):
            if shard["name"] != shard_name(number) or not re.fullmatch("[0-9a-f]{64}", shard["sha256"]):
                raise ValueError(f"shard {number} is called {shard['name']!r}")
        if not rows or manifest["dtype"] not in _CODES:
            raise ValueError("no shard, or an unknown dtype")
    except (KeyError, TypeError, ValueError) as error:
        raise FuseMixLiteError(f"{file} is broken ({_told(error)}): {remedies}") from error
    return manifest


def origin_of(record: dict) -> LatentOrigin:
    known = {"precision": "fp32"} | record
    for field in fields(LatentOrigin):
        if type(known[field.name]) is not (int if field.name == "items" else str):
            raise TypeError(f"{field.name} is {known[field.name]!r:.80}")
    return LatentOrigin(**{field.name: known[field.name] for field in fields(LatentOrigin)})


def _check_ids(item_ids: Any) -> None:
    if not isinstance(item_ids, list) or not all(isinstance(item, str) for item in item_ids):
        raise ValueError("item ids must be strings, in a list")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def open_shard(file: Path) -> tuple[np.ndarray, dict]:
    """The latents (n, D) of a shard as a read-only memory map, and its metadata."""
    if not file.is_file() or file.is_symlink():
        raise FuseMixLiteError(f"{file} is missing or a link: {remedy(file.parent)}")
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(size, HEADER):
                raise ValueError("cut in its header")
            header = json.loads(opened.read(length))
        metadata, latents = json.loads(header["__metadata__"]["fusemix_lite"]), header["latents"]
        dtype = np.dtype({code: name for name, code in _CODES.items()}[latents["dtype"]])
        rows, dim = latents["shape"]
        _check_ids(metadata["item_ids"])
        if type(rows) is not int or type(dim) is not int or rows != len(metadata["item_ids"]) or not 0 <= dim <= LARGEST_DIM:
            raise ValueError(f"{latents['shape']!r:.80} latents for {len(metadata['item_ids'])} item ids")
        _check_left_out(metadata["quarantine"])
        if size != 8 + length + rows * dim * dtype.itemsize or latents["data_offsets"] != [0, size - 8 - length]:
            raise ValueError(f"truncated or too long: {size} bytes")
        origin_of(metadata)
        empty = rows * dim == 0  # an empty map is impossible
        array = np.empty((rows, dim), dtype) if empty else np.memmap(file, dtype, "r", 8 + length, (rows, dim))
    except OSError as error:
        why = f"{file} cannot be read ({error.strerror or error})"
        raise FuseMixLiteError(f"{why}: see to its disk, or {remedy(file.parent)}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FuseMixLiteError(f"{file} is broken ({_told(error)}): {remedy(file.parent)}") from error
    return array, metadata


def read_quarantine(folder: Path) -> list[dict]:
    """The items that were left out of a store."""
    file = folder / QUARANTINE
    if file.is_symlink():
        raise FuseMixLiteError(f"{file} is a link: {remedy(folder)}")
    quarantine = read_json(file, remedy(folder))
    try:
        _check_left_out(quarantine)
    except (KeyError, TypeError, ValueError) as error:
        raise FuseMixLiteError(f"{file} is no list of items ({_told(error)}): {remedy(folder)}") from error
    return quarantine


def _check_left_out(entries: Any) -> None:
    for entry in entries if isinstance(entries, list) else [entries]:
        if type(entry["index"]) is not int or not isinstance(entry["item_id"], str) or not isinstance(entry["reason"], str):
            raise ValueError(f"no item that was left out: {entry!r:.80}")
    if not isinstance(entries, list):
        raise ValueError("no list")


def check_length(array: np.ndarray, size: int | None = None) -> None:
    """Raise FuseMixLiteError if the file of a memory map is shorter by now: reading it would end the process.

    size: of the file that bears its name, which has to be as long as it was.
    """
    if isinstance(array, np.memmap):
        end = array.offset + array.nbytes
        if size != end if size is not None else array._mmap.size() < end:
            file = Path(array.filename)
            raise FuseMixLiteError(f"{file} is not as long as when it was opened: {remedy(file.parent)}")


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def shard_number(name: str) -> int | None:
    """The number in the name of a shard; None for the name of anything else."""
    number = name.removeprefix("shard-").removesuffix(".safetensors")
    return int(number) if number.isdecimal() and name == shard_name(int(number)) else None
