"""Profiles, records and the sweep that makes them."""

import json

import pytest

from fusemix_lite import FuseMixLiteError, experiments, profile, records
from fusemix_lite.claims import load_claims
from fusemix_lite.experiments import EXPERIMENTS, Runs, choose, plan
from fusemix_lite.records import Record, fingerprint
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
    runs.add("a", {"val_mean": 1.0})
    with runs.path.open("a") as file:
        file.write('{"job": "b", "numb')  # killed while writing
    assert Runs(runs.path).done == {"a": {"val_mean": 1.0}}


def test_a_whole_sweep_at_smoke_scale(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path))
    p = profile("smoke", sizes=(100,), scarce=100)
    content = experiments.sweep("fusemix", p, workers=1)
    assert len(content["cells"]) == len(experiments.plan("fusemix", p)[1])
    again = experiments.sweep("fusemix", p, workers=1)  # everything is in the cache
    assert again["cells"] == content["cells"]
