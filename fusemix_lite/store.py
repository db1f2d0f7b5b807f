"""A store of latents: a folder of safetensors shards that are memory-mapped and look like one array.

    store/
      shard-00000.safetensors   latents (n, D); its metadata say whose they are, so that each shard stands for itself
      shard-00001.safetensors   …
      quarantine.json           items left out: index, item_id, path, reason
      manifest.json             shape, dtype, count, dataset, encoder, sha256 of every shard, item ids; written last

The manifest of a store of more than `IDS_IN_MANIFEST` rows (version 2) holds no item ids: they are in the shards, and read
from there when somebody asks. Both versions are opened.

Every file is written aside and renamed, so that a file with its final name is whole and a folder with a manifest is
complete. Only safetensors and JSON are read, and what a manifest says is checked before it is used.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .disk import as_json, read_json, sha256, write_aside
from .errors import FuseMixLiteError

FORMAT = "fusemix-lite latents"
VERSIONS = (1, 2)  # with the item ids in the manifest, and without
ROWS_PER_SHARD = 2048
IDS_IN_MANIFEST = 100_000  # rows: as many ids are read in a moment, 5 million would take seconds and half a gigabyte

_CODES = {"float16": "F16", "float32": "F32"}  # dtype -> its name in safetensors
_REMEDY = "delete the folder and extract again"


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
            out[mine] = self.shards[shard][flat[mine] - self._starts[shard]]
        return out.reshape(*rows.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of several shards cannot become one array without a copy")
        return np.concatenate(self.shards, dtype=dtype or self.dtype)


@dataclass(frozen=True, eq=False)
class LatentStore:
    """Latents (N, D) and the item id of each row. Open one with `LatentStore.open`."""

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
        manifest = _read_manifest(path / "manifest.json")
        arrays = []
        for shard in manifest["shards"]:
            array, _ = _open_shard(path / shard["name"])
            expected = (shard["rows"], manifest["shape"][1])
            if array.shape != expected or array.dtype.name != manifest["dtype"]:
                found = f"{array.dtype} {array.shape}, not {manifest['dtype']} {expected}"
                raise FuseMixLiteError(f"{path / shard['name']} holds {found}: {_REMEDY}")
            arrays.append(array)
        return cls(path, manifest, arrays[0] if len(arrays) == 1 else ShardedRows(arrays))

    @classmethod
    def write(
        cls, path: str | Path, latents: np.ndarray, item_ids: Sequence[str], origin: LatentOrigin | None = None
    ) -> "LatentStore":
        """Store latents (N, D), float16 or float32, that are already there; one item id a row."""
        latents = np.asarray(latents)
        if latents.ndim != 2 or len(latents) != len(item_ids):
            raise FuseMixLiteError(f"{path}: latents of shape {latents.shape} do not fit {len(item_ids)} item ids")
        writer = LatentWriter(path, origin or LatentOrigin("", len(item_ids), "", "", "", ""), latents.dtype.name)
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
        return _origin(self.manifest)

    @property
    def quarantine(self) -> list[dict]:
        """Items left out at extraction, each with index, item_id, path (or None) and reason."""
        return read_json(self.path / "quarantine.json", _REMEDY)

    def __len__(self) -> int:
        return self.array.shape[0]

    def __repr__(self) -> str:
        (N, D), origin = self.array.shape, self.origin
        whose = f", {origin.modality} by {origin.encoder_id}" if origin.encoder_id else ""
        return f"LatentStore({self.path}: {N} x {D}{whose})"

    def verify(self) -> None:
        """Read every byte again. Raises FuseMixLiteError naming the first file that changed since it was written."""
        for shard in self.manifest["shards"]:
            file = self.path / shard["name"]
            if sha256(file) != shard["sha256"]:
                raise FuseMixLiteError(f"{file} is not what was written (its sha256 differs): {_REMEDY}")
        if ItemIds(self._ids_by_shard()) != self.item_ids:
            raise FuseMixLiteError(f"{self.path / 'manifest.json'} and the shards disagree on item ids: {_REMEDY}")

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
        from filelock import FileLock

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
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(out.name + ".lock")):
            if (out / "manifest.json").exists():
                return open_same(out, origin)
            writer = LatentWriter(out, origin, stores[0].array.dtype.name)
            number = offset = 0
            for store, prefix in zip(stores, prefixes, strict=True):
                for shard in store.manifest["shards"]:
                    if not writer.has(number):
                        array, metadata = _open_shard(store.path / shard["name"])
                        left_out = [
                            entry | {"index": entry["index"] + offset, "item_id": prefix + entry["item_id"]}
                            for entry in metadata["quarantine"]
                        ]
                        writer.write(number, array, [prefix + item for item in metadata["item_ids"]], left_out)
                    number += 1
                offset += store.origin.items
            return writer.finish(number)

    def _ids_by_shard(self) -> Iterator[list[str]]:
        return (_open_shard(self.path / shard["name"])[1]["item_ids"] for shard in self.manifest["shards"])


class LatentWriter:
    """Writes a store shard by shard, in any order, over as many processes' lives as it takes.

    Whole shards that are already there are kept (`has` tells which), damaged ones count as missing. Two writers of a folder
    must not write the same shard: the caller sees to that. With `append`, shards of another version of the data set do no
    harm: `check_older` tells those that `adopt` can take over. Raises FuseMixLiteError if the folder holds something else.
    """

    def __init__(self, path: str | Path, origin: LatentOrigin, dtype: str = "float16", append: bool = False):
        if dtype not in _CODES:
            raise FuseMixLiteError(f"latents are stored as {' or '.join(_CODES)}, not {dtype}")
        self.path, self.origin, self.dtype = Path(path), origin, np.dtype(dtype)
        self._done: set[int] = set()
        self._older: set[int] = set()
        self.path.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.path.iterdir()):
            if file.suffix == ".tmp" or file.name == "quarantine.json" or (append and file.name == "manifest.json"):
                continue  # left by a process that died, or of a smaller store; written again
            number = file.name.removeprefix("shard-").removesuffix(".safetensors")
            if not number.isdecimal() or file.name != _shard_name(int(number)):
                raise FuseMixLiteError(f"{self.path} is in use (it holds {file.name}): choose a new folder")
            self.look(int(number), append)

    def has(self, number: int) -> bool:
        """Whether this shard is there and whole."""
        return number in self._done

    def look(self, number: int, append: bool = False) -> bool:
        """Whether this shard is there and whole by now, from whoever. Raises FuseMixLiteError if it is of another store."""
        file = self.path / _shard_name(number)
        if number in self._done or not file.exists():
            return number in self._done
        try:
            array, metadata = _open_shard(file)
        except FuseMixLiteError:
            return False  # damaged; written again
        found = _origin(metadata)
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
            array, metadata = _open_shard(self.path / _shard_name(number))
            left_out = {entry["index"] for entry in metadata["quarantine"]}
            indices = shards[number] if number < len(shards) else range(0)
            held = indices[: len(array) + len(left_out)]
            kept = [item_ids[index] for index in held if index not in left_out]
            gone = [(entry["index"], entry["item_id"]) for entry in metadata["quarantine"]]
            if metadata["item_ids"] != kept or gone != [(index, item_ids[index]) for index in held if index in left_out]:
                grown = f"{self.origin.dataset_id} does not begin with the items of"
                raise FuseMixLiteError(f"{grown} {_origin(metadata).dataset_id}, which {self.path} holds: choose a new folder")
            if len(held) == len(indices):
                whole.add(number)
        return whole

    def adopt(self, number: int) -> None:
        """Take over a shard of a smaller version of the data set: give it this store's name."""
        array, metadata = _open_shard(self.path / _shard_name(number))
        self.write(number, array, metadata["item_ids"], metadata["quarantine"])

    def write(self, number: int, latents: np.ndarray, item_ids: Sequence[str], quarantine: Sequence[dict] = ()) -> None:
        """Write one shard: latents (n, D), all finite, with one item id a row. n may be 0."""
        from safetensors.numpy import save

        file = self.path / _shard_name(number)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(latents, dtype=self.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            why = f"overflows {self.dtype}: use float32" if np.isfinite(latents[row]).all() else "is not finite"
            raise FuseMixLiteError(f"{file}: the latent of item {item_ids[row]} (row {row} of the shard) {why}")
        metadata = {**self.origin.as_dict(), "item_ids": list(item_ids), "quarantine": list(quarantine)}
        write_aside(file, save({"latents": stored}, {"fusemix_lite": json.dumps(metadata)}))
        self._done.add(number)

    def finish(self, count: int) -> LatentStore:
        """Write quarantine.json and the manifest over shards 0 … `count` - 1, and open the store."""
        shards, item_ids, quarantine, rows, dim = [], [], [], 0, 0
        for number in range(count):
            file = self.path / _shard_name(number)
            array, metadata = _open_shard(file)
            shards.append({"name": file.name, "rows": len(array), "sha256": sha256(file)})
            rows, dim = rows + len(array), array.shape[1]
            item_ids = item_ids + metadata["item_ids"] if rows <= IDS_IN_MANIFEST else []
            quarantine += metadata["quarantine"]
        if not rows:
            for number in range(count):  # they hold nothing, and would bar the folder to the data set once it is mended
                (self.path / _shard_name(number)).unlink()
            why = f", first of all {quarantine[0]['item_id']}: {quarantine[0]['reason']}" if quarantine else ""
            raise FuseMixLiteError(f"{self.path}: no latent to store{why}")
        manifest = {
            "format": FORMAT,
            "version": 1 if item_ids else 2,
            **self.origin.as_dict(),
            "shape": [rows, dim],
            "dtype": self.dtype.name,
            "count": rows,
            "quarantined": len(quarantine),
            "shards": shards,
            **({"item_ids": item_ids} if item_ids else {}),
        }
        write_aside(self.path / "quarantine.json", as_json(quarantine))
        write_aside(self.path / "manifest.json", as_json(manifest))
        return LatentStore.open(self.path)


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


def _read_manifest(file: Path) -> dict:
    """The manifest, with everything in it checked that opening a store relies on."""
    if not file.is_file():
        raise FuseMixLiteError(f"{file} is missing: no latent store, or not finished (extract again to go on)")
    manifest = read_json(file, _REMEDY)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") not in VERSIONS:
        raise FuseMixLiteError(f'{file} is not of format "{FORMAT}", version {" or ".join(map(str, VERSIONS))}: {_REMEDY}')
    try:
        _origin(manifest)
        count, dim = manifest["shape"]
        rows = [shard["rows"] for shard in manifest["shards"]]
        if not all(type(number) is int and number >= 0 for number in (count, dim, *rows)):
            raise ValueError("shape and rows must be whole numbers")
        if manifest["version"] == 2 and "item_ids" in manifest:
            raise ValueError("item ids in a manifest of version 2")
        named = len(manifest["item_ids"]) if manifest["version"] == 1 else count
        if not count == sum(rows) == manifest["count"] == named:
            raise ValueError("shape, count, item ids and rows of the shards disagree")
        if not all(isinstance(item, str) for item in manifest.get("item_ids", [])):
            raise ValueError("item ids must be strings")
        for number, shard in enumerate(manifest["shards"]):
            if shard["name"] != _shard_name(number) or not isinstance(shard["sha256"], str):
                raise ValueError(f"shard {number} is called {shard['name']!r}")
        if not rows or manifest["dtype"] not in _CODES:
            raise ValueError("no shard, or an unknown dtype")
    except (KeyError, TypeError, ValueError) as error:
        raise FuseMixLiteError(f"{file} is broken ({type(error).__name__}: {error}): {_REMEDY}") from error
    return manifest


def _origin(record: dict) -> LatentOrigin:
    known = {"precision": "fp32"} | record
    return LatentOrigin(**{field.name: known[field.name] for field in fields(LatentOrigin)})


def _open_shard(file: Path) -> tuple[np.ndarray, dict]:
    """The latents (n, D) of a shard as a read-only memory map, and its metadata."""
    if not file.is_file() or file.is_symlink():
        raise FuseMixLiteError(f"{file} is missing or a link: {_REMEDY}")
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > size:
                raise ValueError("cut in its header")
            header = json.loads(opened.read(length))
        metadata, latents = json.loads(header["__metadata__"]["fusemix_lite"]), header["latents"]
        dtype = np.dtype({code: name for name, code in _CODES.items()}[latents["dtype"]])
        rows, dim = latents["shape"]
        if not all(type(number) is int and number >= 0 for number in (rows, dim)) or len(metadata["item_ids"]) != rows:
            raise ValueError(f"{latents['shape']} latents for other item ids")
        if not all(isinstance(item, str) for item in metadata["item_ids"]):
            raise ValueError("item ids must be strings")
        if size != 8 + length + rows * dim * dtype.itemsize:
            raise ValueError(f"truncated or too long: {size} bytes")
        _origin(metadata)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FuseMixLiteError(f"{file} is broken ({type(error).__name__}: {error}): {_REMEDY}") from error
    if rows * dim == 0:
        return np.empty((rows, dim), dtype), metadata  # an empty map is impossible
    return np.memmap(file, dtype, "r", 8 + length, (rows, dim)), metadata


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
