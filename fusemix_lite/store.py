"""A store of latents: a folder of safetensors shards that are memory-mapped and look like one array.

    store/
      shard-00000.safetensors   latents (n, D); its metadata say whose they are, so that each shard stands for itself
      shard-00001.safetensors   …
      quarantine.json           items left out: index, item_id, path, reason
      manifest.json             shape, dtype, count, dataset, encoder, sha256 of every shard, item ids; written last

Every file is written aside and renamed, so that a file with its final name is whole and a folder with a manifest is
complete. Only safetensors and JSON are read, and what a manifest says is checked before it is used.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .disk import as_json, read_json, sha256, write_aside
from .errors import FuseMixLiteError

FORMAT = "fusemix-lite latents"
VERSION = 1
ROWS_PER_SHARD = 2048

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

    def __str__(self) -> str:
        return f"{self.items} items of {self.dataset_id} by {self.encoder_id} ({self.encoder_revision[:12]})"


class ShardedRows:
    """Rows (N, D) of several memory-mapped arrays behind one index. Read-only.

    `rows[i]`, `rows[a:b]` and `rows[indices or mask]` read only what they return; `np.asarray(rows)` reads everything.
    """

    def __init__(self, shards: Sequence[np.ndarray]):
        self._shards = list(shards)
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
        for shard in np.unique(home):
            mine = home == shard
            out[mine] = self._shards[shard][flat[mine] - self._starts[shard]]
        return out.reshape(*rows.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of several shards cannot become one array without a copy")
        return np.concatenate(self._shards, dtype=dtype or self.dtype)


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

    @property
    def item_ids(self) -> list[str]:
        """The item of each row; an item with several captions has several rows."""
        return self.manifest["item_ids"]

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
        item_ids = []
        for shard in self.manifest["shards"]:
            file = self.path / shard["name"]
            item_ids += _open_shard(file)[1]["item_ids"]
            if sha256(file) != shard["sha256"]:
                raise FuseMixLiteError(f"{file} is not what was written (its sha256 differs): {_REMEDY}")
        if item_ids != self.item_ids:
            raise FuseMixLiteError(f"{self.path / 'manifest.json'} and the shards disagree on item ids: {_REMEDY}")


class LatentWriter:
    """Writes a store shard by shard, in any order, over as many processes' lives as it takes.

    Whole shards that are already there are kept (`has` tells which), damaged ones count as missing. Only one writer a
    folder at a time: the caller locks it. Raises FuseMixLiteError if the folder holds something else.
    """

    def __init__(self, path: str | Path, origin: LatentOrigin, dtype: str = "float16"):
        if dtype not in _CODES:
            raise FuseMixLiteError(f"latents are stored as {' or '.join(_CODES)}, not {dtype}")
        self.path, self.origin, self.dtype = Path(path), origin, np.dtype(dtype)
        self._done: set[int] = set()
        self.path.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.path.iterdir()):
            if file.suffix == ".tmp" or file.name == "quarantine.json":
                continue  # left by a process that died; written again
            number = file.name.removeprefix("shard-").removesuffix(".safetensors")
            if not number.isdecimal() or file.name != _shard_name(int(number)):
                raise FuseMixLiteError(f"{self.path} is in use (it holds {file.name}): choose a new folder")
            try:
                array, metadata = _open_shard(file)
            except FuseMixLiteError:
                continue  # damaged; written again
            if _origin(metadata) != origin or array.dtype != self.dtype:
                raise FuseMixLiteError(f"{file} does not hold {origin} in {dtype}: choose a new folder")
            self._done.add(int(number))

    def has(self, number: int) -> bool:
        """Whether this shard is there and whole."""
        return number in self._done

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
        metadata = {**vars(self.origin), "item_ids": list(item_ids), "quarantine": list(quarantine)}
        write_aside(file, save({"latents": stored}, {"fusemix_lite": json.dumps(metadata)}))
        self._done.add(number)

    def finish(self, count: int) -> LatentStore:
        """Write quarantine.json and the manifest over shards 0 … `count` - 1, and open the store."""
        shards, item_ids, quarantine, dim = [], [], [], 0
        for number in range(count):
            file = self.path / _shard_name(number)
            array, metadata = _open_shard(file)
            shards.append({"name": file.name, "rows": len(array), "sha256": sha256(file)})
            item_ids += metadata["item_ids"]
            quarantine += metadata["quarantine"]
            dim = array.shape[1]
        if not item_ids:
            why = f", first of all {quarantine[0]['item_id']}: {quarantine[0]['reason']}" if quarantine else ""
            raise FuseMixLiteError(f"{self.path}: no latent to store{why}")
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **vars(self.origin),
            "shape": [len(item_ids), dim],
            "dtype": self.dtype.name,
            "count": len(item_ids),
            "quarantined": len(quarantine),
            "shards": shards,
            "item_ids": item_ids,
        }
        write_aside(self.path / "quarantine.json", as_json(quarantine))
        write_aside(self.path / "manifest.json", as_json(manifest))
        return LatentStore.open(self.path)


def _read_manifest(file: Path) -> dict:
    """The manifest, with everything in it checked that opening a store relies on."""
    if not file.is_file():
        raise FuseMixLiteError(f"{file} is missing: no latent store, or not finished (extract again to go on)")
    manifest = read_json(file, _REMEDY)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise FuseMixLiteError(f'{file} is not of format "{FORMAT}", version {VERSION}: {_REMEDY}')
    try:
        _origin(manifest)
        count, dim = manifest["shape"]
        rows = [shard["rows"] for shard in manifest["shards"]]
        if not all(type(number) is int and number >= 0 for number in (count, dim, *rows)):
            raise ValueError("shape and rows must be whole numbers")
        if not count == sum(rows) == manifest["count"] == len(manifest["item_ids"]):
            raise ValueError("shape, count, item ids and rows of the shards disagree")
        if not all(isinstance(item, str) for item in manifest["item_ids"]):
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
    return LatentOrigin(**{field.name: record[field.name] for field in fields(LatentOrigin)})


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
