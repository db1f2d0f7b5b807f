"""WebDataset shards as `img2dataset` writes them: tar files with 000000000.jpg, .txt and .json for every pair.

A shard is gone through once, for the places of its pictures and the captions; that list is kept in the cache, since the 576
shards of CC3M take ten minutes or so. Nothing is unpacked and no name in a shard ever reaches the disk. Only pictures, sounds,
text and JSON are read; whatever else a shard holds (pickled arrays, in other people's shards) is passed over.

A shard that is damaged is refused. A caption that cannot be read is one pair in millions: it is left out as an empty one is,
and a warning says how many there are.
"""

import hashlib
import json
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from .disk import write_aside
from .errors import FuseMixLiteError
from .extraction import cache_dir
from .files import SUFFIXES
from .public_layouts import Row
from .public_pairs import PublicPairs, TarMembers, collect
from .unpacking import CarefulTar, safe_name

INDEX_VERSION = 1
LONGEST_CAPTION = 1 << 24  # bytes of a file with a caption, or of the JSON with one


class Sample(NamedTuple):
    """One pair of a shard: its key, where its picture or sound lies, its caption."""

    key: str
    offset: int
    size: int
    text: str | None  # empty: the shard has none; None: it has something that is no text


def read_shards(shards: Sequence[Path], name: str, split: str, media: str = "image") -> PublicPairs:
    """All pairs of some shards. Ids are the shard's name and the key in it: "00000/000000012".

    A pair without a picture or sound is left out, one without a caption, or with one that cannot be read, keeps an empty one,
    which reaches the quarantine; a warning says how many could not be read.

    Raises FuseMixLiteError naming the shard: not a tar file, cut short, two files of one key, nothing in it.
    """
    from tqdm import tqdm

    samples = [index_shard(shard, media) for shard in tqdm(shards, desc=f"reading shards of {name}", unit=" shards", delay=5)]
    unread = [f"{shard}, {s.key}" for shard, found in zip(shards, samples, strict=True) for s in found if s.text is None]
    if unread:
        first = f"{len(unread)} captions cannot be read and are left out, the first of them in {unread[0]}"
        warnings.warn(f"{first}: not UTF-8, no JSON, or no text", stacklevel=4)
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
    if not shard.is_file():
        raise FuseMixLiteError(f"{shard} is no plain file: fetch it again")
    stat = shard.stat()
    key = f"{INDEX_VERSION} {media} {shard.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    kept = cache_dir() / "shards" / f"{shard.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        content = json.loads(kept.read_text("utf-8"))
        samples = [Sample(*sample) for sample in content["samples"]]
        if content["key"] == key and all(_is_whole(sample, stat.st_size) for sample in samples):
            return samples
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # not there yet, or broken: made again
    samples = _scan(shard, media)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_aside(kept, json.dumps({"key": key, "samples": samples}, ensure_ascii=False).encode(), sync=False)
    except (OSError, FuseMixLiteError):
        pass  # a cache that cannot be written costs time, no more
    return samples


def _is_whole(sample: Sample, size: int) -> bool:
    """Whether this is what `_scan` finds in a shard of that many bytes."""
    return (
        (isinstance(sample.key, str) and isinstance(sample.text, str | None))
        and (type(sample.offset) is int and type(sample.size) is int)
        and (0 <= sample.offset and 0 <= sample.size and sample.offset + sample.size <= size)
    )


def _scan(shard: Path, media: str) -> list[Sample]:
    places, texts, captions, odd = _members(shard, media)
    if not places:
        raise FuseMixLiteError(f"{shard} holds no {media} file: fetch it again")
    if odd:
        warnings.warn(f"{shard}: {odd} links or paths that leave the folder were passed over", stacklevel=5)
    end, samples = shard.stat().st_size, []
    with shard.open("rb") as opened:
        for key, (name, offset, size) in places.items():
            told = texts.get(key) or captions.get(key)  # the JSON is looked into where there is no text
            for called, start, length in filter(None, ((name, offset, size), told)):
                if start + length > end:
                    raise FuseMixLiteError(f"{shard} is no whole tar file ({called} is cut short): fetch it again")
            text = _caption(opened, *told[1:], told == texts.get(key)) if told else ""
            samples.append(Sample(key, offset, size, text))
    return samples


def _caption(opened: BinaryIO, offset: int, size: int, plain: bool) -> str | None:
    """The text of a .txt, or the caption that a .json names; empty if it names none, None if it is no text in Unicode."""
    if size > LONGEST_CAPTION:
        return None
    opened.seek(offset)
    content = opened.read(size)
    try:
        text = content.decode()
        if not plain:
            about = json.loads(text)
            text = about.get("caption") if isinstance(about, dict) else None
            text = "" if text is None else text
        text.encode()  # half a surrogate pair is none
    except (ValueError, RecursionError, AttributeError):
        return None
    return text


def _members(shard: Path, media: str) -> tuple[dict, dict, dict, int]:
    """Name, offset and size of media, .txt and .json files, by key; and how many members are nothing of the kind."""
    places, texts, captions, odd = {}, {}, {}, 0
    kinds = {**dict.fromkeys(SUFFIXES[media], places), ".txt": texts, ".json": captions}
    try:
        with shard.open("rb") as opened, CarefulTar.reading(opened) as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse() or safe_name(member.name) is None:
                    odd += 1  # a link, a device, a path that leaves the folder: nothing that img2dataset writes
                    continue
                *folders, name = member.name.split("/")
                stem, _, suffix = name.partition(".")
                key, kind = "/".join([*folders, stem]), kinds.get(f".{suffix.lower()}")
                if kind is None:
                    continue
                if key in kind:
                    raise FuseMixLiteError(f"{shard}: {member.name} is the second file of its key: fetch it again")
                kind[key] = (member.name, member.offset_data, member.size)
            if not archive.has_end:
                warnings.warn(f"{shard} has no end, as if it were cut short: it may lack pairs", stacklevel=6)
    except FuseMixLiteError:
        raise
    except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise FuseMixLiteError(f"{shard} is no whole tar file ({error}): fetch it again") from error
    return places, texts, captions, odd
