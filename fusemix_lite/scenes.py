"""Sounding Scenes: what there is in the embedded world, and how a scene is drawn by lot.

A scene is a background and one or two kinds of sounding things. Some factors can only be seen (colour, background,
position), some only heard (tempo, order, room), some both (kind, size, which is pitch, and count), so that neither an
image nor a sound determines the other. Everything about a scene follows from ``(seed, split, index)``.
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from .errors import FuseMixLiteError

KINDS = ("bell", "drum", "flute", "guitar", "bird", "dog", "bee", "clock", "car", "siren", "rain", "whistle")
SIZES = ("small", "medium", "large")
POSITIONS = ("left", "middle", "right")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
BACKGROUNDS = ("meadow", "beach", "night", "snow", "city", "desert")
TEMPI = ("slow", "steady", "fast")
ROOMS = ("dry", "echoing")
MAX_COUNT = 3

# Every discrete scene belongs to one of 20 buckets, and every split owns some of them: no scene, up to jitter, is ever
# in two splits, and the image-text and the audio-text pairs share none either.
SPLITS = {
    ("unimodal", "train"): range(0, 6),
    ("image-text", "train"): range(6, 11),
    ("image-text", "val"): range(11, 12),
    ("image-text", "test"): range(12, 13),
    ("audio-text", "train"): range(13, 18),
    ("audio-text", "val"): range(18, 19),
    ("audio-text", "test"): range(19, 20),
}


@dataclass(frozen=True)
class Thing:
    """One kind of sounding thing in a scene. ``size_jitter`` and ``x`` are what a picture shows of size and position."""

    kind: str
    size: str
    position: str
    count: int
    colour: str
    size_jitter: float  # in [-1, 1], within the size's class
    x_jitter: float  # in [-1, 1], within the position's class


@dataclass(frozen=True)
class Scene:
    """A background and one or two things, in the order in which they sound."""

    background: str
    things: tuple[Thing, ...]
    tempo: str
    room: str
    noise_db: float  # level of the noise floor below the loudest sample, in dB (negative)

    @property
    def bucket(self) -> int:
        """Which of the 20 buckets the discrete factors fall in: a hash, so it says nothing about the factors."""
        things = [(t.kind, t.size, t.position, t.count, t.colour) for t in self.things]
        digest = blake2b(repr((self.background, things, self.tempo, self.room)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % 20

    def factors(self) -> dict[str, object]:
        """Labels for probes. What belongs to a thing is asked of scenes with one thing only, None elsewhere, since "the
        colour" of a scene of two things means nothing; ``first``, which of two sounds first, only of the others."""
        one = self.things[0] if len(self.things) == 1 else None
        of_thing = {name: getattr(one, name, None) for name in ("kind", "size", "count", "colour", "position")}
        first = None if one else self.things[0].kind
        return {**of_thing, "background": self.background, "tempo": self.tempo, "room": self.room, "first": first}


def _choose(rng: np.random.Generator, options: tuple, skew: float):
    """One option; with ``skew`` > 0 the k-th is drawn with probability proportional to k ** -skew (Zipf)."""
    if skew == 0:
        return options[rng.integers(len(options))]
    weights = np.arange(1, len(options) + 1) ** -skew
    return options[rng.choice(len(options), p=weights / weights.sum())]


def sample_scene(rng: np.random.Generator, skew: float = 0.0) -> Scene:
    """Draw a scene. ``skew`` is the knob for diversity: 0 draws all kinds, colours and backgrounds alike."""
    number = 1 if rng.random() < 0.25 else 2
    kinds: list[str] = []
    while len(kinds) < number:
        kind = _choose(rng, KINDS, skew)
        if kind not in kinds:
            kinds.append(kind)
    positions = rng.permutation(len(POSITIONS))  # two things never stand at the same place
    things = tuple(
        Thing(
            kind=kind,
            size=SIZES[rng.integers(3)],
            position=POSITIONS[positions[i]],
            count=int(rng.integers(1, MAX_COUNT + 1)),
            colour=_choose(rng, COLOURS, skew),
            size_jitter=float(rng.uniform(-1, 1)),
            x_jitter=float(rng.uniform(-1, 1)),
        )
        for i, kind in enumerate(kinds)
    )
    return Scene(
        background=_choose(rng, BACKGROUNDS, skew),
        things=things,
        tempo=TEMPI[rng.integers(3)],
        room=ROOMS[rng.integers(2)],
        noise_db=float(rng.uniform(-50, -24)),
    )


def item_rng(pair: str, split: str, index: int, stream: str, seed: int = 0) -> np.random.Generator:
    """The generator of one item and one purpose (``stream``), independent of all others: items need no order."""
    try:
        code = list(SPLITS).index((pair, split))
    except ValueError:
        have = ", ".join("/".join(key) for key in SPLITS)
        raise FuseMixLiteError(f"no split {pair!r}/{split!r} in Sounding Scenes; there are {have}") from None
    purpose = int.from_bytes(blake2b(stream.encode(), digest_size=4).digest(), "little")
    return np.random.default_rng([seed, code, index, purpose])


def scene_at(pair: str, split: str, index: int, skew: float = 0.0, seed: int = 0) -> Scene:
    """The ``index``-th scene of a split: drawn until it falls into one of the split's own buckets."""
    rng = item_rng(pair, split, index, "scene", seed)
    own = SPLITS[pair, split]
    while True:
        scene = sample_scene(rng, skew)
        if scene.bucket in own:
            return scene
