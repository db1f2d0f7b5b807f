"""What to check in one's own pairs before believing a number: what is lacking, what is double, what leaks between parts.

Recall on test items says something about new data only if they are new. A photo that lies in train and in test, byte for
byte or nearly so, or a caption that several items share, makes it look better or worse than it is.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .disk import sha256
from .files import FilePairs
from .metrics import tiles
from .pairs import LatentPairs
from .rows import StoredRows

NEAR = 0.99  # cosine of centred latents from which two items count as one picture or sound, saved twice


class Finding(NamedTuple):
    """One thing to look at. `str(finding)` is a line for a terminal."""

    kind: str
    count: int
    example: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.count} (such as {self.example}). {self.advice}"


def audit(dataset: FilePairs | None, parts: Mapping[str, LatentPairs] | None = None) -> list[Finding]:
    """What is doubtful about a data set, and about its parts if they are given. An empty list: nothing was found.

    Files and captions are checked in `dataset` (None where there are only latents): files that are missing, files of equal
    content (sha256), captions that are empty or the same for several items, items without any. An item's part is that of
    `parts`, else that of the split column.

    Latents are checked in `parts`: media (x) of one part that nearly equal one of another, cosine at least 0.99 once
    the mean of all latents is taken off. Without that, most encoders find all items alike. Latents that stay on disk are too
    many to compare, and not looked at.
    """
    parts = parts or {}
    findings = [] if dataset is None else [*_of_files(dataset, _part_of(dataset, parts)), *_of_captions(dataset, parts)]
    return [*findings, *_of_latents(parts)]


def _part_of(dataset: FilePairs, parts: Mapping[str, LatentPairs]) -> dict[str, str]:
    """Item id to part, as far as known."""
    if parts:
        return {item: name for name, pairs in parts.items() for item in pairs.item_ids or ()}
    return dict(zip(dataset.items, dataset.splits, strict=True)) if dataset.splits else {}


def _of_files(dataset: FilePairs, part_of: Mapping[str, str]) -> Iterable[Finding]:
    path_of = dict(zip(dataset.items, dataset.paths, strict=True))
    missing = [item for item, path in path_of.items() if not os.path.isfile(path)]  # names may be longer than a disk takes
    if missing:
        advice = "They are left out at extraction; check the spelling of their paths and what they are relative to."
        yield Finding("missing files", len(missing), missing[0], advice)
    there = [item for item in path_of if item not in set(missing) and path_of[item].stat().st_size]
    same_size = _groups(there, lambda item: path_of[item].stat().st_size)  # only these have to be read
    unread = []

    def content(item: str) -> str:
        try:
            return sha256(path_of[item])
        except OSError:
            unread.append(item)
            return f"unlike others: {item}"

    same = [twins for group in same_size for twins in _groups(group, content)]
    if unread:
        yield Finding("unreadable files", len(unread), unread[0], "They are left out at extraction; see to their permissions.")
    if same:
        advice = "Keep one of each with all its captions: in retrieval, only one of two equal items counts as right."
        yield Finding("identical files", sum(len(twins) - 1 for twins in same), _equal(same[0]), advice)
    apart = [twins for twins in same if _parts(twins, part_of) > 1]
    if apart:
        advice = "What is tested was trained on: put equal files into one part."
        yield Finding("identical files in different parts", sum(map(len, apart)), _equal(apart[0], part_of), advice)


def _of_captions(dataset: FilePairs, parts: Mapping[str, LatentPairs]) -> Iterable[Finding]:
    part_of = _part_of(dataset, parts)
    empty = [index for index, text in dataset.captions if not text.strip()]
    if empty:
        advice = "They are left out at extraction; write them, or take their rows out."
        yield Finding("empty captions", len(empty), dataset.items[empty[0]], advice)
    items_of: dict[str, set[str]] = defaultdict(set)
    for index, text in dataset.captions:
        if text.strip():
            items_of[" ".join(text.casefold().split())].add(dataset.items[index])
    shared = {text: sorted(items) for text, items in items_of.items() if len(items) > 1}
    if shared:
        text, items = next(iter(shared.items()))
        advice = "Only one of their items counts as right, so recall from text has a ceiling below 100 %."
        yield Finding("captions of several items", len(shared), f'"{text}" of {_equal(items)}', advice)
    apart = {text: items for text, items in shared.items() if _parts(items, part_of) > 1}
    if apart:
        text, items = next(iter(apart.items()))
        advice = "A model can know these by heart: put items with equal captions into one part."
        yield Finding("captions in different parts", len(apart), f'"{text}" of {_equal(items, part_of)}', advice)
    captioned = {index for index, text in dataset.captions if text.strip()}
    bare = [item for index, item in enumerate(dataset.items) if index not in captioned]
    if bare:
        advice = "Nothing is learned from them; at test time they are part of the gallery."
        yield Finding("items without a caption", len(bare), bare[0], advice)


def _of_latents(parts: Mapping[str, LatentPairs]) -> Iterable[Finding]:
    """Near-duplicates between each two parts; "train", where there is one, is what the others are compared with."""
    if len(parts) < 2 or any(isinstance(pairs.x, StoredRows) for pairs in parts.values()):
        return
    mean = torch.cat([pairs.x for pairs in parts.values()]).mean(0)
    for known, asked in combinations(sorted(parts, key=lambda name: name != "train"), 2):
        best, place = _nearest(parts[asked].x - mean, parts[known].x - mean)
        twins = (best >= NEAR).nonzero().flatten().tolist()
        if twins:
            first, twin = twins[0], int(place[twins[0]])
            names = f"{_item(parts[asked], first)} in {asked}, {_item(parts[known], twin)} in {known}"
            share = f"{len(twins)} of {parts[asked].n_items} items of {asked} have such a twin in {known}"
            yield Finding(
                "near-duplicates in different parts",
                len(twins),
                f"{names}, cosine {best[first]:.3f}",
                f"{share}: look at some of them, and put true doubles into one part.",
            )


def _nearest(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and row of the most similar row of gallery (N, D) for each of queries (Q, D), tile by tile."""
    gallery = torch.nn.functional.normalize(gallery, dim=1)
    best, place = [], []
    for tile in tiles(torch.nn.functional.normalize(queries, dim=1), len(gallery)):
        found = (tile @ gallery.T).max(1)  # (T, N) -> (T,)
        best.append(found.values)
        place.append(found.indices)
    return torch.cat(best), torch.cat(place)


def _groups(items: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """Items with an equal key, where there are at least two."""
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return [group for group in groups.values() if len(group) > 1]


def _parts(items: Iterable[str], part_of: Mapping[str, str]) -> int:
    return len({part_of[item] for item in items if item in part_of})


def _equal(items: list[str], part_of: Mapping[str, str] | None = None) -> str:
    """Two of some equal items, from different parts if these are given."""
    first = items[0]
    if part_of is None:
        return f"{first} and {items[1]}"
    first = next(item for item in items if item in part_of)
    other = next(item for item in items if item in part_of and part_of[item] != part_of[first])
    return f"{first} in {part_of[first]} and {other} in {part_of[other]}"


def _item(pairs: LatentPairs, row: int) -> str:
    return pairs.item_ids[row] if pairs.item_ids else f"row {row}"
