"""Profiles, records and the sweep that makes them."""

import json
from dataclasses import asdict
from itertools import product

import pytest

from fusemix_lite import FuseMixLiteError, experiments, profile, records
from fusemix_lite.claims import load_claims
from fusemix_lite.experiments import EXPERIMENTS, Runs, choose, plan
from fusemix_lite.records import Record, fingerprint
from fusemix_lite.reported import beside_ours, load_reported
from fusemix_lite.stats import interval


def test_profile_overrides_and_errors():
    assert profile("lite", seeds=3).seeds == 3
    assert profile("lite", seeds=None) == profile("lite")
    with pytest.raises(FuseMixLiteError, match="larg"):
        profile("larg")
    with pytest.raises(FuseMixLiteError, match="sedes"):
        profile("lite", sedes=3)


@pytest.fixture
def record():
    runs = [{"seed": s, "image_to_text@1": 20.0 + s} for s in range(10)]
    better = [{"seed": s, "image_to_text@1": 21.0 + s} for s in range(10)]
    cells = [
        {"arm": {"scheme": "none", "items": 5}, "chosen": {"dropout": 0.2, "steps": 3}, "runs": runs},
        {"arm": {"scheme": "fusemix", "items": 5}, "chosen": {"dropout": 0.2, "steps": 3}, "runs": better},
    ]
    return Record({"name": "toy", "seeds": list(range(10)), "cells": cells})


def test_record_gives_values_and_paired_differences(record):
    fusemix, none = {"scheme": "fusemix", "items": 5}, {"scheme": "none", "items": 5}
    assert record.values("image_to_text@1", **none)[:2] == [20.0, 21.0]
    assert record.difference("image_to_text@1", fusemix, none) == (1.0, 1.0, 1.0)
    with pytest.raises(FuseMixLiteError, match="no arm"):
        record.cell(scheme="slerp", items=5)


def test_change_of_lead_is_paired_over_seeds():
    """Seeds that shift all arms alike, by far more than the change, leave no trace in it."""
    shift, rise = [0.0, 50.0, -30.0, 10.0], [1.9, 2.1, 2.0, 2.0]
    lead = {("few", "none"): 0.0, ("few", "fusemix"): 3.0, ("many", "none"): 7.0, ("many", "fusemix"): 10.0}
    cells = [
        {
            "arm": {"scheme": scheme, "at": at},
            "runs": [
                {"r": s + level + (r if (at, scheme) == ("many", "fusemix") else 0)} for s, r in zip(shift, rise, strict=True)
            ],
        }
        for (at, scheme), level in lead.items()
    ]
    made = {"date": "2001-02-03", "torch": "9.9"}
    record = Record({"name": "toy", "seeds": [0, 1, 2, 3], "cells": cells, "provenance": made})
    few, many = (tuple({"scheme": s, "at": at} for s in ("fusemix", "none")) for at in ("few", "many"))
    change = record.change_of_lead("r", few, many)
    assert change == pytest.approx(interval(rise))
    assert record.change_of_lead("r", many, few).mean == pytest.approx(-2.0)
    assert record.stamp == "recorded on 2001-02-03 with torch 9.9, 4 seeds"


def test_live_value_outside_the_record_is_refused(record):
    record.check_live("image_to_text@1", 24.0, scheme="none", items=5)
    with pytest.raises(FuseMixLiteError, match="make reproduce"):
        record.check_live("image_to_text@1", 60.0, scheme="none", items=5)


def test_missing_and_broken_records_name_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    with pytest.raises(FuseMixLiteError, match="fusemix_lite.experiments"):
        Record.load("fusemix")
    (tmp_path / "lite").mkdir()
    (tmp_path / "lite" / "fusemix.json").write_text("{")
    with pytest.raises(FuseMixLiteError, match="broken"):
        Record.load("fusemix")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_records_are_not_stale(name):
    if not (records.RESULTS / "lite" / f"{name}.json").exists():
        assert all(claim.why for claim in load_claims() if claim.record == name)
        pytest.skip("its record is still to be made, and the ledger says why")
    p, arms = plan(name, profile("lite"))
    arms = json.loads(json.dumps(arms))
    record = Record.load(name)
    assert record.content["fingerprint"] == fingerprint(p, arms), "run `make reproduce`"
    assert [cell["arm"] for cell in record.content["cells"]] == arms
    assert all(len(cell["runs"]) == p.seeds for cell in record.content["cells"])


def test_fingerprint_changes_with_the_weights(monkeypatch):
    p = profile("lite")
    before = fingerprint(p, [{}])
    monkeypatch.setattr(records, "weights_digest", lambda encoder: "other")
    assert fingerprint(p, [{}]) != before


def test_choice_is_the_best_mean_validation_score():
    scores = {(0.2, 300): [10.0, 20.0], (0.6, 300): [16.0, 16.0], (0.2, 900): [16.0, 15.0]}
    runs = {point: [{"val_mean": v} for v in values] for point, values in scores.items()}
    assert choose(runs) == {"dropout": 0.6, "steps": 300}


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path):
    runs = Runs(tmp_path / "runs.jsonl")
    runs.add("a", {"seconds": 2.5, "val_mean": 1.0})
    with runs.path.open("a") as file:
        file.write('{"job": "b", "numb')  # killed while writing
    assert Runs(runs.path).done == {"a": {"seconds": 2.5, "val_mean": 1.0}}


def test_a_whole_sweep_at_smoke_scale(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path))
    p = profile("smoke", sizes=(100,), scarce=100)
    content = experiments.sweep("fusemix", p, workers=1)
    assert len(content["cells"]) == len(experiments.plan("fusemix", p)[1])
    again = experiments.sweep("fusemix", p, workers=1)  # everything is in the cache
    assert again["cells"] == content["cells"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Puts records of other profiles where the book's are looked for."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)

    def make(scale: str, arms: dict[str, list[dict]]) -> None:
        p = profile(scale)
        for name, found in arms.items():
            cells = [{"arm": arm, "chosen": {}, "runs": runs} for arm, runs in found]
            config = json.loads(json.dumps(asdict(experiments.EXPERIMENTS[name].scale(p))))
            content = {"name": name, "profile": scale, "config": config, "seeds": [0, 1], "cells": cells}
            content |= {"fingerprint": "", "provenance": {}}
            (tmp_path / scale).mkdir(exist_ok=True)
            (tmp_path / scale / f"{name}.json").write_text(json.dumps(content))

    return make


def test_other_scales_are_shown_where_they_were_measured(made):
    made("colab", {"fusemix": [({"scheme": "none", "items": 5}, [{"r": 1.0}, {"r": 3.0}])]})
    found = records.at_scales("fusemix", lambda r: [{"mean": r.interval("r", scheme="none", items=5).mean}], ("colab", "paper"))
    assert found["colab"] == [{"mean": 2.0}]
    assert found["paper"].startswith("Not yet measured: `python -m fusemix_lite.experiments fusemix --profile paper`")
    assert " on one H100" in found["paper"]


def test_ours_stand_beside_what_is_reported(made):
    def arm(p):
        return {"scheme": "fusemix", "items": p.train_items}

    clip = load_reported("image-text-retrieval")[1]
    before = beside_ours([clip], "retrieval", arm)
    assert [row["how we know"] for row in before] == ["reported (S)", "not yet measured", "not yet measured"]
    assert before[0]["Flickr30K T→I"] == clip.at("Flickr30K", "text_to_image")
    assert all(value is None for key, value in before[2].items() if "→" in key)
    numbers = {f"{test}{way}@1": value for value, (test, way) in enumerate(
        product(("", "coco_"), ("text_to_image", "image_to_text")), 10)}  # fmt: skip
    made("paper", {"retrieval": [(arm(profile("paper")), [numbers, numbers])]})
    paper = beside_ours([clip], "retrieval", arm)[2]
    assert paper["how we know"] == "measured, 2 seeds" and paper["model"].endswith("coco+visual-genome+sbu+cc3m")
    assert [paper[cell] for cell in ("Flickr30K T→I", "Flickr30K I→T", "COCO T→I", "COCO I→T")] == [10, 11, 12, 13]


def test_a_chapter_is_shown_the_record_of_its_scale(made, monkeypatch):
    monkeypatch.setattr(experiments, "lacks_public", lambda name, split: None)
    for scale in ("lite", "colab"):
        made(scale, {"fusemix": []})
    assert experiments.obtain("fusemix", profile("colab")).profile.name == "colab"
    assert experiments.obtain("fusemix", profile("colab", depth=1)).profile.name == "lite"  # other values, another scale
    assert experiments.obtain("fusemix", profile("smoke")).profile.name == "lite"
    assert experiments.obtain("fusemix", profile("colab").scenes).profile.name == "lite"
