"""Sounding Scenes: what is promised of the world holds."""

import numpy as np
import pytest

from fusemix_lite import FuseMixLiteError, SoundingScenes
from fusemix_lite.scene_audio import RATE, synthesise
from fusemix_lite.scene_image import PIXELS, draw
from fusemix_lite.scene_text import _COLOUR_WORDS, _PLACE_WORDS, _SCENERY, _TEMPO_WORDS, degrade
from fusemix_lite.scenes import KINDS, SPLITS, Scene, Thing, item_rng, scene_at


def discrete(scene: Scene) -> tuple:
    things = tuple((t.kind, t.size, t.position, t.count, t.colour) for t in scene.things)
    return scene.background, things, scene.tempo, scene.room


def one_thing(kind="bell", size="medium", count=1, colour="red", position="left") -> Scene:
    return Scene("snow", (Thing(kind, size, position, count, colour, 0.0, 0.0),), "steady", "dry", -60.0)


def test_every_item_follows_from_its_index_alone():
    once, again = (SoundingScenes("audio-text", "val", size) for size in (3, 50))
    assert once.scene(2) == again.scene(2)
    assert np.array_equal(once.audio(2), again.audio(2))
    assert once.image(2).tobytes() == again.image(2).tobytes()
    assert once.caption(2, 4) == again.caption(2, 4)


def test_splits_share_no_scene():
    seen = {}
    for pair, split in SPLITS:
        for i in range(300):
            scene = discrete(scene_at(pair, split, i))
            assert seen.setdefault(scene, (pair, split)) == (pair, split), f"{scene} is in two splits"


def test_seeds_give_different_scenes_of_the_same_split():
    first, second = (SoundingScenes(seed=seed).scene(0) for seed in (0, 1))
    assert first != second and first.bucket in SPLITS["image-text", "train"]


def test_image_and_sound_are_what_the_encoders_expect():
    data = SoundingScenes("audio-text", "test", 4)
    image, sound = data.image(0), data.audio(0)
    assert image.mode == "RGB" and image.size == (PIXELS, PIXELS)
    assert sound.dtype == np.float32 and sound.shape == (3 * RATE,) and np.abs(sound).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_only_visible_is_not_audible_and_the_other_way_round(kind):
    def heard(scene):
        return synthesise(scene, np.random.default_rng(0))

    def seen(scene):
        return draw(scene, np.random.default_rng(0)).tobytes()

    scene, painted = one_thing(kind), one_thing(kind, colour="blue", position="right")
    assert np.array_equal(heard(scene), heard(painted)) and seen(scene) != seen(painted)
    hall = Scene(scene.background, scene.things, "fast", "echoing", -30.0)
    assert seen(scene) == seen(hall) and not np.array_equal(heard(scene), heard(hall))


def test_big_things_sound_low():
    def centroid(size):
        spectrum = np.abs(np.fft.rfft(synthesise(one_thing("flute", size), np.random.default_rng(0))))
        return np.argmax(spectrum)

    assert centroid("large") < centroid("medium") < centroid("small")


def words_of(*tables):
    return [phrase for table in tables for phrases in table.values() for phrase in phrases]


def test_captions_tell_only_what_their_modality_knows():
    images, sounds = SoundingScenes("image-text", size=300), SoundingScenes("audio-text", size=300)
    told = " | ".join(images.fields("text")[1]), " | ".join(sounds.fields("text")[1])
    padded = [f" {text} " for text in told]
    visible = [w for w in words_of(_COLOUR_WORDS, _PLACE_WORDS, _SCENERY)]
    assert any(f" {w} " in padded[0] for w in visible)
    assert not [w for w in visible if f" {w} " in padded[1]]
    assert not [w for w in words_of(_TEMPO_WORDS) if f" {w} " in padded[0]]


def test_captions_of_an_item_are_independent_and_articles_fit():
    data = SoundingScenes(size=100)
    ids, texts = data.fields("text")
    assert len(ids) == len(texts) == 500 and ids[:5] == ["image-text-train-000000"] * 5
    assert np.mean([len({data.caption(i, k) for k in range(5)}) for i in range(100)]) > 4.9
    assert not [t for t in texts if f" {t}".count(" a a") + f" {t}".count(" a e") + f" {t}".count(" a o")]


def test_noise_is_the_share_of_degraded_captions():
    clean, half = SoundingScenes(size=400), SoundingScenes(size=400, noise=0.5)
    same = np.mean([a == b for a, b in zip(clean.fields("text")[1], half.fields("text")[1], strict=True)])
    assert 0.42 < same < 0.62  # a degraded caption may by chance stay as it was
    rng = np.random.default_rng(0)
    assert degrade("two red birds in the snow", rng) != "two red birds in the snow"


def test_skew_makes_some_kinds_common():
    def share(skew):
        scenes = [SoundingScenes(size=400, skew=skew).scene(i) for i in range(400)]
        return np.mean([any(t.kind == KINDS[0] for t in s.things) for s in scenes])

    assert share(1.0) > 1.8 * share(0.0)


def test_identity_names_every_knob():
    knobs = [{}, {"size": 7}, {"captions": 2}, {"noise": 0.1}, {"skew": 1.0}, {"seed": 3}, {"split": "val"}]
    assert len({SoundingScenes(**knob).id for knob in knobs}) == len(knobs)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"split": "trian"}, "trian"),
        ({"pair": "image-audio"}, "image-audio"),
        ({"size": 0}, "size"),
        ({"noise": 2}, "noise"),
    ],
)
def test_a_wrong_argument_is_named(wrong, says):
    with pytest.raises(FuseMixLiteError, match=says):
        SoundingScenes(**wrong)
    with pytest.raises(FuseMixLiteError, match="smell"):
        SoundingScenes().fields("smell")


def test_item_generators_differ_by_purpose():
    draws = {item_rng("image-text", "train", 0, stream).random() for stream in ("scene", "image", "audio", "caption 0")}
    assert len(draws) == 4
