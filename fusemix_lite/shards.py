"""WebDataset shards as `img2dataset` writes them: tar files with 000000000.jpg, .txt and .json for every pair.

A shard is gone through once, for the places of its pictures and the captions; that list is kept in the cache, since the 576
shards of CC3M take ten minutes or so. Nothing is unpacked and no name in a shard ever reaches the disk. Only pictures, sounds,
text and JSON are read; whatever else a shard holds (pickled arrays, in other people's shards) is passed over.
"""

import hashlib
import json
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .disk import write_aside
from .errors import FuseMixLiteError
from .extraction import cache_dir
from .files import SUFFIXES
from .public_layouts import Row
from .public_pairs import PublicPairs, TarMembers, collect

INDEX_VERSION = 1


class Sample(NamedTuple):
    """One pair of a shard: its key, where its picture or sound lies, its caption."""

    key: str
    offset: int
    size: int
    text: str


def read_shards(shards: Sequence[Path], name: str, split: str, media: str = "image") -> PublicPairs:
    """All pairs of some shards. Ids are the shard's name and the key in it: "00000/000000012".

    A pair without a picture or sound is left out, one without a caption keeps an empty one, which reaches the quarantine.

    Raises FuseMixLiteError naming the shard: not a tar file, cut short, captions that are not UTF-8, nothing in it.
    """
    from tqdm import tqdm

    samples = [index_shard(shard, media) for shard in tqdm(shards, desc=f"reading shards of {name}", unit=" shards", delay=5)]
    rows = (
        (f"{shard}, {sample.key}", Row(f"{shard.stem}/{sample.key}", (sample.key,), [sample.text]))
        for shard, found in zip(shards, samples, strict=True)
        for sample in found
    )
    collected = collect(rows)
    places = np.array([(s.offset, s.size) for found in samples for s in found], np.int64).reshape(-1, 2)
    home = np.repeat(np.arange(len(shards)), [len(found) for found in samples])
    values = TarMembers(list(shards), home, places[:, 0], places[:, 1])
    if len(values) != len(collected.items):
        raise FuseMixLiteError(f"{shards[0].parent}: a key occurs twice in a shard: fetch the shards again")
    return PublicPairs(name, split, media, collected.items, values, collected.texts, collected.owners)


def index_shard(shard: Path, media: str = "image") -> list[Sample]:
    """The pairs of a shard, in its order. Kept in `cache_dir()` under the shard's path, size and time."""
    stat = shard.stat()
    key = f"{INDEX_VERSION} {media} {shard.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    kept = cache_dir() / "shards" / f"{shard.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        content = json.loads(kept.read_text("utf-8"))
        if content["key"] == key:
            return [Sample(*sample) for sample in content["samples"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there yet, or broken: made again
    samples = _scan(shard, media)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_aside(kept, json.dumps({"key": key, "samples": samples}, ensure_ascii=False).encode(), sync=False)
    except OSError:
        pass  # a cache that cannot be written costs time, no more
    return samples


def _scan(shard: Path, media: str) -> list[Sample]:
    places, texts, captions, odd = _members(shard, media)
    if not places:
        raise FuseMixLiteError(f"{shard} holds no {media} file: fetch it again")
    if odd:
        warnings.warn(f"{shard}: {odd} links or paths that leave the folder were passed over", stacklevel=5)
    samples = []
    with shard.open("rb") as opened:

        def content(name: str, offset: int, size: int) -> bytes:
            opened.seek(offset)
            found = opened.read(size)
            if len(found) < size:
                raise FuseMixLiteError(f"{shard} is no whole tar file ({name} is cut short): fetch it again")
            return found

        for key, (name, offset, size) in places.items():
            text = ""
            told = texts.get(key) or captions.get(key)  # the JSON is looked into where there is no text
            try:
                if key in texts:
                    text = content(*told).decode()
                elif told:
                    about = json.loads(content(*told))
                    text = (about.get("caption") if isinstance(about, dict) else None) or ""
            except (ValueError, RecursionError) as error:
                if isinstance(error, FuseMixLiteError):
                    raise
                raise FuseMixLiteError(f"{shard}: {told[0]} cannot be read ({error}): fetch it again") from error
            if offset + size > shard.stat().st_size:
                raise FuseMixLiteError(f"{shard} is no whole tar file ({name} is cut short): fetch it again")
            samples.append(Sample(key, offset, size, text))
    return samples


def _members(shard: Path, media: str) -> tuple[dict, dict, dict, int]:
    """Name, offset and size of media, .txt and .json files, by key; and how many members are nothing of the kind."""
    places, texts, captions, odd = {}, {}, {}, 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                parts = member.name.split("/")
                if not member.isreg() or parts[0] == "" or ".." in parts:
                    odd += 1  # a link, a device, a path that leaves the folder: nothing that img2dataset writes
                    continue
                stem, _, suffix = parts[-1].partition(".")
                key, suffix = "/".join([*parts[:-1], stem]), suffix.lower()
                place = (member.name, member.offset_data, member.size)
                if f".{suffix}" in SUFFIXES[media]:
                    if key in places:
                        raise FuseMixLiteError(f"{shard}: {member.name} is the second file of its key: fetch it again")
                    places[key] = place
                elif suffix in ("txt", "json"):
                    (texts if suffix == "txt" else captions)[key] = place
    except (tarfile.TarError, EOFError) as error:
        raise FuseMixLiteError(f"{shard} is no whole tar file ({error}): fetch it again") from error
    return places, texts, captions, odd
