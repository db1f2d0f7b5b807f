"""How public data sets lie on a disk: readers of their lists of captions, exactly as they are published.

A reader takes one file and a split, and yields rows: an item, the name of its picture or sound, its captions. Where media
lie is found afterwards, since every downloader has a folder of its own for them. Sources of the formats: the files
themselves, and the public code that reads them (Karpathy's neuraltalk, LAVIS, torchvision, aac-datasets, img2dataset).
"""

import csv
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .disk import read_json
from .errors import FuseMixLiteError
from .files import SUFFIXES, csv_rows, relative_path, text_lines

_AGAIN = "fetch it again"
_LARGEST = 2**32  # bytes of a list in JSON, which is read whole; Visual Genome's regions are the longest
_PROBED = 200  # entries of a folder whose files are looked for before it is taken for the wrong one


class Row(NamedTuple):
    """What one entry of a list of captions says: an item, the name of its file, captions.

    `names` are alternatives, the likeliest first, where a data set does not fix how its files are called.
    """

    item: str
    names: tuple[str, ...]
    texts: Sequence[str]


Rows = Iterator[tuple[str, Row]]  # (where it stands, for errors; row)


@dataclass(frozen=True)
class Layout:
    """One way in which a data set is published.

    `captions` are names of the file to read by split, the first that is there; with a star, tar shards, all of them. `media`
    are folders in which pictures or sounds may lie, {split} standing for what the data set calls it. `partial`: what is not
    there was never fetched (a dead link in a list of addresses), so that it is no item at all.
    """

    words: str
    captions: Mapping[str, tuple[str, ...]]
    media: tuple[str, ...]
    read: Callable[[Path, str], Rows] | None = None
    by_stem: bool = False  # names without suffixes, one of several
    partial: bool = False
    own_splits: Mapping[str, str] = field(default_factory=dict)  # train -> development

    def find(self, folder: Path, split: str) -> list[Path]:
        """The files with captions: one, or all shards; empty if there is none."""
        for pattern in self.captions.get(split, ()):
            found = sorted(folder.glob(pattern)) if "*" in pattern else [folder / pattern]
            if found and found[0].is_file():
                return found
        return []

    def folders(self, folder: Path, split: str) -> list[Path]:
        """Where media may lie, as far as it is there."""
        names = (name.format(split=self.own_splits.get(split, split)) for name in self.media)
        return [path for path in (folder / name for name in names) if path.is_dir()]


class Resolved(NamedTuple):
    """Where media lie: below `root`, one name an item; the items whose file was seen (None: not looked at one by one)."""

    root: Path
    names: list[str]
    there: list[int] | None


def resolve(folders: Sequence[Path], names: Sequence[tuple[str, ...]], by_stem: bool, media: str) -> Resolved | None:
    """Find the media of items in these folders; None if there are none at all.

    Exact names are looked for in the first folder that holds any of the first few, of the first few of each folder where they
    name one: COCO's val2014 alone, with which its training list begins, is not COCO's training. Stems are looked for in all.
    """
    if not by_stem:
        probes: dict[str, list[str]] = {}
        for name, *_ in names:
            probe = probes.setdefault(name.rpartition("/")[0], [])
            if len(probe) < _PROBED:
                probe.append(name)

        def holds_all(folder: Path) -> bool:
            return all(any(os.path.isfile(folder / name) for name in probe) for probe in probes.values())  # names of any kind

        root = next((folder for folder in folders if holds_all(folder)), None)
        return root and Resolved(root, [alternatives[0] for alternatives in names], None)
    if not folders:
        return None
    root = Path(os.path.commonpath(folders))
    found = {}
    for folder in reversed(folders):  # the first folder wins
        with os.scandir(folder) as entries:  # in any order: of two files with one stem, the first by name is taken
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                stem, suffix = os.path.splitext(entry.name)
                if (suffix.lower() in SUFFIXES[media] or not suffix) and entry.is_file():
                    found[stem] = (folder / entry.name).relative_to(root).as_posix()
    places = [next((found[name] for name in alternatives if name in found), None) for alternatives in names]
    there = [index for index, place in enumerate(places) if place is not None]
    likely = folders[0].relative_to(root)
    shown = [place or (likely / alternatives[0]).as_posix() for place, alternatives in zip(places, names, strict=True)]
    return Resolved(root, shown, there) if there else None


# readers


def karpathy(file: Path, split: str, with_folder: bool = False) -> Rows:
    """`dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json` of Karpathy's caption_datasets.zip.

    {"images": [{"filename", "split", "sentences": [{"raw", …}], "filepath": in COCO, …}], …}. Training is "train" and, in COCO,
    "restval".
    """
    content = read_json(file, _AGAIN, at_most=_LARGEST)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise FuseMixLiteError(f'{file} has no list "images": give dataset_*.json of Karpathy\'s caption_datasets.zip')
    wanted = {"train", "restval"} if split == "train" else {split}
    for number, entry in enumerate(images):
        where = f"{file}, image {number}"
        name, part, sentences = _text(where, entry, "filename"), _text(where, entry, "split"), _get(where, entry, "sentences")
        if part not in wanted:
            continue
        path = relative_path(where, f"{_text(where, entry, 'filepath')}/{name}" if with_folder else name)
        texts = [_get(where, sentence, "raw") for sentence in _listed(where, sentences)]
        yield where, Row(_base(path), (path,), texts)


def karpathy_coco(file: Path, split: str) -> Rows:
    """As `karpathy`; files lie in the folders train2014 and val2014, which the list names."""
    return karpathy(file, split, with_folder=True)


def lavis(file: Path, split: str, whole_path: bool = False) -> Rows:
    """`flickr30k_test.json`, `sbu.json` and the like of BLIP and LAVIS: [{"image", "caption": one or a list, …}]."""
    for where, entry in _entries(file):
        path = relative_path(where, _get(where, entry, "image"))
        name = _base(path)
        yield where, Row(name, (path if whole_path else name,), _texts(entry))


def lavis_coco(file: Path, split: str) -> Rows:
    """`coco_karpathy_train.json`: as `lavis`, with the folder (val2014/COCO_val2014_….jpg)."""
    return lavis(file, split, whole_path=True)


def visual_genome_captions(file: Path, split: str) -> Rows:
    """`vg_caption.json`: as `lavis`; whatever folder its author kept VG_100K in is cut off."""
    for where, entry in _entries(file):
        path = _get(where, entry, "image")
        known = re.search(r"(?:^|/)(VG_100K(?:_2)?/[0-9]+\.jpg)$", path) if isinstance(path, str) else None
        path = known[1] if known else relative_path(where, path)
        name = _base(path)
        yield where, Row(name, (os.path.splitext(name)[0],), _texts(entry))


def visual_genome_regions(file: Path, split: str) -> Rows:
    """`region_descriptions.json`: [{"id": of the image, "regions": [{"phrase", …}]}], with some fifty phrases an image."""
    for where, entry in _entries(file):
        number = _get(where, entry, "id")
        if type(number) is not int:
            raise FuseMixLiteError(f"{where}: id {number!r:.40} is no number: {_AGAIN}")
        phrases = [_get(where, region, "phrase") for region in _listed(where, _get(where, entry, "regions"))]
        yield where, Row(f"{number}.jpg", (str(number),), phrases)


def sbu_urls(file: Path, split: str) -> Rows:
    """`SBU_captioned_photo_dataset_urls.txt` and, beside it, `…_captions.txt`: line by line; a photo is named as in its URL."""
    other = file.with_name(file.name.replace("_urls", "_captions"))
    if not other.is_file():
        raise FuseMixLiteError(f"{other} is missing beside {file.name}: {_AGAIN}")
    yield from _by_url(file, *([line.rstrip("\r\n") for line in text_lines(one)] for one in (file, other)))


def sbu_json(file: Path, split: str) -> Rows:
    """`sbu-captions-all.json`: {"image_urls": […], "captions": […], …}."""
    content = read_json(file, _AGAIN, at_most=_LARGEST)
    lists = [content.get(key) if isinstance(content, dict) else None for key in ("image_urls", "captions")]
    yield from _by_url(file, *(_listed(str(file), found) for found in lists))


def _by_url(file: Path, urls: Sequence[Any], texts: Sequence[Any]) -> Rows:
    if len(texts) > len(urls) and not any(texts[len(urls) :]):
        texts = texts[: len(urls)]  # empty lines at the end
    if len(urls) != len(texts):
        raise FuseMixLiteError(f"{file}: {len(urls)} addresses and {len(texts)} captions: {_AGAIN}")
    for number, (url, text) in enumerate(zip(urls, texts, strict=True), 1):
        where = f"{file}, line {number}"
        if not isinstance(url, str):
            raise FuseMixLiteError(f"{where}: {url!r:.40} is no address: {_AGAIN}")
        name = url.rstrip().rpartition("/")[2].partition("?")[0]
        if name:
            name = relative_path(where, name)
            yield where, Row(name, (os.path.splitext(name)[0],), [text])


def conceptual_captions(file: Path, split: str) -> Rows:
    """`Train_GCC-training.tsv`: caption, tab, URL, no header (`img2dataset` wants one: it is passed over).

    Pictures are named as the common downloaders do it: ROW_CRC32, the row from 0 and the CRC-32 of the URL, with or without
    .jpg. Read row by row, since the file has three million.
    """
    first, row = True, 0
    try:
        reader = csv.reader(text_lines(file, old_macs=True), delimiter="\t")  # quotes as in pandas, which counted the rows
        for cells in reader:
            where = f"{file}, line {reader.line_num}"
            header, first = first and cells[:2] == ["caption", "url"], False
            if header or not cells:
                continue
            if len(cells) != 2:
                raise FuseMixLiteError(f"{where}: {len(cells)} cells, not caption and URL: {_AGAIN}")
            name = f"{row}_{zlib.crc32(cells[1].encode())}"
            yield where, Row(name, (name,), [cells[0]])
            row += 1
    except csv.Error as error:
        raise FuseMixLiteError(f"{file} cannot be read after row {row} ({error}): {_AGAIN}") from error


def kaggle_flickr(file: Path, split: str) -> Rows:
    """`results.csv` of Kaggle's flickr-image-dataset: image_name| comment_number| comment, unquoted. One line lacks a bar."""
    for number, line in enumerate(text_lines(file), 1):
        where = f"{file}, line {number}"
        if not line.strip() or number == 1:
            continue
        found = re.fullmatch(r"([^|]+)\|\s*[0-9]+\s*(?:\||\s)\s*(.*)", line.rstrip("\r\n"))
        if not found:
            raise FuseMixLiteError(f"{where}: not IMAGE| NUMBER| CAPTION: {_AGAIN}")
        name = relative_path(where, found[1])
        yield where, Row(name, (name,), [found[2]])


def clotho(file: Path, split: str) -> Rows:
    """`clotho_captions_development.csv`: file_name, caption_1 … caption_5."""
    for line, row in csv_rows(file):
        where = f"{file}, line {line}"
        name = _get(where, row, "file_name")
        relative_path(where, name)  # checked; some names begin with a space, which belongs to them
        yield where, Row(name, (name,), [_get(where, row, f"caption_{k}") for k in range(1, 6)])


def audiocaps(file: Path, split: str) -> Rows:
    """`train.csv`: audiocap_id, youtube_id, start_time, caption. Clips of val and test have five rows.

    Downloaders call a clip YOUTUBE_START, YOUTUBE, YYOUTUBE or by its number.
    """
    names: dict[str, tuple[str, ...]] = {}
    for line, row in csv_rows(file):
        where = f"{file}, line {line}"
        number, video, start, text = (_get(where, row, key) for key in ("audiocap_id", "youtube_id", "start_time", "caption"))
        item = relative_path(where, f"{video}_{start}")
        if "/" in item:
            raise FuseMixLiteError(f'{where}: "{video}" is no id of a video: {_AGAIN}')
        alternatives = names.setdefault(item, (item, video, f"Y{video}", number))
        yield where, Row(item, alternatives, [text])


def _base(path: str) -> str:
    """The last part of a path with forward slashes; a `PurePosixPath` would take most of the time of a long list."""
    return path.rpartition("/")[2]


def _entries(file: Path) -> Iterator[tuple[str, Any]]:
    content = read_json(file, _AGAIN, at_most=_LARGEST)
    if not isinstance(content, list):
        raise FuseMixLiteError(f"{file} holds no list: {_AGAIN}")
    for number, entry in enumerate(content):
        yield f"{file}, entry {number}", entry


def _get(where: str, entry: Any, key: str) -> Any:
    if not isinstance(entry, Mapping) or key not in entry:
        raise FuseMixLiteError(f'{where}: no "{key}": {_AGAIN}')
    return entry[key]


def _text(where: str, entry: Any, key: str) -> str:
    found = _get(where, entry, key)
    if not isinstance(found, str):
        raise FuseMixLiteError(f'{where}: "{key}" is {found!r:.40}, no text: {_AGAIN}')
    return found


def _listed(where: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise FuseMixLiteError(f"{where}: a list is missing: {_AGAIN}")
    return value


def _texts(entry: Any) -> Iterable[Any]:
    found = entry.get("caption")
    return found if isinstance(found, list) else [found]
