"""Latents that somebody else made: arrays in safetensors, `.npy` or a `LatentStore`, joined to pairs by part.

An array is named by a *spec*, so that one string on a command line is enough:

    pack.safetensors:image      one array of a file that holds several (the key may be left out where it holds one)
    image.npy                   one array; pickled objects are refused
    latents/image               the folder of a `LatentStore`, its rows
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .decoding import first_line
from .disk import plain_size, read_json
from .errors import FuseMixLiteError
from .store import LatentStore
from .untrusted import held_by

if TYPE_CHECKING:
    from .pairs import LatentPairs

_SPECS = "FILE.safetensors:KEY, FILE.npy or the folder of a latent store"


def load_array(spec: str | Path) -> np.ndarray:
    """The array of a spec, in its own dtype (bfloat16, which NumPy lacks, as float32).

    Raises FuseMixLiteError for a file that is missing, damaged or of another kind, for a key that is not there, and for
    an array that holds no real numbers.
    """
    file, key = _parse(spec)
    if file.is_dir():
        return np.asarray(LatentStore.open(file).array)
    if not file.exists():
        raise FuseMixLiteError(f"{file} does not exist: give {_SPECS}")
    if file.suffix == ".safetensors":
        array = _from_safetensors(file, key)
    elif file.suffix == ".npy":
        array = _from_npy(file)
    else:
        raise FuseMixLiteError(f"{file} is of an unknown kind: give {_SPECS}")
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise FuseMixLiteError(f"{spec} holds {array.dtype!s:.80}, not numbers: give floats (or integers for an owner)")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def load_latent_pairs(
    x: str | Path,
    y: str | Path,
    owner: str | Path | None = None,
    split: str | Path | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, "LatentPairs"]:
    """Latent pairs by part, such as ``{"train": …, "val": …, "test": …}``; ``{"all": …}`` without a split.

    Args:
        x, y, owner: specs of x (N, dx), y (M, dy) and owner (M,), as `LatentPairs` takes them. Two stores need no owner:
            they are joined by item id.
        split: a JSON file: a list of N part names, one a row of x, or an object that holds such a list as "split". An
            object may also hold N item names as "items"; they become the item ids, or find the rows of a store by id.
        names: the two modalities, x first. None: what two stores say, else ("image", "text").

    Raises:
        FuseMixLiteError: whatever `load_array` and `LatentPairs` refuse, or a split that does not fit x.
    """
    from .pairs import LatentPairs

    x_store, y_store = _store(x), _store(y)
    if x_store and y_store and owner is None:
        said = (x_store.origin.modality, y_store.origin.modality)
        pairs = LatentPairs.from_stores(x_store, y_store, names or (said if all(said) else ("image", "text")))
    else:
        owner = None if owner is None else load_array(owner)
        ids = None if x_store is None else x_store.item_ids
        pairs = LatentPairs(load_array(x), load_array(y), owner, names or ("image", "text"), ids)
    if split is None:
        return {"all": pairs}
    parts, pairs.item_ids = _fit_split(Path(split), pairs.item_ids, pairs.n_items)
    return take_parts(pairs, parts)


def take_parts(pairs: "LatentPairs", parts: Sequence[str]) -> dict[str, "LatentPairs"]:
    """The pairs of each part; `parts` names one for each item. A part without any pair is left out with a warning."""
    import torch

    paired = set(pairs.owner.unique().tolist())
    taken = {}
    for name in dict.fromkeys(parts):
        rows = [row for row, part in enumerate(parts) if part == name]
        if paired.isdisjoint(rows):
            warnings.warn(f'part "{name}" left out: none of its {len(rows)} items has a {pairs.names[1]}', stacklevel=3)
        else:
            taken[name] = pairs.take(torch.tensor(rows))
    return taken


def _parse(spec: str | Path) -> tuple[Path, str | None]:
    """File and key. Only what follows `.safetensors:` is a key, since colons are legal in paths and stand after drives."""
    stem, found, key = str(spec).rpartition(".safetensors:")
    if not found or Path(spec).exists():
        return Path(spec), None
    return Path(stem + ".safetensors"), key


def _from_safetensors(file: Path, key: str | None) -> np.ndarray:
    import torch
    from safetensors import safe_open

    held = held_by(file)
    if key is None and len(held) == 1:
        key = next(iter(held))
    if key not in held:
        lacks = f'holds no "{key}"' if key else "holds several arrays" if held else "holds no array"
        known = ", ".join(" ".join(name.split()) for name in sorted(held)[:20]) or "none"
        raise FuseMixLiteError(f"{file} {lacks}: give FILE.safetensors:KEY with one of {known}")
    try:
        with safe_open(file, framework="pt") as opened:
            tensor = opened.get_tensor(key)
    except Exception as error:  # the library has a class of its own for a damaged file, and the system others
        raise FuseMixLiteError(f"{file} cannot be read as safetensors ({first_line(error)}): write it again") from error
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _from_npy(file: Path) -> np.ndarray:
    try:
        plain_size(file)
        with file.open("rb") as opened:
            zipped = opened.read(4).startswith(b"PK")
        # Mapped, so that a header which promises more than the file holds is refused before memory is taken.
        array = None if zipped else np.array(np.load(file, allow_pickle=False, mmap_mode="r"))
    except Exception as error:  # NumPy raises ValueError, EOFError and others
        raise FuseMixLiteError(
            f"{file} cannot be read as .npy ({first_line(error)}): write it with numpy.save(…, allow_pickle=False)"
        ) from error
    if array is None:  # a zip of several arrays under a wrong name
        raise FuseMixLiteError(f"{file} is an .npz archive: save its arrays one by one with numpy.save")
    return array


def _store(spec: str | Path) -> LatentStore | None:
    return LatentStore.open(spec) if Path(spec).is_dir() else None


def _read_split(file: Path) -> tuple[list[str], list[str] | None]:
    """Part names and, if the file has them, item names."""
    content = read_split(file)
    parts = content.get("split") if isinstance(content, dict) else content
    items = content.get("items") if isinstance(content, dict) else None
    if not _strings(parts):
        raise FuseMixLiteError(f'{file} holds no split: give a list of part names, or an object with it as "split"')
    if not _strings(items):
        return parts, None  # "items" may be records of another kind, which name nothing
    if len(items) != len(parts):
        raise FuseMixLiteError(f'{file}: "items" must hold one name for each of the {len(parts)} entries of "split"')
    return parts, items


def read_split(file: Path) -> Any:
    """The content of a split file, which may begin with a byte order mark."""
    return read_json(file, "give a list of part names as JSON", "utf-8-sig")


def _fit_split(file: Path, ids: Sequence[str] | None, rows: int) -> tuple[list[str], Sequence[str] | None]:
    """Part names and item ids, one a row of x: by item id where both sides have one, else by place."""
    parts, items = _read_split(file)
    if ids is not None and items is not None:
        part_of = dict(zip(items, parts, strict=True))
        if len(part_of) < len(items):
            twice = next(item for item, count in Counter(items).items() if count > 1)
            raise FuseMixLiteError(f'{file}: "items" names {twice!r:.200} more than once: name each once, with its part')
        unknown = [item for item in ids if item not in part_of]
        if unknown:
            raise FuseMixLiteError(f'{file} names no part for {len(unknown)} items of x, "{unknown[0]}" among them')
        return [part_of[item] for item in ids], ids
    if len(parts) != rows:
        raise FuseMixLiteError(f'{file} splits {len(parts)} items, but x has {rows} rows: add their names as "items"')
    return parts, ids if items is None else tuple(items)


def _strings(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, str) and entry for entry in value)
