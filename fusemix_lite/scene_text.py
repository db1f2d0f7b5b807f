"""Sounding Scenes, told: captions as several people would write them, each mentioning what struck them.

Image captions may name colour, position and background; audio captions tempo, order and room. Both share the language of
things: kind, size and count. ``degrade`` turns a good caption into one as the web has them.
"""

import re

import numpy as np

from .scenes import BACKGROUNDS, COLOURS, KINDS, SIZES, Scene, Thing

# singular and plural nouns of each kind: what a person may call the thing
_NOUNS = {
    "bell": (("bell", "bells"), ("church bell", "church bells"), ("chime", "chimes")),
    "drum": (("drum", "drums"), ("snare drum", "snare drums"), ("tom", "toms")),
    "flute": (("flute", "flutes"), ("recorder", "recorders"), ("wooden pipe", "wooden pipes")),
    "guitar": (("guitar", "guitars"), ("acoustic guitar", "acoustic guitars"), ("string instrument", "string instruments")),
    "bird": (("bird", "birds"), ("songbird", "songbirds"), ("sparrow", "sparrows")),
    "dog": (("dog", "dogs"), ("hound", "hounds"), ("pup", "pups")),
    "bee": (("bee", "bees"), ("bumblebee", "bumblebees"), ("buzzing insect", "buzzing insects")),
    "clock": (("clock", "clocks"), ("timepiece", "timepieces"), ("wall clock", "wall clocks")),
    "car": (("car", "cars"), ("automobile", "automobiles"), ("vehicle", "vehicles")),
    "siren": (("siren", "sirens"), ("alarm light", "alarm lights"), ("emergency beacon", "emergency beacons")),
    "rain": (("rain cloud", "rain clouds"), ("shower", "showers"), ("storm cloud", "storm clouds")),
    "whistle": (("whistle", "whistles"), ("referee whistle", "referee whistles"), ("sports whistle", "sports whistles")),
}  # fmt: skip
_SOUNDS = {  # what it does when heard: verb for one, verb for many
    "bell": (("rings", "ring"), ("tolls", "toll"), ("chimes", "chime")),
    "drum": (("beats", "beat"), ("thumps", "thump"), ("bangs", "bang")),
    "flute": (("plays", "play"), ("sounds softly", "sound softly"), ("blows a note", "blow notes")),
    "guitar": (("is plucked", "are plucked"), ("strums", "strum"), ("twangs", "twang")),
    "bird": (("chirps", "chirp"), ("sings", "sing"), ("tweets", "tweet")),
    "dog": (("barks", "bark"), ("woofs", "woof"), ("yaps", "yap")),
    "bee": (("buzzes", "buzz"), ("hums", "hum"), ("drones", "drone")),
    "clock": (("ticks", "tick"), ("clicks", "click"), ("tocks", "tock")),
    "car": (("honks", "honk"), ("beeps its horn", "beep their horns"), ("hoots", "hoot")),
    "siren": (("wails", "wail"), ("howls", "howl"), ("screams", "scream")),
    "rain": (("patters", "patter"), ("pours", "pour"), ("drizzles", "drizzle")),
    "whistle": (("is blown", "are blown"), ("shrills", "shrill"), ("trills", "trill")),
}  # fmt: skip
_SIZE_WORDS = {
    "small": ("small", "little", "tiny"), "medium": ("medium-sized", "mid-sized", "average"), "large": ("large", "big", "huge"),
}  # fmt: skip
_PITCH_WORDS = {
    "small": ("high-pitched", "small", "shrill"), "medium": ("middle-pitched", "mid-sized"), "large": ("deep", "low", "big"),
}  # fmt: skip
_COLOUR_WORDS = {
    "red": ("red", "scarlet"), "orange": ("orange", "amber"), "yellow": ("yellow", "golden"), "green": ("green", "emerald"),
    "blue": ("blue", "azure"), "purple": ("purple", "violet"), "pink": ("pink", "rosy"), "brown": ("brown", "chestnut"),
}  # fmt: skip
_PLACE_WORDS = {
    "left": ("on the left", "at the left edge", "to the left"), "middle": ("in the middle", "in the centre", "centrally"),
    "right": ("on the right", "at the right edge", "to the right"),
}  # fmt: skip
_SCENERY = {
    "meadow": ("in a meadow", "on a green field", "on the grass"), "beach": ("on the beach", "by the sea", "at the shore"),
    "night": ("at night", "under the stars", "in the dark"), "snow": ("in the snow", "in winter", "on a snowy plain"),
    "city": ("in the city", "in front of buildings", "downtown"),
    "desert": ("in the desert", "among the dunes", "in a dry land"),
}  # fmt: skip
_NUMBERS = {2: ("two", "a pair of", "2"), 3: ("three", "a trio of", "3")}
_TIMES = {1: ("once", "a single time"), 2: ("twice", "two times"), 3: ("three times", "thrice")}
_TEMPO_WORDS = {
    "slow": ("slowly", "at a slow pace", "unhurriedly"), "steady": ("steadily", "at an even pace"),
    "fast": ("quickly", "in rapid succession", "fast"),
}  # fmt: skip
_ROOM_WORDS = {
    "dry": ("up close", "with no echo"),
    "echoing": ("with an echo", "in a large hall", "in an echoing room"),
}
_JUNK = (
    "free stock image download", "untitled", "img 2041 copy final", "best price online shop now", "photo of the day",
    "click to enlarge", "thumbnail preview", "sound effect pack vol 3", "track 07", "copyright all rights reserved",
)  # fmt: skip
_VAGUE = (
    "a scene with some things",
    "something somewhere",
    "a nice scene",
    "various objects",
    "stuff",
    "an interesting moment",
)


def _pick(rng: np.random.Generator, options):
    return options[rng.integers(len(options))]


def _articles(text: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _seen(thing: Thing, rng: np.random.Generator) -> str:
    """A noun phrase for a thing in a picture, as "three small red birds on the left"."""
    one, many = _pick(rng, _NOUNS[thing.kind])
    words = []
    if rng.random() < 0.45:
        words.append(_pick(rng, _SIZE_WORDS[thing.size]))
    if rng.random() < 0.65:
        words.append(_pick(rng, _COLOUR_WORDS[thing.colour]))
    if thing.count == 1:
        phrase = " ".join(["a", *words, one]) if rng.random() < 0.8 else " ".join(["one", *words, one])
    elif rng.random() < 0.7:
        phrase = " ".join([_pick(rng, _NUMBERS[thing.count]), *words, many])
    else:
        phrase = " ".join(["some", *words, many])
    return f"{phrase} {_pick(rng, _PLACE_WORDS[thing.position])}" if rng.random() < 0.35 else phrase


def image_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One image caption: kind nearly always, colour, count, size, position and background each with some probability."""
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]  # a picture has no order
    phrases = [_seen(thing, rng) for thing in things]
    if len(phrases) == 2 and rng.random() < 0.1:
        phrases.pop()  # some people name one thing only
    body = _pick(rng, (" and ", " with ", " next to ", ", ")).join(phrases)
    scenery = _pick(rng, _SCENERY[scene.background]) if rng.random() < 0.55 else ""
    frame = rng.random()
    if frame < 0.15 and scenery:
        return _articles(f"{scenery}, {body}")
    opening = "here we see " if frame < 0.30 else "a picture of " if frame < 0.45 else ""
    return _articles(f"{opening}{body} {scenery}".strip())


def _heard(thing: Thing, scene: Scene, rng: np.random.Generator) -> str:
    """A clause for a thing in a sound, as "a deep bell rings three times"; several events may be several things."""
    one, many = _pick(rng, _NOUNS[thing.kind])
    verb, verbs = _pick(rng, _SOUNDS[thing.kind])
    pitch = [_pick(rng, _PITCH_WORDS[thing.size])] if rng.random() < 0.55 else []
    style = rng.random()
    if thing.count > 1 and style < 0.3:
        clause = " ".join([_pick(rng, _NUMBERS[thing.count]), *pitch, many, verbs])
    else:
        clause = " ".join(["a", *pitch, one, verb])
        if style < 0.85:
            clause += f" {_pick(rng, _TIMES[thing.count])}"
    return clause


def audio_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One audio caption: kind nearly always, pitch, count, tempo, order and room each with some probability."""
    clauses = [_heard(thing, scene, rng) for thing in scene.things]
    if len(clauses) == 2:
        told = rng.random()
        if told < 0.1:
            clauses.pop(int(rng.integers(2)))
        elif told < 0.4:
            clauses = [" and ".join(clauses[:: int(rng.choice([1, -1]))])]  # order not told
        elif told < 0.85:
            clauses = [_pick(rng, (", then ", " before ", " and afterwards ")).join(clauses)]
        else:
            clauses = [f"{clauses[1]} after {clauses[0]}"]
    body = clauses[0]
    if rng.random() < 0.5:
        body += f" {_pick(rng, _TEMPO_WORDS[scene.tempo])}"
    if rng.random() < 0.4:
        body += f" {_pick(rng, _ROOM_WORDS[scene.room])}"
    return _articles(f"one can hear how {body}" if rng.random() < 0.15 else body)


def image_template(scene: Scene) -> str:
    """Every visible attribute, exactly and in one fixed form, as a data sheet has it: no synonym, nothing left out."""
    things = [
        f"{_SIZE_WORDS[t.size][0]} {_COLOUR_WORDS[t.colour][0]} {_NOUNS[t.kind][0][0]} {_TIMES[t.count][0]} "
        f"{_PLACE_WORDS[t.position][0]}"
        for t in sorted(scene.things, key=lambda thing: thing.kind)  # a picture has no order
    ]
    return f"{' and '.join(things)}, {_SCENERY[scene.background][0]}"


def audio_template(scene: Scene) -> str:
    """Every audible attribute, exactly and in one fixed form; the things stand in the order of their sounds."""
    things = [f"{_PITCH_WORDS[t.size][0]} {_NOUNS[t.kind][0][0]} {_TIMES[t.count][0]}" for t in scene.things]
    return f"{' then '.join(things)}, {_TEMPO_WORDS[scene.tempo][0]}, {_ROOM_WORDS[scene.room][0]}"


def degrade(caption: str, rng: np.random.Generator) -> str:
    """A caption as the web has them: an attribute swapped, a vague phrase, alt-text junk, or about something else.

    The knob for quality: a data set with noise p degrades each caption with probability p.
    """
    way = rng.integers(4)
    if way == 0:
        return _swap_attributes(caption, rng)
    if way == 1:
        return _pick(rng, _VAGUE)
    if way == 2:
        return _pick(rng, _JUNK)
    return _articles(f"a {_pick(rng, COLOURS)} {_pick(rng, _NOUNS[_pick(rng, KINDS)])[0]}")


_SWAPS = {
    word: [w for value in table if value != own for w in table[value]]
    for table in (_COLOUR_WORDS, _SIZE_WORDS, _SCENERY, _PLACE_WORDS)
    for own, words in table.items()
    for word in words
}
assert set(_SCENERY) == set(BACKGROUNDS) and set(_SIZE_WORDS) == set(SIZES)


def _swap_attributes(caption: str, rng: np.random.Generator) -> str:
    padded = f" {caption} "
    for phrase, others in _SWAPS.items():
        if f" {phrase} " in padded:
            padded = padded.replace(f" {phrase} ", f" {_pick(rng, others)} ", 1)
    return _articles(padded.strip())
