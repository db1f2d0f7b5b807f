"""A reader's own files: pictures or sounds with captions, as a data set that `extract` takes.

Three layouts are read by `read_pairs`, all of them common ones:

    photos.csv (.tsv, .jsonl)       a table with a column `image` or `audio` (a path relative to the table), a column `text`
                                    and perhaps `split`; a file with several captions has several rows
    photos/ with captions.csv …     the same table in the folder (also metadata.csv or .jsonl with `file_name`, as on the hub)
    photos/a.jpg, photos/a.txt      a folder of files, each with a text file of its name: one caption a line, or none

Reading looks at names only. A file that is missing or broken and a caption that is empty reach the quarantine of
`extract`; `fusemix_lite.audit` counts what should be looked at before a number is believed.

A table is read row by row and may come from anybody: no path in it leaves its folder. A link is followed, as the folders of
the hub's cache are made of them; who unpacks a folder of a stranger should let no link come out (`unpacking` does not).
"""

import csv
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import FuseMixLiteError

if TYPE_CHECKING:
    from .pairs import LatentPairs

SUFFIXES = {
    "image": frozenset(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()),
    "audio": frozenset(".aif .aiff .au .flac .mp3 .oga .ogg .opus .wav".split()),
}
TABLES = (".csv", ".tsv", ".jsonl")
LONGEST_ROW = 1 << 22  # characters of a row of a table, or of the captions beside a picture: more is no caption

_OF_DISKS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")  # at the root of one, and not for everybody
_LONE_CR = re.compile(r"(?<=\r)(?!\n|\Z)")  # as old Macs end lines
_IN_FOLDER = tuple(f"{stem}{suffix}" for stem in ("captions", "metadata") for suffix in TABLES)


@dataclass(frozen=True, eq=False)
class FilePairs:
    """Media files and their captions. Made by `read_pairs`.

    An item is a media file; its id is its path below `folder`, with forward slashes.
    """

    source: Path  # the table or folder that was read
    folder: Path  # what items are relative to
    media: str  # "image" or "audio"
    items: list[str] = field(repr=False)  # N ids, unique, in order of appearance
    captions: list[tuple[int, str]] = field(repr=False)  # M of (index of the item, text)
    splits: list[str] | None = field(default=None, repr=False)  # N part names

    @cached_property
    def id(self) -> str:
        """A short name that changes with everything that latents depend on: items, captions, sizes and times of files.

        Neither the place of the folder nor the split is part of it: moving a data set keeps its latents.
        """
        stamps = []
        for path in self.paths:
            try:
                stat = path.stat()
                stamps.append([stat.st_size, stat.st_mtime_ns])
            except OSError:
                stamps.append(None)
        content = json.dumps([self.media, self.items, self.captions, stamps])
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", self.source.resolve().stem)[:40]
        return f"{readable}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    @property
    def paths(self) -> list[Path]:
        """N paths of the media files."""
        return [self.folder / item for item in self.items]

    def __len__(self) -> int:
        """N, the number of items."""
        return len(self.items)

    def fields(self, modality: str) -> tuple[list[str], Sequence]:
        """Item ids and values: the media's paths, one an item, or for "text" the captions with their item's id."""
        if modality == "text":
            return [self.items[index] for index, _ in self.captions], [text for _, text in self.captions]
        if modality != self.media:
            raise FuseMixLiteError(f"no field {modality!r} in {self.id}; there are {self.media}, text")
        return self.items, self.paths


class _Row(NamedTuple):
    """One line of a table; everything in it is checked but whether the file exists."""

    item: str
    texts: list[str]
    split: str | None


def read_pairs(source: str | Path, media: str | None = None) -> FilePairs:
    """Read a table or a folder of media files with captions; see the head of this module for the layouts.

    `media` ("image" or "audio") settles which column or which files are meant where both would do.

    Raises FuseMixLiteError naming file and line: no such file, an unknown kind of table, not UTF-8, a missing column, a
    path that is absolute or leaves the folder, one file in two parts, nothing to read.
    """
    source = Path(source)
    if media not in (None, *SUFFIXES):
        raise FuseMixLiteError(f'media = {media!r}: give "image" or "audio"')
    if source.is_dir():
        tables = [source / name for name in _IN_FOLDER if (source / name).is_file()]
        if not tables:
            return _read_folder(source, media)
        if len(tables) > 1:
            raise FuseMixLiteError(f"{source} holds {' and '.join(t.name for t in tables)}: give the one that is meant")
        return _read_table(source, tables[0], media)
    if not source.is_file():
        raise FuseMixLiteError(f"{source} does not exist: give a folder or a table ({', '.join(TABLES)})")
    if source.suffix.lower() not in TABLES:
        raise FuseMixLiteError(f"{source} is no table that can be read: save it as {', '.join(TABLES)}, in UTF-8")
    return _read_table(source, source, media)


def split_items(
    pairs: "LatentPairs",
    dataset: FilePairs | None = None,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, "LatentPairs"]:
    """Parts of the pairs of a data set: by its split column where it has one, else randomly by item.

    Items that did not survive extraction are gone from `pairs`; the others are found by their id. `fractions` are 80, 10
    and 10 % for train, val and test unless given, and are drawn with `seed`.
    """
    if dataset is None or dataset.splits is None:
        fractions = dict(fractions or {"train": 0.8, "val": 0.1, "test": 0.1})
        if pairs.n_items * min(fractions.values(), default=0) < 1:
            raise FuseMixLiteError(f"{pairs.n_items} items are too few for parts of {fractions}: every part needs one")
        return pairs.split(fractions, seed)
    from .arrays import take_parts

    part_of = dict(zip(dataset.items, dataset.splits, strict=True))
    unknown = [item for item in pairs.item_ids or [None] if item not in part_of]
    if unknown:
        raise FuseMixLiteError(f"{len(unknown)} items of the pairs are not in {dataset.source}, {unknown[0]!r} among them")
    return take_parts(pairs, [part_of[item] for item in pairs.item_ids])


def _read_folder(folder: Path, media: str | None) -> FilePairs:
    """A folder without a table: every media file below it, with the captions of the text file of its name."""
    found = {kind: [] for kind in SUFFIXES}
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        # thumbnails, checkpoints, __MACOSX
        folders[:] = [name for name in folders if not name.startswith((".", "__")) and name not in _OF_DISKS]
        for name in names:
            kind = _kind(name)
            if kind and not name.startswith("."):
                found[kind].append((Path(place) / name).relative_to(folder))
    if media is None:
        kinds = [kind for kind in SUFFIXES if found[kind]]
        if len(kinds) > 1:
            raise FuseMixLiteError(f'{folder} holds pictures and sounds: say which with media="image" or media="audio"')
        media = kinds[0] if kinds else None
    if not media or not found[media]:
        suffixes = " ".join(sorted(SUFFIXES.get(media) or SUFFIXES["image"] | SUFFIXES["audio"]))
        raise FuseMixLiteError(f"{folder} holds no {media or 'media'} file (looked for {suffixes})")
    paths = sorted(found[media], key=Path.as_posix)
    captions = []
    for index, path in enumerate(paths):
        file = folder / path.with_suffix(".txt")
        if file.is_file():
            lines = re.split(r"[\r\n]+", read_text(file))  # str.splitlines also breaks where Unicode would
            captions += [(index, line.strip()) for line in lines if line.strip()]
    items = [encodable(str(folder), path.as_posix()) for path in paths]
    tables = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in TABLES)
    if tables and not captions:
        warnings.warn(
            f"no captions: {folder / tables[0]} is not read, since it is not called captions.csv: give the table itself",
            stacklevel=3,
        )
    return FilePairs(folder, folder, media, items, captions)


def _read_table(source: Path, table: Path, media: str | None) -> FilePairs:
    rows = json_rows(table) if table.suffix.lower() == ".jsonl" else csv_rows(table)
    index_of: dict[str, int] = {}
    captions, splits = [], []
    column = None
    for line, row in rows:
        where = f"{table}, line {line}"
        if column is None or column not in row:  # the rows of a CSV have one header, those of JSONL need not
            column, kind = _media_column(where, row, media)
            media = media or kind
        item, texts, split = _checked(where, row, column, media)
        media = media or _kind(item)
        index = index_of.setdefault(item, len(index_of))
        if index == len(splits):
            splits.append(split)
        elif splits[index] != split:
            raise FuseMixLiteError(f'{where}: "{item}" is in part "{split}" here, in "{splits[index]}" above: choose one')
        captions += [(index, caption) for caption in texts]
    if not index_of:
        raise FuseMixLiteError(f"{table} holds no row: give a header and a row for each caption")
    if None in splits and any(splits):
        lacking = next(item for item, index in index_of.items() if splits[index] is None)
        raise FuseMixLiteError(f'{table}: "{lacking}" has no split, others have: name a part in every row, or in none')
    return FilePairs(source, table.parent, media, list(index_of), captions, splits if any(splits) else None)


def _media_column(where: str, row: Mapping[str, Any], media: str | None) -> tuple[str, str | None]:
    """The column with paths, and the medium it stands for (None for `file_name`: suffixes tell)."""
    named = [kind for kind in SUFFIXES if kind in row and media in (None, kind)]
    if len(named) == 1:
        return named[0], named[0]
    if named:
        raise FuseMixLiteError(f'{where}: there are columns image and audio: say which with media="image" or "audio"')
    if "file_name" in row:
        return "file_name", None
    wanted = f'"{media}"' if media else '"image" or "audio"'
    have = ", ".join(map(str, row))
    raise FuseMixLiteError(f'{where}: no column {wanted} (or "file_name"); the first line names {have}: rename it there')


def _checked(where: str, row: Mapping[str, Any], column: str, media: str | None) -> _Row:
    """The cells of one row. Errors begin with `where`."""
    if "text" not in row:
        raise FuseMixLiteError(f'{where}: no column "text"; there are {", ".join(map(str, row))}')
    item = relative_path(where, row[column])
    kind = _kind(item)
    if kind is None and column == "file_name" and media is None:
        raise FuseMixLiteError(f'{where}: the suffix of "{item}" tells neither a picture nor a sound: name the column so')
    if kind and media and kind != media:
        raise FuseMixLiteError(f'{where}: "{item}" is no {media}: a table holds one kind of media')
    texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
    texts = ["" if text is None else text for text in texts]
    if not all(isinstance(text, str) for text in texts):
        raise FuseMixLiteError(f"{where}: text must be a caption or a list of captions")
    split = row.get("split")
    if split is not None and (not isinstance(split, str) or not split.strip()):
        raise FuseMixLiteError(f'{where}: split must name a part, such as "train"')
    return _Row(item, [encodable(where, text.strip()) for text in texts], split and encodable(where, split.strip()))


def relative_path(where: str, path: Any) -> str:
    """The id of a media file: its normal relative path, forward slashes."""
    if not isinstance(path, str) or not path.strip():
        raise FuseMixLiteError(f"{where}: no path of a media file")
    if "://" in path:
        raise FuseMixLiteError(f'{where}: "{path}" is an address: fetch the file and name it relative to the table')
    plain = path.strip().replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]  # as PurePosixPath has them, in a fifth of the time
    if not parts or plain.startswith("/") or re.match(r"[A-Za-z]:/", plain) or ".." in parts:
        raise FuseMixLiteError(f'{where}: "{path}" leaves the folder of the table: put the table above its files')
    if "\0" in plain:
        raise FuseMixLiteError(f'{where}: "{path}" holds a NUL, which no name of a file does: write it again')
    return encodable(where, "/".join(parts))


def encodable(where: str, text: str) -> str:
    """The text itself; half a surrogate pair, from a broken escape or file name, would stop a tokenizer much later."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FuseMixLiteError(f"{where}: {text!a} holds a character that is not Unicode: write it again") from error
    return text


def csv_rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number (of a row's end) and cells by column."""
    lines, size = text_lines(table, old_macs=True), 0
    begin = []  # up to the first line that says something, which tells the delimiter
    for line in lines:
        begin.append(line)
        if line.strip():
            break
    first = begin[-1] if begin else ""
    semicolons = ";" in first and "," not in first  # as spreadsheets write where the comma is the decimal sign
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ";" if semicolons else ","

    def counted() -> Iterator[str]:  # a quote that never closes would make one row of the whole file
        nonlocal size
        for line in chain(begin, lines):
            size += len(line)
            if size > LONGEST_ROW:
                raise _too_long(f"{table}, line {reader.line_num + 1}")
            yield line

    reader = csv.reader(counted(), delimiter=delimiter, strict=True)
    header = None
    try:
        for cells in reader:
            where, size = f"{table}, line {reader.line_num}", 0
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if len(set(header)) < len(header):
                    raise FuseMixLiteError(f"{where}: a column name occurs twice: {', '.join(header)}")
                continue
            if len(cells) != len(header):
                raise FuseMixLiteError(
                    f"{where}: {len(cells)} cells under {len(header)} columns: put quotes around a caption with commas"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise FuseMixLiteError(f"{table}, line {reader.line_num}: {error}: check the quotes") from error


def json_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text_lines(table), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FuseMixLiteError(f"{table}, line {number}: no JSON ({error}): a .jsonl holds one object a line") from error
        if not isinstance(row, dict):
            raise FuseMixLiteError(f"{table}, line {number}: no JSON object: a .jsonl holds one object a line")
        yield number, row


def text_lines(file: Path, old_macs: bool = False) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, one at a time, as it may be larger than the memory. A byte order mark goes.

    old_macs: a carriage return alone ends a line, too, as in tables of old Macs; else it is a character of a caption.

    Raises FuseMixLiteError naming the line: not UTF-8, a NUL, longer than `LONGEST_ROW`.
    """
    try:
        with file.open("rb") as opened:
            number = 0
            while content := opened.readline(LONGEST_ROW + 1):
                if len(content) > LONGEST_ROW:
                    raise _too_long(f"{file}, line {number + 1}")
                text = _decoded(f"{file}, line {number + 1}", content, first=number == 0)
                lines = _LONE_CR.split(text) if old_macs and "\r" in text else (text,)
                number += len(lines)
                yield from lines
    except OSError as error:
        raise FuseMixLiteError(f"{file} cannot be read ({error.strerror or error}): see to the file") from error


def read_text(file: Path) -> str:
    """The text of a small UTF-8 file; a byte order mark is dropped."""
    try:
        with file.open("rb") as opened:
            content = opened.read(LONGEST_ROW + 1)
    except OSError as error:
        raise FuseMixLiteError(f"{file} cannot be read ({error.strerror or error}): see to the file") from error
    if len(content) > LONGEST_ROW:
        raise _too_long(str(file))
    lines = content.splitlines(keepends=True)  # of bytes: at line ends only
    return "".join(_decoded(f"{file}, line {number}", line, number == 1) for number, line in enumerate(lines, 1))


def _decoded(where: str, content: bytes, first: bool) -> str:
    try:
        if b"\0" in content:
            raise UnicodeDecodeError("utf-8", content, 0, 1, "a NUL byte")
        return content.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise FuseMixLiteError(f"{where}: not UTF-8 text ({error.reason}): save it as UTF-8") from error


def _too_long(where: str) -> FuseMixLiteError:
    return FuseMixLiteError(f"{where}: more than {LONGEST_ROW:,} characters in a row: is a quote open, or is it another file?")


def _unreadable(error: OSError) -> None:
    lost = "what is in it would be missing: see to it, or move it away"
    raise FuseMixLiteError(f"{error.filename} cannot be read ({error.strerror}): {lost}") from error


def _kind(name: str) -> str | None:
    """The medium, image or audio, by suffix."""
    suffix = PurePosixPath(name).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)
