"""Cards of the public data sets, from the records that readers and fetching use. `cards` writes them with the others."""

import textwrap

from .fetching import readable
from .public_sets import PublicSet, Remote, public_set

_CARD = """\
# {record.title}

{about}

| fact | |
|---|---|
| Items | {splits} |
| Captions an item | {record.captions} |
| Size | {record.size} |
| Licence | {record.licence} |
| Source | {record.source} |
| Page | <{record.page}> |

```python
import fusemix_lite as fl

dataset = fl.open_dataset("{name}", "{split}", "folder")  # without a folder: $FUSEMIX_LITE_DATA/{name}
store = fl.extract(dataset, "{encoder}", "latents")
```

## How it lies in the folder

{same}

{layouts}

## What is fetched

{fetched}

## Known overlap

What an encoder was trained on, or the mix that FuseMix is trained on, may hold what is tested here.

{overlaps}

## Tried here

Readers and fetching were tried on small folders and files of exactly these layouts, made of Sounding Scenes, with odd and
broken files among them. The set itself could not be had where this was written: what its public descriptions leave out can
still surprise.
"""

_FETCHED = """\
`fusemix-lite data {name} FOLDER` asks before more than 1 GB, goes on where it was cut, and unpacks.

| file | for | size | checksum |
|---|---|--:|---|
{rows}

{stated}
"""


def public_card(name: str) -> str:
    """The data card of a public data set, in Markdown."""
    record = public_set(name)
    fetched, hand = "", ""
    if record.remotes:
        rows = "\n".join(_row(remote, record) for remote in record.remotes)
        stated = f"Stated by others: {record.stated}. Where no checksum is, the sha256 found at the first fetch is noted in "
        stated = _wrapped(stated + "`fetched.json` for the next.")
        fetched = _FETCHED.format(name=name, rows=rows, stated=stated) + "\n"
    if record.by_hand:
        hand = _wrapped(f"{'' if fetched else 'Nothing automatically. '}**By hand**: {_code(record.by_hand)}.")
    same = "As it is published:"
    if len(record.layouts) > 1:
        shards = " (but for shards, which have names of their own)" if any(one.read is None for one in record.layouts) else ""
        same = _wrapped(
            f"Any of these, exactly as they are published. Item ids are the same in all of them{shards}, so that latents fit "
            "whichever was read."
        )
    return _CARD.format(
        name=name,
        record=record,
        about=_wrapped(f"{record.about} **The set does not come with the package**, and no item of it stands in this book."),
        split="test" if "test" in record.splits else "train",
        encoder="facebook/dinov2-small" if record.media == "image" else "openai/whisper-tiny",
        splits="; ".join(f"{split} {size}" for split, size in record.splits.items()),
        same=same,
        layouts="\n".join(_wrapped(layout.words, "- ") for layout in record.layouts),
        fetched=(fetched + hand).strip(),
        overlaps="\n".join(_wrapped(overlap, "- ") for overlap in record.overlaps),
    )


def _wrapped(text: str, first: str = "") -> str:
    width, indent = 124, " " * len(first)
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _row(remote: Remote, record: PublicSet) -> str:
    kind, _, digest = (remote.checksum or "").partition(":")
    splits = [split for split in record.splits if split in remote.splits]
    whose = ", ".join(splits) if len(splits) < len(record.splits) or len(splits) == 1 else "all"
    size = readable(remote.bytes) if remote.bytes else "not stated"
    return f"| [{remote.name}]({remote.url}) | {whose} | {size} | {f'{kind} `{digest[:12]}…`' if kind else 'none'} |"


def _code(words: str) -> str:
    """Commands in backquotes."""
    head, found, rest = words.partition("img2dataset --")
    if not found:
        return words
    command, dot, tail = rest.partition(" --output_folder .")
    return f"{head}`{found}{command}{dot}`{tail}"
