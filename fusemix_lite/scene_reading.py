"""What a caption of Sounding Scenes says, read back, and where two scenes agree: for looking at errors.

No encoder and no adapter sees any of this. It answers what a score cannot: was the wrong picture, or sound, a near miss,
and did the caption say enough to tell it from the right one?
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from . import scene_text as words
from .errors import FuseMixLiteError
from .scenes import KINDS, MAX_COUNT, Scene, Thing

SHARED = ("kinds", "colours", "counts", "sizes", "places", "background")  # what two pictures can have in common
HEARD = ("kinds", "order", "counts", "pitches", "tempo", "room")  # and two sounds


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
    """All that a caption says: of a picture the background, of a sound the tempo, the room, and the order of the things
    where ``in_order`` (they then stand as they sound, whatever the caption's own order)."""

    things: tuple[Phrase, ...]
    background: str | None = None
    tempo: str | None = None
    room: str | None = None
    in_order: bool = False

    def fits(self, scene: Scene) -> bool:
        """Whether everything that the caption says is true of the scene; what it leaves out may be anything."""
        said = {"background": self.background, "tempo": self.tempo, "room": self.room}
        same = all(value in (None, getattr(scene, name)) for name, value in said.items())
        kinds = [phrase.kind for phrase in self.things]
        sounded = not self.in_order or kinds == [thing.kind for thing in scene.things]
        return same and sounded and all(any(phrase.fits(thing) for thing in scene.things) for phrase in self.things)


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


def read_audio_caption(caption: str) -> Reading:
    """Read an audio caption of good quality (`scene_text.audio_caption` wrote it), word for word.

    Raises:
        FuseMixLiteError: the caption is none of those, such as a degraded or a templated one.
    """
    found = _AUDIO_CAPTION.fullmatch(caption)
    if not found:
        raise FuseMixLiteError(f"{caption!r} is no audio caption in natural wording and of good quality")
    things = tuple(
        Phrase(
            kind=_NOUN.of[found[f"noun{i}"] or found[f"nouns{i}"]],
            counts=_COUNTS.get(found[f"number{i}"]) or _TIMES.get(found[f"times{i}"]) or _ANY_COUNT,
            size=_PITCH.of.get(found[f"pitch{i}"] or found[f"pitches{i}"]),
            colour=None,
            position=None,
        )
        for i in (1, 2)
        if found[f"clause{i}"]
    )
    return Reading(
        things[::-1] if found["joint"] == " after " else things,
        tempo=_TEMPO.of.get(found["tempo"]),
        room=_ROOM.of.get(found["room"]),
        in_order=found["joint"] not in (None, " and "),
    )


def bag_readings(caption: str) -> tuple[Reading, ...]:
    """All that the words of an audio caption could mean in any order: what comes first, and which of two things is the
    high one, or the one that sounds twice, is lost. (That a plural tells a little of it goes unnoticed.)"""
    said = replace(read_audio_caption(caption), in_order=False)
    if len(said.things) == 1:
        return (said,)
    one, two = said.things
    bags = {
        (
            replace(one, size=sizes[0], counts=counts[0]),
            replace(two, size=sizes[1], counts=counts[1]),
        )
        for sizes, counts in product(
            ((one.size, two.size), (two.size, one.size)), ((one.counts, two.counts), (two.counts, one.counts))
        )
    }
    return tuple(replace(said, things=things) for things in sorted(bags, key=repr))


def fitting_scenes(
    captions: Sequence[str],
    scenes: Sequence[Scene],
    read: Callable[[str], Reading | Sequence[Reading]] = read_caption,
) -> list[list[int]]:
    """For each caption the scenes (their numbers, ascending) that it is true of: all that a perfect reader could mean.

    ``read`` is how captions are read: `read_caption`, `read_audio_caption`, or a reader that misses something. Where it
    cannot decide between readings (`bag_readings`), the scenes that fit any of them count.
    """
    with_kind = {kind: {i for i, scene in enumerate(scenes) if kind in {t.kind for t in scene.things}} for kind in KINDS}
    fitting = []
    for caption in captions:
        readings = read(caption)
        readings = (readings,) if isinstance(readings, Reading) else readings
        sets = [set.intersection(*(with_kind[phrase.kind] for phrase in reading.things)) for reading in readings]
        fitting.append(
            sorted({i for reading, found in zip(readings, sets, strict=True) for i in found if reading.fits(scenes[i])})
        )
    return fitting


def agreement(a: Scene, b: Scene, factors: Sequence[str] = SHARED) -> dict[str, bool]:
    """For each of the factors (`SHARED` of pictures, `HEARD` of sounds): do two scenes have the same ones?

    Of two things in any order: both colours, both sizes. "order" alone asks for the same kinds one after the other.
    """
    return {name: _ASPECTS[name](a) == _ASPECTS[name](b) for name in factors}


def _of_things(factor: str) -> Callable[[Scene], list]:
    return lambda scene: sorted(getattr(thing, factor) for thing in scene.things)


_ASPECTS = {
    "kinds": _of_things("kind"),
    "colours": _of_things("colour"),
    "counts": _of_things("count"),
    "sizes": _of_things("size"),
    "pitches": _of_things("size"),  # size is what pitch shows
    "places": _of_things("position"),
    "order": lambda scene: [thing.kind for thing in scene.things],
    "background": lambda scene: scene.background,
    "tempo": lambda scene: scene.tempo,
    "room": lambda scene: scene.room,
}


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

_PITCH, _TEMPO, _ROOM = _Words(words._PITCH_WORDS), _Words(words._TEMPO_WORDS), _Words(words._ROOM_WORDS)
_ANY_COUNT = tuple(range(1, MAX_COUNT + 1))
_TIMES = {word: (count,) for count, options in words._TIMES.items() for word in options}
_NUMBER = "|".join(re.escape(word) for options in words._NUMBERS.values() for word in options)


def _either(options) -> str:
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True))


def _clause(i: int) -> str:
    """A pattern of the i-th thing: "two deep bells ring", or "a deep bell rings twice"."""
    one, many = (_either({n[k] for nouns in words._NOUNS.values() for n in nouns}) for k in (0, 1))
    verb, verbs = (_either({v[k] for options in words._SOUNDS.values() for v in options}) for k in (0, 1))
    several = f"(?P<number{i}>{_NUMBER}) (?:(?P<pitches{i}>{_PITCH.pattern}) )?(?P<nouns{i}>{many}) (?:{verbs})"
    single = f"an? (?:(?P<pitch{i}>{_PITCH.pattern}) )?(?P<noun{i}>{one}) (?:{verb})(?: (?P<times{i}>{_either(_TIMES)}))?"
    return f"(?P<clause{i}>{several}|{single})"


_AUDIO_CAPTION = re.compile(
    f"(?:one can hear how )?{_clause(1)}(?:(?P<joint>, then | before | and afterwards | and | after ){_clause(2)})?"
    f"(?: (?P<tempo>{_TEMPO.pattern}))?(?: (?P<room>{_ROOM.pattern}))?"
)
