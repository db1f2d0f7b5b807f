"""Open the public data sets of the paper and of the smaller profiles.

    open_dataset("flickr30k", "test", "~/data/flickr30k")
    open_dataset("coco+visual-genome+sbu+cc3m", "train")      # each in $FUSEMIX_LITE_DATA/<name>

Nothing is fetched here. What is missing is said in one line (`lacks`), and `fusemix-lite data NAME FOLDER` fetches what may be
fetched. `public_sets` has the records, `public_layouts` the readers.
"""

import os
import warnings
from pathlib import Path

from . import public_layouts as layouts
from .errors import FuseMixLiteError
from .public_layouts import Layout, Resolved
from .public_pairs import Collected, Files, PublicPairs, collect, union
from .public_sets import public_set


def open_dataset(name: str, split: str, folder: str | Path | None = None) -> PublicPairs:
    """One split of a public data set, as `extract` takes it, or of several: "coco+sbu".

    Args:
        name: one of `public_sets.DATASETS`; joined by "+" for a union, whose ids are then "coco/…", "sbu/…".
        split: "train", "val" or "test", as far as the data set has it.
        folder: where it lies; None: `$FUSEMIX_LITE_DATA/<name>`. Of a union: the folder of these folders.

    Raises FuseMixLiteError, in one line: an unknown name or split, something missing (`lacks` says the same), a list that is
    damaged, a path in it that leaves the folder.
    """
    parts = []
    for one, place in _places(name, split, folder):
        found = _find(one, split, place)
        if isinstance(found, str):
            raise FuseMixLiteError(found)
        parts.append(found())
    return parts[0] if len(parts) == 1 else union(parts)


def lacks(name: str, split: str, folder: str | Path | None = None) -> str | None:
    """What `open_dataset` would need: one line with what is missing, from where, how big, under which licence, and how to
    fetch it. None: all is there, as far as one can see from the first 200 pictures or sounds of each folder that are listed."""
    found = [_find(one, split, place) for one, place in _places(name, split, folder)]
    missing = [line for line in found if isinstance(line, str)]
    return "; ".join(missing) or None


def data_folder(name: str) -> Path:
    """Where a data set lies unless one says otherwise: `$FUSEMIX_LITE_DATA/<name>`."""
    own = os.environ.get("FUSEMIX_LITE_DATA")
    if not own:
        raise FuseMixLiteError(
            f"no folder for {name}: name it, or set FUSEMIX_LITE_DATA to the folder of your data sets, in which {name}/ lies "
            f"or will lie (`fusemix-lite data {name} FOLDER` fetches it, or says what to do by hand)"
        )
    return Path(own).expanduser() / name


def missing_line(name: str, what: str, folder: Path) -> str:
    """One line: what is missing, from where, how big, which licence, how to get it."""
    record = public_set(name)
    how = [f"fusemix-lite data {name} {folder}"] if record.remotes else []
    if record.by_hand:
        how.append(f"by hand {record.by_hand}")
    return f"{name}: {what} in {folder}. {record.size} ({record.page}); licence: {record.licence}. Get it: {'; '.join(how)}"


def _places(name: str, split: str, folder: str | Path | None) -> list[tuple[str, Path]]:
    names = name.split("+")
    if len(set(names)) < len(names):
        raise FuseMixLiteError(f'"{name}" names a data set twice')
    for one in names:
        known = {known for layout in public_set(one).layouts for known in layout.captions}
        if split not in known:
            raise FuseMixLiteError(f'{one} has no split "{split}"; there are {", ".join(sorted(known))}')
    if folder is None:
        return [(one, data_folder(one)) for one in names]
    folder = Path(folder).expanduser()
    return [(one, folder if len(names) == 1 else folder / one) for one in names]


def _find(name: str, split: str, folder: Path):
    """How to open a split, to be called; or a line that says what is missing."""
    record = public_set(name)
    for layout in record.layouts:
        files = layout.find(folder, split)
        if not files:
            continue
        if layout.read is None:
            from .shards import read_shards

            return lambda files=files: read_shards(files, name, split, record.media)
        collected = collect(layout.read(files[0], split))
        if not collected.items:
            raise FuseMixLiteError(f'{files[0]} holds nothing of split "{split}": fetch it again')
        media = layouts.resolve(layout.folders(folder, split), collected.names, layout.by_stem, record.media)
        if media is None:
            kind = {"image": "pictures", "audio": "sounds"}[record.media]
            return missing_line(name, f"no {kind} ({layout.words})", folder)
        return lambda layout=layout, c=collected, m=media: _opened(name, split, record.media, layout, c, m)
    words = " or ".join(layout.words for layout in record.layouts if split in layout.captions)
    return missing_line(name, f"no captions ({words})", folder)


def _opened(name: str, split: str, media: str, layout: Layout, collected: Collected, found: Resolved) -> PublicPairs:
    names = found.names
    if layout.partial and found.there is None:
        found = found._replace(there=[i for i, file in enumerate(names) if os.path.isfile(os.path.join(found.root, file))])
    if layout.partial and len(found.there) < len(names):
        gone = len(names) - len(found.there)
        warnings.warn(f"{name}: {gone:,} of {len(names):,} pictures were never fetched and are left out", stacklevel=4)
        collected, names = collected.only(found.there), [names[i] for i in found.there]
    return PublicPairs(name, split, media, collected.items, Files(found.root, names), collected.texts, collected.owners)
