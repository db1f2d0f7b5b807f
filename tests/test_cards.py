"""The cards: they say what code and files say, probe tables are of the shipped weights, levels are computed right."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fusemix_lite import FuseMixLiteError, SoundingScenes, cards, real, scenes
from fusemix_lite.encoders import LITE_ENCODERS
from fusemix_lite.registry import ENCODERS
from fusemix_lite.scene_audio import synthesise
from fusemix_lite.scene_image import draw
from fusemix_lite.scene_reading import read_caption
from fusemix_lite.scene_text import audio_caption, image_caption

AGAIN = "run `python -m fusemix_lite.cards`"
THING = scenes.Thing("bell", "small", "left", 2, "red", 0.0, 0.0)
SCENE = scenes.Scene("snow", (THING,), "slow", "dry", -60.0)


def changed(factor: str) -> scenes.Scene:
    """SCENE with another value of one factor."""
    other = cards.FACTORS[factor].values[-1]
    if factor in ("background", "tempo", "room"):
        return replace(SCENE, **{factor: other})
    return replace(SCENE, things=(replace(THING, **{factor: other}),))


def test_committed_cards_are_what_the_code_renders():
    assert {path.name: path.read_text() for path in cards.CARDS.glob("*.md")} == cards.render(), AGAIN


def test_the_public_encoders_are_told_as_the_registry_knows_them(monkeypatch):
    rows = [line for line in cards.public_card().splitlines() if line.startswith("| [")]
    assert len(rows) == len(ENCODERS)
    for name, entry in ENCODERS.items():
        (row,) = [row for row in rows if row.startswith(f"| [{name}](")]
        assert f"| {entry.dim} |" in row and entry.licence in row and entry.prefix in row
        assert (entry.revision[:12] if entry.revision else "–" if entry.bring else "not pinned") in row
        assert row.endswith("| yes |" if name in cards._TRIED else "| no |" if entry.bring else "| class |")
        assert entry.pretrained_on in cards.public_card() and entry.note[1:] in cards.public_card()
    name, entry = next(iter(ENCODERS.items()))
    monkeypatch.setitem(ENCODERS, name, replace(entry, dim=entry.dim + 1))
    assert cards.render()["public-encoders.md"] != (cards.CARDS / "public-encoders.md").read_text()


@pytest.mark.parametrize("name", real.REAL)
def test_the_card_of_real_latents_says_what_the_loader_knows(name, tmp_path, monkeypatch):
    known = real.REAL[name]
    for fact in (known.items, known.text, known.splits, known.licence, known.source, *known.encoders, *known.keys):
        assert fact in cards.real_card(name)
    told = {"dims": {m: 77 for m in known.names}, "kept": {m: 0.625 for m in known.names}, "digest": "abc"}
    (tmp_path / "facts.json").write_text(json.dumps({name: told}))
    monkeypatch.setattr(real, "FACTS", tmp_path / "facts.json")
    assert "77 (text) |" in cards.real_card(name) and "62.5 % (text) |" in cards.real_card(name)
    monkeypatch.setattr(real, "FACTS", tmp_path / "none.json")
    assert "Digest" not in cards.real_card(name)


def test_what_was_tried_is_in_the_registry():
    assert set(cards._TRIED) <= set(ENCODERS)


@pytest.mark.parametrize("name", LITE_ENCODERS)
def test_probe_tables_are_of_the_shipped_weights_and_this_world(name):
    assert cards.is_fresh(name), AGAIN
    found = cards.load_probes(name)
    assert (found["train_scenes"], found["test_scenes"]) == (cards.TRAIN_SCENES, cards.TEST_SCENES)
    assert tuple(found["pairs"]) == cards.PAIRS[name.split("-")[1]]
    assert all(set(table) == set(cards.FACTORS) for table in found["pairs"].values())


def test_a_missing_table_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "WEIGHTS", tmp_path)
    with pytest.raises(FuseMixLiteError, match="fusemix_lite.cards"):
        cards.load_probes("lite-image-a")
    assert not cards.is_fresh("lite-image-a")


def test_every_factor_is_told():
    assert set(cards.FACTORS) == set(SCENE.factors())
    for factor, value in SCENE.factors().items():
        assert value is None or value in cards.FACTORS[factor].values


@pytest.mark.parametrize("factor", [name for name in cards.FACTORS if name != "first"])
def test_who_perceives_what_is_true_to_the_last_bit(factor):
    def rng():
        return np.random.default_rng(0)

    other, told = changed(factor), cards.FACTORS[factor]
    assert (draw(SCENE, rng()).tobytes() != draw(other, rng()).tobytes()) == told.seen
    assert (not np.array_equal(synthesise(SCENE, rng()), synthesise(other, rng()))) == told.heard


@pytest.mark.parametrize("factor", [name for name in cards.FACTORS if name != "first"])
def test_captions_tell_what_their_modality_perceives(factor):
    other, told = changed(factor), cards.FACTORS[factor]
    for write, perceived in ((image_caption, told.seen), (audio_caption, told.heard)):
        same = [write(SCENE, np.random.default_rng(i)) == write(other, np.random.default_rng(i)) for i in range(60)]
        assert all(same) != perceived


def test_order_is_heard_and_not_told_of_pictures():
    two = replace(SCENE, things=(THING, replace(THING, kind="drum", position="right")))
    swapped = replace(two, things=two.things[::-1])
    assert not np.array_equal(*(synthesise(s, np.random.default_rng(0)) for s in (two, swapped)))
    for scene in (two, swapped):
        captions = (image_caption(scene, np.random.default_rng(i)) for i in range(400))
        bell_first = np.mean([read_caption(caption).things[0].kind == "bell" for caption in captions])
        assert 0.4 < bell_first < 0.6


def test_share_is_measured_from_guessing():
    row = {"accuracy": 55.0, "chance": 10.0, "items": 100}
    assert cards.share("kind", row) == pytest.approx(0.5)
    assert cards.share("first", row) == pytest.approx(0.1)  # a coin between two kinds
    assert cards.share("kind", {**row, "accuracy": 5.0}) == 0


def test_levels_hold_perceptible_factors_only_best_first():
    table = {factor: {"accuracy": 33.0, "chance": 33.0, "items": 50} for factor in cards.FACTORS}
    table["colour"]["accuracy"], table["kind"]["accuracy"], table["count"]["accuracy"] = 95.0, 99.0, 60.0
    assert cards.levels("image-text", table) == {
        "good": ["kind", "colour"],
        "so-so": ["count"],
        "bad": ["size", "position", "background"],
    }
    assert "colour" not in sum(cards.levels("audio-text", table).values(), [])


def test_interval_of_an_accuracy_is_wilsons():
    low, high = cards.accuracy_interval({"accuracy": 90.0, "items": 100})
    assert (round(low, 1), round(high, 1)) == (82.6, 94.5)  # as in Newcombe (1998), method 3
    low, high = cards.accuracy_interval({"accuracy": 100.0, "items": 50})
    assert low < 95 and high == pytest.approx(100)


def test_discrete_scenes_are_counted_as_they_are_drawn(monkeypatch):
    for name, few in {"KINDS": 2, "COLOURS": 1, "BACKGROUNDS": 1}.items():
        monkeypatch.setattr(scenes, name, getattr(scenes, name)[:few])
    monkeypatch.setattr(scenes, "MAX_COUNT", 1)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(12_000):
        scene = scenes.sample_scene(rng)
        seen.add((scene.tempo, scene.room, tuple((t.kind, t.size, t.position) for t in scene.things)))
    assert len(seen) == cards.discrete_scenes() == 756


def test_measuring_gives_a_row_for_every_factor(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path))
    found = cards.measure("lite-text-b", 120, 60, progress=False)["pairs"]
    one = sum(len(SoundingScenes("image-text", "val").scene(i).things) == 1 for i in range(60))
    assert found["image-text"]["kind"]["items"] == one and found["image-text"]["first"]["items"] == 60 - one
    assert found["image-text"]["background"]["items"] == 60
    assert 50 <= found["audio-text"]["room"]["chance"] < 70  # never below a coin, with two values
    assert all(0 <= row["accuracy"] <= 100 for table in found.values() for row in table.values())
