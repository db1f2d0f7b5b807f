"""What an image caption of Sounding Scenes says, read back, and where two scenes agree: for looking at errors.

No encoder and no adapter sees any of this. It answers what a score cannot: was the wrong picture a near miss, and did
the caption say enough to tell it from the right one?
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import scene_text as words
from .scenes import KINDS, MAX_COUNT, Scene, Thing

SHARED = ("kinds", "colours", "counts", "sizes", "places", "background")


@dataclass(frozen=True)
class Phrase:
    """One thing as a caption names it; None where it says nothing. ``counts`` are the numbers that its word allows."""

    kind: str
    counts: tuple[int, ...]
    size: str | None
    colour: str | None
    position: str | None

    def fits(self, thing: Thing) -> bool:
        said = {"size": self.size, "colour": self.colour, "position": self.position}
        same = all(value in (None, getattr(thing, name)) for name, value in said.items())
        return same and self.kind == thing.kind and thing.count in self.counts


@dataclass(frozen=True)
class Reading:
    """All that a caption says."""

    things: tuple[Phrase, ...]
    background: str | None

    def fits(self, scene: Scene) -> bool:
        """Whether everything that the caption says is true of the scene; what it leaves out may be anything."""
        there = self.background in (None, scene.background)
        return there and all(any(phrase.fits(thing) for thing in scene.things) for phrase in self.things)


def read_caption(caption: str) -> Reading:
    """Read an image caption of good quality (`scene_text.image_caption` wrote it)."""
    scenery = re.search(_SCENERY.pattern, caption)  # first, since "a green field" names no colour
    rest = caption.replace(scenery[0], " ", 1) if scenery else caption
    things = tuple(
        Phrase(
            kind=_NOUN.of[found["noun"]],
            counts=_COUNTS[found["count"]],
            size=_SIZE.of.get(found["size"]),
            colour=_COLOUR.of.get(found["colour"]),
            position=_PLACE.of.get(found["place"]),
        )
        for found in _PHRASE.finditer(rest)
    )
    return Reading(things, _SCENERY.of[scenery[0]] if scenery else None)


def fitting_scenes(captions: Sequence[str], scenes: Sequence[Scene]) -> list[list[int]]:
    """For each caption the scenes (their numbers, ascending) that it is true of: all that a perfect reader could mean."""
    with_kind = {
        kind: [i for i, scene in enumerate(scenes) if kind in {thing.kind for thing in scene.things}] for kind in KINDS
    }
    readings = map(read_caption, captions)
    return [[i for i in with_kind[reading.things[0].kind] if reading.fits(scenes[i])] for reading in readings]


def agreement(a: Scene, b: Scene) -> dict[str, bool]:
    """For each of `SHARED`: do two scenes show the same ones? Of two things, in any order: both colours, both sizes."""
    same = {
        name: sorted(getattr(t, factor) for t in a.things) == sorted(getattr(t, factor) for t in b.things)
        for name, factor in zip(SHARED, ("kind", "colour", "count", "size", "position"), strict=False)
    }
    return same | {"background": a.background == b.background}


class _Words:
    """Words or phrases, what each stands for, and a pattern that finds them, long ones first."""

    def __init__(self, table: dict):
        self.of = {word: value for value, options in table.items() for word in options}
        self.pattern = r"\b(?:" + "|".join(sorted(map(re.escape, self.of), key=len, reverse=True)) + r")\b"


_NOUN = _Words({kind: [noun for pair in nouns for noun in pair] for kind, nouns in words._NOUNS.items()})
_SIZE, _COLOUR = _Words(words._SIZE_WORDS), _Words(words._COLOUR_WORDS)
_PLACE, _SCENERY = _Words(words._PLACE_WORDS), _Words(words._SCENERY)
_COUNTS = {word: (count,) for count, options in words._NUMBERS.items() for word in options}
_COUNTS |= {"a": (1,), "an": (1,), "one": (1,), "some": tuple(range(2, MAX_COUNT + 1))}
_PHRASE = re.compile(
    rf"\b(?P<count>{'|'.join(sorted(_COUNTS, key=len, reverse=True))}) "
    rf"(?:(?P<size>{_SIZE.pattern}) )?(?:(?P<colour>{_COLOUR.pattern}) )?(?P<noun>{_NOUN.pattern})"
    rf"(?: (?P<place>{_PLACE.pattern}))?"
)
