"""Pairs from the library `datasets` of Hugging Face: an object, a folder that `save_to_disk` wrote, or parquet files.

Needs the extra: pip install "fusemix-lite[data]". Media are taken as the bytes or the path that the table holds and
decoded here, as those of any other data set, so that no decoder of that library is needed. No script that comes with a
data set is run, and nothing is fetched. Files may come from anybody: what they name has to lie in their folder. An object is
taken as it is.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .disk import read_json
from .errors import FuseMixLiteError
from .public_layouts import Row
from .public_pairs import PublicPairs, collect
from .unpacking import AT_LEAST, RATIO, safe_name

_CAPTION = re.compile(r"(caption|text|sentence|raw)s?([_-]?[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Cell:
    """A picture or sound in a row of a table. Calling it gives a file's bytes, its path, or (samples, rate)."""

    table: Any
    row: int
    column: str
    home: Path | None = None  # the folder that a path in it may not leave; None: any path, as it stands

    def __call__(self) -> Any:
        value = self.table[self.row][self.column]
        if isinstance(value, dict) and value.get("array") is not None:  # a sound that was stored decoded
            return np.asarray(value["array"], np.float32), value["sampling_rate"]
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
        if isinstance(value, bytes) or content is not None:
            return value if content is None else content
        if isinstance(path, str):
            return _placed(path, self.home, f"row {self.row}: {self.column}")
        raise FuseMixLiteError(f"row {self.row}: {self.column} holds neither bytes nor a path, but {type(value).__name__}")


class Cells(Sequence):
    """One column of a table, (N,), made on the fly."""

    def __init__(self, table: Any, column: str, rows: Sequence[int], home: Path | None = None):
        self.table, self.column, self.rows, self.home = table, column, rows, home

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Cells(self.table, self.column, self.rows[index], self.home)
        return Cell(self.table, self.rows[index], self.column, self.home)

    def sizes(self) -> Iterator[int | None]:
        """Bytes (or samples) of each cell, from the table's own lengths: nothing is decoded. A path has its file's."""
        found = []
        for batch in self.table.select_columns([self.column]).with_format("arrow").iter(1000):
            found += _lengths(batch[self.column].combine_chunks(), self.home)
        return (found[row] for row in self.rows)


def read_hub(
    source: Any,
    media: str = "image",
    column: str | None = None,
    text: str | Sequence[str] | None = None,
    item: str | None = None,
    split: str | None = None,
) -> PublicPairs:
    """Pairs of a table of Hugging Face `datasets`.

    Args:
        source: a `datasets.Dataset`, a folder that its `save_to_disk` wrote, a parquet file or a folder of them.
        media: "image" or "audio".
        column: the column with them; None: the one called as `media`, or the only one of that type.
        text: the column or columns with captions (texts, or lists of them); None: all that are called like captions, such
            as caption, captions, text, caption_1.
        item: a column with ids; rows with one id become one item, of which the first picture or sound counts. None: every
            row is one.
        split: which one, if `source` holds several.

    Raises FuseMixLiteError: `datasets` is not installed, no such column, several splits and none named, nothing in it.
    """
    if media not in ("image", "audio"):
        raise FuseMixLiteError(f'media = {media!r}: give "image" or "audio"')
    table, name, home = _opened(source, split)
    column = column or _media_column(table, media, name)
    texts = [text] if isinstance(text, str) else list(text or _caption_columns(table, name))
    for wanted in (column, *texts, *([item] if item else [])):
        if wanted not in table.column_names:
            raise FuseMixLiteError(f'{name} has no column "{wanted}"; there are {", ".join(table.column_names)}')
    table = _undecoded(table, column)
    words = table.select_columns([*texts, *([item] if item else [])])
    ids = words[item] if item else [f"{row:08d}" for row in range(len(table))]
    lacking = next((row for row, value in enumerate(ids) if value is None or value != value), None)
    if lacking is not None:
        raise FuseMixLiteError(f'{name}, row {lacking}: no id in "{item}": all rows without one would be one item; fill it in')
    names = [str(value) for value in ids]
    if not names:
        raise FuseMixLiteError(f"{name} holds no row")
    rows = ((f"{name}, row {row}", Row(names[row], (names[row],), _captions(words[row], texts))) for row in range(len(table)))
    collected = collect(rows)
    place = {item: row for row, item in reversed(list(enumerate(names)))}  # the first row of an item
    values = Cells(table, column, [place[item] for item in collected.items], home)
    return PublicPairs(name, split or "all", media, collected.items, values, collected.texts, collected.owners)


def _opened(source: Any, split: str | None) -> tuple[Any, str, Path | None]:
    """A table, its name, and the folder that paths in it may not leave (None for an object, which its user has made)."""
    try:
        import datasets
    except ImportError as error:
        raise FuseMixLiteError('datasets is not installed: pip install "fusemix-lite[data]"') from error
    if not isinstance(source, str | Path):
        return _one_split(source, split, "table"), "table", None
    path = Path(source).expanduser()
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem)[:40] or "table"
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.parquet") if file.is_file())
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            _check_saved(path)
            return _whole(_one_split(datasets.load_from_disk(str(path)), split, path)), name, path
        if files and split and path.is_dir():
            files = [file for file in files if split in file.relative_to(path).as_posix()]
            if not files:
                raise FuseMixLiteError(f'{path} has no parquet file with "{split}" in its name')
        if files:
            return _whole(_table(datasets, files)), name, path if path.is_dir() else path.parent
    except FuseMixLiteError:
        raise
    except Exception as error:  # pyarrow and datasets have many kinds for what is damaged
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FuseMixLiteError(f"{path} cannot be read ({line}): write or fetch it again") from error
    raise FuseMixLiteError(f"{path} holds no data: give a folder of save_to_disk, or parquet files")


def _check_saved(folder: Path) -> None:
    """Raise for a folder of `save_to_disk` that names files or splits outside of it."""
    remedy = "write or fetch it again"
    if (folder / "dataset_dict.json").is_file():
        named = read_json(folder / "dataset_dict.json", remedy)["splits"]
        states = {split: folder / str(split) / "state.json" for split in named}
    else:
        named, states = [], {"": folder / "state.json"}
    for split, state in states.items():
        if split in named and safe_name(split) != split:
            raise FuseMixLiteError(f"{folder} names the split {split!r}, which leaves the folder: {remedy}")
        for file in read_json(state, remedy)["_data_files"]:
            if safe_name(file["filename"]) is None:
                raise FuseMixLiteError(f"{state} names {file['filename']!r}, which leaves the folder: {remedy}")


def _whole(table: Any) -> Any:
    """The table itself, once every length and text in it has been looked at: Arrow reads them from the file unchecked."""
    table.data.validate(full=True)
    return table


def _table(datasets: Any, files: Sequence[Path]) -> Any:
    """Parquet files as a table, mapped into memory by way of a copy in the cache of `datasets`, which it names itself."""
    from pyarrow.parquet import read_metadata

    from .extraction import cache_dir

    for file in files:
        about = read_metadata(file)
        size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        if size > max(AT_LEAST, RATIO * file.stat().st_size):
            raise FuseMixLiteError(f"{file} would take {size:,} bytes, which is out of proportion: nothing was written")
    return datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=str(cache_dir() / "hub"))


def _placed(path: str, home: Path | None, where: str) -> Path:
    """The file that a cell names. Raises if it is not below `home`."""
    if home is None:
        return Path(path)
    place = os.path.abspath(home / path)
    if "\0" in path or os.path.commonpath([place, os.path.abspath(home)]) != os.path.abspath(home):
        remedy = "if you trust it, give the table itself, opened by datasets"
        raise FuseMixLiteError(f"{where} names {path!r}, which is not in the folder of the table: {remedy}")
    return Path(place)


def _one_split(found: Any, split: str | None, where: Any) -> Any:
    if not hasattr(found, "column_names"):
        raise FuseMixLiteError(f"{type(found).__name__} is no table of datasets: give a datasets.Dataset")
    if not isinstance(found.column_names, dict):  # a dict of splits tells the columns of each
        return found
    if split not in found:
        raise FuseMixLiteError(f"{where} holds the splits {', '.join(found)}: name one with split=")
    return found[split]


def _media_column(table: Any, media: str, name: str) -> str:
    kind = media.capitalize()  # datasets.Image, datasets.Audio
    found = [column for column, feature in table.features.items() if type(feature).__name__ == kind]
    if media in table.column_names:
        return media
    if len(found) == 1:
        return found[0]
    raise FuseMixLiteError(f"{name}: which column holds the {media}? Name it: column=, of {', '.join(table.column_names)}")


def _caption_columns(table: Any, name: str) -> list[str]:
    found = [column for column in table.column_names if _CAPTION.fullmatch(column)]
    if not found:
        raise FuseMixLiteError(f"{name}: which column holds the captions? Name it: text=, of {', '.join(table.column_names)}")
    return found


def _undecoded(table: Any, column: str) -> Any:
    feature = table.features[column]
    if type(feature).__name__ in ("Image", "Audio"):
        table = table.cast_column(column, type(feature)(decode=False))
    return table.with_format(None)


def _lengths(cells: Any, home: Path | None) -> list[int | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    def is_binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    fields = {cells.type.field(i).name for i in range(cells.type.num_fields)} if pa.types.is_struct(cells.type) else set()
    if "array" in fields:
        return pc.list_value_length(pc.struct_field(cells, "array")).to_pylist()
    if is_binary(cells.type):
        return pc.binary_length(cells).to_pylist()
    paths = (pc.struct_field(cells, "path") if "path" in fields else cells).to_pylist()
    there = "bytes" in fields and is_binary(cells.type.field("bytes").type)  # a column that is empty has a type of its own
    sizes = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist() if there else [None] * len(paths)
    return [_file_size(path, home) if size is None else size for path, size in zip(paths, sizes, strict=True)]


def _file_size(path: Any, home: Path | None) -> int | None:
    try:
        return _placed(path, home, "").stat().st_size
    except (OSError, TypeError, ValueError):
        return None


def _captions(row: dict, columns: Sequence[str]) -> list[Any]:
    """The texts of a row; a column that is empty there brings none, if another one does."""
    found = [text for column in columns for text in (row[column] if isinstance(row[column], list) else [row[column]])]
    return [text for text in found if text is not None] or [""]
