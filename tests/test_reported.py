"""Reported numbers: read with their marks; what has no source is refused."""

import copy

import pytest
import yaml

from fusemix_lite import FuseMixLiteError
from fusemix_lite.reported import EFFORTS, MARKS, load_reported

GOOD = {
    "model": "A",
    "pairs": 10,
    "mark": "S",
    "source": "a table",
    "recall": {"COCO": {"text_to_image": {1: 12.5}, "image_to_text": {1: 20}}},
}


def write(path, *rows):
    path.write_text(yaml.safe_dump({"topic": [copy.deepcopy(row) for row in rows]}))  # no aliases, which are refused
    return path


@pytest.mark.parametrize(("topic", "media"), [("image-text-retrieval", "image"), ("audio-text-retrieval", "audio")])
def test_the_books_file_is_well_formed_and_consistent(topic, media):
    rows = load_reported(topic)
    assert rows[0].model.startswith("FuseMix") and len({row.model for row in rows}) == len(rows)
    for row in rows:
        assert row.mark in MARKS
        for dataset, directions in row.recall.items():
            assert set(directions) <= {f"text_to_{media}", f"{media}_to_text"}
            for direction, values in directions.items():
                in_order = [values[k] for k in sorted(values)]
                assert in_order == sorted(in_order), f"{row.model}, {dataset}, {direction}: recall grows with k"


def test_five_captions_make_image_to_text_the_easier_way_for_every_model():
    for row in load_reported("image-text-retrieval"):
        for dataset in row.recall:
            assert row.at(dataset, "image_to_text") > row.at(dataset, "text_to_image")


def test_a_number_that_is_not_known_is_none(tmp_path):
    (row,) = load_reported("topic", write(tmp_path / "r.yml", GOOD))
    assert row.at("COCO", "text_to_image") == 12.5 and row.at("COCO", "image_to_text", 1) == 20
    assert row.at("COCO", "text_to_image", 5) is None and row.at("Flickr30K", "text_to_image") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mark": "R"}, "unknown mark 'R'"),  # remembered, not read
        ({"source": ""}, "source is empty"),
        ({"pairs": "5M"}, "pairs = '5M'"),
        ({"pairs": -1}, "pairs = -1"),
        ({"recall": {"COCO": {"text_to_image": {1: 171.2}}}}, "COCO text_to_image@1 = 171.2"),
        ({"recall": {"COCO": {"t2i": {1: 71.2}}}}, "'t2i'"),
        ({"extra": 1}, "exactly the fields"),
    ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path, change, message):
    with pytest.raises(FuseMixLiteError, match=message) as error:
        load_reported("topic", write(tmp_path / "r.yml", GOOD, GOOD | change))
    assert "r.yml, topic, row 2" in str(error.value)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(FuseMixLiteError, match="no file"):
        load_reported("topic", tmp_path / "none.yml")
    with pytest.raises(FuseMixLiteError, match="no topic 'audio'; it has topic"):
        load_reported("audio", write(tmp_path / "r.yml", GOOD))
    (tmp_path / "bad.yml").write_text("a: [1,")
    with pytest.raises(FuseMixLiteError, match="no YAML"):
        load_reported("topic", tmp_path / "bad.yml")


def test_how_long_training_took_is_known_or_none():
    rows = {row.model: row for topic in EFFORTS for row in load_reported(topic)}
    results = {row.model: row for row in load_reported("image-text-retrieval")}
    for name in rows.keys() & results.keys():  # one story about a model
        assert rows[name].pairs == results[name].pairs and not rows[name].recall
    assert rows["CLIP ViT-L/14@336"].device_days == 256 * 12
    assert rows["CLIP ViT-L/14@336"].device_days / rows["FuseMix (best)"].device_days == pytest.approx(600)
    assert rows["ALIGN"].device_days is None


@pytest.mark.parametrize("change", [{"device_hours": -1}, {"device_hours": "5 h"}, {"device": None}])
def test_hours_without_a_device_are_refused(tmp_path, change):
    row = GOOD | {"device": "V100", "device_hours": 5} | change
    path = tmp_path / "r.yml"
    path.write_text(yaml.safe_dump({"training-time": [row]}))
    with pytest.raises(FuseMixLiteError, match="give hours above 0, a device"):
        load_reported("training-time", path)
