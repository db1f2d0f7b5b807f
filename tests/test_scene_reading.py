"""Captions read back: by hand, and against the scenes that they were written for."""

from dataclasses import replace

import pytest

from fusemix_lite import SoundingScenes
from fusemix_lite.scene_reading import SHARED, Phrase, agreement, fitting_scenes, read_caption
from fusemix_lite.scenes import Scene, Thing

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
