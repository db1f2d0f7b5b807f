"""Captions read back: by hand, and against the scenes that they were written for."""

from dataclasses import replace

import pytest

from fusemix_lite import FuseMixLiteError, SoundingScenes, scene_text
from fusemix_lite.scene_reading import (
    HEARD,
    SHARED,
    Phrase,
    Reading,
    agreement,
    bag_readings,
    fitting_scenes,
    read_audio_caption,
    read_caption,
)
from fusemix_lite.scenes import MAX_COUNT, Scene, Thing

BIRDS = Thing("bird", "small", "left", 2, "red", 0.0, 0.0)
CAR = Thing("car", "large", "right", 1, "blue", 0.0, 0.0)
SCENE = Scene("snow", (BIRDS, CAR), "slow", "dry", -30.0)


@pytest.mark.parametrize(
    ("caption", "phrases", "background"),
    [
        (
            "in the snow, a pair of tiny scarlet sparrows on the left and an automobile",
            (Phrase("bird", (2,), "small", "red", "left"), Phrase("car", (1,), None, None, None)),
            "snow",
        ),
        ("here we see some birds", (Phrase("bird", (2, 3), None, None, None),), None),
        (
            "a picture of one green acoustic guitar on a green field",  # the field's green is not the guitar's
            (Phrase("guitar", (1,), None, "green", None),),
            "meadow",
        ),
        (
            "an amber bumblebee in the middle next to 3 wall clocks by the sea",
            (Phrase("bee", (1,), None, "orange", "middle"), Phrase("clock", (3,), None, None, None)),
            "beach",
        ),
    ],
)
def test_reading_by_hand(caption, phrases, background):
    assert read_caption(caption).things == phrases
    assert read_caption(caption).background == background


def test_every_caption_fits_its_own_scene_and_says_all_that_can_be_read():
    scenes = SoundingScenes("image-text", "val", 400)
    for i in range(len(scenes)):
        for k in range(scenes.captions):
            caption, scene = scenes.caption(i, k), scenes.scene(i)
            reading = read_caption(caption)
            assert reading.fits(scene), (caption, scene)
            assert 1 <= len(reading.things) <= len(scene.things), caption
            if any(f" {joint} " in caption for joint in ("and", "with", "next to")):
                assert len(reading.things) == 2, caption


@pytest.mark.parametrize(
    "change",
    [
        {"background": "city"},
        {"things": (replace(BIRDS, colour="pink"), CAR)},
        {"things": (replace(BIRDS, count=3), CAR)},
        {"things": (replace(BIRDS, size="large"), CAR)},
        {"things": (replace(BIRDS, position="middle"), CAR)},
        {"things": (replace(BIRDS, kind="dog"), CAR)},
        {"things": (CAR,)},
    ],
)
def test_a_scene_that_contradicts_the_caption_does_not_fit(change):
    reading = read_caption("two little red birds on the left with a vehicle in winter")
    assert reading.fits(SCENE)
    assert not reading.fits(replace(SCENE, **change))


def test_what_is_not_said_may_be_anything():
    reading = read_caption("a car")
    assert reading.fits(SCENE) and reading.fits(replace(SCENE, background="night", things=(CAR,)))


def test_agreement_compares_factor_by_factor_in_any_order():
    assert agreement(SCENE, replace(SCENE, things=(CAR, BIRDS))) == dict.fromkeys(SHARED, True)
    other = Scene("night", (replace(CAR, colour="red"), replace(BIRDS, colour="blue")), "fast", "dry", -30.0)
    assert agreement(SCENE, other) == dict.fromkeys(SHARED, True) | {"background": False}
    assert agreement(SCENE, replace(SCENE, things=(BIRDS,)))["counts"] is False


def test_fitting_scenes_are_those_that_fit_one_by_one():
    test = SoundingScenes("image-text", "val", 60)
    scenes = [test.scene(i) for i in range(len(test))]
    captions = [test.caption(i, 0) for i in range(len(test))]
    readings = [read_caption(caption) for caption in captions]
    fitting = fitting_scenes(captions, scenes)
    assert fitting == [[i for i, scene in enumerate(scenes) if reading.fits(scene)] for reading in readings]
    assert all(i in found for i, found in enumerate(fitting))


def heard(kind, counts=(1, 2, 3), pitch=None):
    return Phrase(kind, counts, pitch, None, None)


@pytest.mark.parametrize(
    ("caption", "reading"),
    [
        ("a bell rings", Reading((heard("bell"),))),
        (
            "one can hear how two shrill sparrows sing, then a vehicle beeps its horn thrice",
            Reading((heard("bird", (2,), "small"), heard("car", (3,))), in_order=True),
        ),
        (  # "after" turns them round
            "an automobile honks after a pair of deep chimes chime in rapid succession in a large hall",
            Reading((heard("bell", (2,), "large"), heard("car")), tempo="fast", room="echoing", in_order=True),
        ),
        (  # "and" says nothing about the order; the first "sounds softly" is the flute's verb
            "a low flute sounds softly and a clock ticks once slowly",
            Reading((heard("flute", pitch="large"), heard("clock", (1,))), tempo="slow"),
        ),
        (
            "a mid-sized tom bangs two times and afterwards a pup yaps up close",
            Reading((heard("drum", (2,), "medium"), heard("dog")), room="dry", in_order=True),
        ),
    ],
)
def test_reading_audio_captions_by_hand(caption, reading):
    assert read_audio_caption(caption) == reading


def test_an_audio_caption_is_read_as_it_was_written(monkeypatch):
    """Spied on while they are written: which attributes each clause names, and how the clauses are joined."""
    picks, clauses = [], []
    pick, hear = scene_text._pick, scene_text._heard

    def picking(rng, options):
        picks.append(options)
        return pick(rng, options)

    def hearing(thing, scene, rng):
        picks.clear()
        text = hear(thing, scene, rng)
        counted = [scene_text._TIMES[thing.count], scene_text._NUMBERS.get(thing.count)]
        counts = (thing.count,) if any(o in counted for o in picks) else tuple(range(1, MAX_COUNT + 1))
        pitch = thing.size if scene_text._PITCH_WORDS[thing.size] in picks else None
        clauses.append((scene_text._articles(text), heard(thing.kind, counts, pitch)))
        picks.clear()
        return text

    monkeypatch.setattr(scene_text, "_pick", picking)
    monkeypatch.setattr(scene_text, "_heard", hearing)
    dataset, seen = SoundingScenes("audio-text", "val", 600), set()
    for i in range(len(dataset)):
        scene = dataset.scene(i)
        for k in range(dataset.captions):
            clauses.clear()
            caption = dataset.caption(i, k)
            texts = [text for text, _ in clauses]
            joined = len(texts) == 2 and all(text in caption for text in texts)
            turned = joined and f"{texts[1]} after {texts[0]}" in caption
            in_order = turned or (joined and f"{texts[0]} and {texts[1]}" not in caption and _told(caption, texts))
            things = [phrase for text, phrase in clauses if text in caption]
            if joined and not in_order and caption.index(texts[1]) < caption.index(texts[0]):
                things.reverse()
            expected = Reading(
                tuple(things),
                tempo=scene.tempo if scene_text._TEMPO_WORDS[scene.tempo] in picks else None,
                room=scene.room if scene_text._ROOM_WORDS[scene.room] in picks else None,
                in_order=in_order,
            )
            reading = read_audio_caption(caption)
            assert reading == expected, caption
            assert reading.fits(scene), caption
            seen.add((len(things), in_order, turned, expected.tempo is None, expected.room is None))
    assert len(seen) == 4 * 4  # one thing, "and", in order, turned round; with and without tempo and room


def _told(caption, texts):
    return any(f"{texts[0]}{joint}{texts[1]}" in caption for joint in (", then ", " before ", " and afterwards "))


@pytest.mark.parametrize(
    "change",
    [
        {"tempo": "fast"},
        {"room": "echoing"},
        {"things": (CAR, BIRDS)},
        {"things": (replace(BIRDS, count=3), CAR)},
        {"things": (replace(BIRDS, size="large"), CAR)},
        {"things": (BIRDS,)},
    ],
)
def test_a_scene_that_sounds_otherwise_does_not_fit(change):
    reading = read_audio_caption("a shrill bird chirps twice before a car honks slowly up close")
    assert reading.fits(SCENE)
    assert not reading.fits(replace(SCENE, **change))
    unseen = {"background": "city", "things": (replace(BIRDS, colour="pink", position="middle"), CAR)}
    assert reading.fits(replace(SCENE, **unseen))  # no sound shows it


@pytest.mark.parametrize(
    "caption",
    [
        "stuff",
        "two small red birds on the left",
        "a bird chirps twice four times",
        "a bird chirps, then",
        "high-pitched bird twice then deep car once, slowly, up close",  # a template
        "",
    ],
)
def test_what_is_no_audio_caption_is_refused(caption):
    with pytest.raises(FuseMixLiteError, match="no audio caption"):
        read_audio_caption(caption)


def test_agreement_of_sounds_knows_their_order():
    assert agreement(SCENE, replace(SCENE, background="night"), HEARD) == dict.fromkeys(HEARD, True)
    turned = replace(SCENE, things=(CAR, BIRDS))
    assert agreement(SCENE, turned, HEARD) == dict.fromkeys(HEARD, True) | {"order": False}
    other = replace(SCENE, tempo="fast", things=(replace(BIRDS, size="medium"), CAR))
    assert agreement(SCENE, other, HEARD) == dict.fromkeys(HEARD, True) | {"tempo": False, "pitches": False}


def test_fitting_sounds_are_those_that_fit_one_by_one():
    test = SoundingScenes("audio-text", "val", 60)
    scenes = [test.scene(i) for i in range(len(test))]
    captions = [test.caption(i, 1) for i in range(len(test))]
    readings = [read_audio_caption(caption) for caption in captions]
    fitting = fitting_scenes(captions, scenes, read_audio_caption)
    assert fitting == [[i for i, scene in enumerate(scenes) if reading.fits(scene)] for reading in readings]
    assert all(i in found for i, found in enumerate(fitting))


def test_a_bag_of_words_loses_order_and_whose_attribute_it_is():
    scene = Scene("snow", (replace(BIRDS, kind="bell"), CAR), "slow", "dry", -30.0)  # two high bells, then a deep car
    turned = replace(scene, things=scene.things[::-1])
    swapped = replace(scene, things=(replace(scene.things[0], size="large"), replace(CAR, size="small")))
    recounted = replace(scene, things=(replace(scene.things[0], count=1), replace(CAR, count=2)))
    other = replace(scene, things=(scene.things[0], replace(CAR, size="medium")))
    told = "a shrill bell rings twice before a deep car honks once slowly"
    scenes = [scene, turned, swapped, recounted, other, replace(scene, tempo="fast"), replace(scene, things=(CAR,))]
    assert fitting_scenes([told], scenes, read_audio_caption) == [[0]]
    assert fitting_scenes([told], scenes, bag_readings) == [[0, 1, 2, 3]]


def test_a_bag_of_words_is_the_same_for_captions_of_the_same_words():
    first = "a deep bell rings twice before a shrill car honks once"
    for other in (
        "a shrill car honks once before a deep bell rings twice",
        "a shrill bell rings once before a deep car honks twice",
    ):
        assert set(map(_in_any_order, bag_readings(first))) == set(map(_in_any_order, bag_readings(other)))
    assert bag_readings("a bell rings once") == (read_audio_caption("a bell rings once"),)


def _in_any_order(reading):
    return frozenset(reading.things), reading.tempo, reading.room, reading.in_order
