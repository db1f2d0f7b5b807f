"""The claim ledger: its rules on made-up records, and its rows against the experiments that exist."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from fusemix_lite import FuseMixLiteError, profile
from fusemix_lite.claims import Claim, Verdict, chance, effect, explains, judge, judge_null, load_claims
from fusemix_lite.experiments import plan
from fusemix_lite.records import Record
from fusemix_lite.stats import Interval

METRIC = "text_to_image@1"
ARM, OTHER, AGAIN = {"scheme": "fusemix"}, {"scheme": "none"}, {"scheme": "none", "null": "again"}
COMPARISON = Claim(
    "toy", "FuseMix beats no mixing.", "nowhere", "ours", None, "toy", "lite",
    rule={"metric": METRIC, "arm": ARM, "other": OTHER, "margin": 0.5},
    null={"arm": AGAIN, "other": OTHER},
)  # fmt: skip
LEVEL = replace(
    COMPARISON,
    rule={"metric": METRIC, "arm": {"scheme": "fusemix", "null": "shuffled"}, "level": "chance", "margin": 0.3},
    null={"arm": ARM},
)
ROW = "- {id: a, claim: b, where: c, mark: %s, reported: null, record: e, profile: f, rule: {metric: m, arm: {}, %s}, %s}\n"


def record_of(*cells: tuple[dict, list[float]]) -> Record:
    return Record(
        {
            "name": "toy",
            "profile": "lite",
            "config": asdict(profile("lite")),
            "seeds": list(range(10)),
            "cells": [{"arm": arm, "runs": [{METRIC: v} for v in values]} for arm, values in cells],
        }
    )


def compare(gains: list[float]):
    base = [20.0 + seed for seed in range(10)]  # seeds differ far more than arms do: only pairing sees the gain
    return record_of((OTHER, base), (ARM, [b + g for b, g in zip(base, gains, strict=True)]))


@pytest.mark.parametrize(
    ("centre", "spread", "verdict"),
    [
        (1.0, 0.1, "reproduced"),
        (0.4, 0.1, "direction only"),  # surely above 0, below the margin
        (1.0, 5.0, "not reproduced"),  # a fine mean, but the interval holds 0
        (-1.0, 0.1, "not reproduced"),
    ],
)
def test_a_comparison_needs_its_interval_and_its_margin(centre, spread, verdict):
    gains = centre + spread * np.linspace(-1, 1, 10)
    result = judge(COMPARISON, compare(gains.tolist()))
    assert result.verdict == verdict
    assert result.mean == pytest.approx(centre)
    assert result.low < centre < result.high


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.1, 2, "leads"), (-1, 2, "makes no clear difference"), (0, 2, "makes no clear difference"), (-2, -0.1, "trails")],
)
def test_an_effect_is_named_by_its_interval(low, high, words):
    assert effect(Interval((low + high) / 2, low, high)) == words


def test_a_verdict_reads_as_text():
    assert str(Verdict(1.84, 1.2, 2.44, "reproduced")) == "+1.8 (+1.2 to +2.4): reproduced"


def test_a_level_has_to_lie_around_chance_with_its_whole_interval():
    shuffled, wiggle = LEVEL.rule["arm"], 0.1 * np.linspace(-1, 1, 10)
    record = record_of((shuffled, (0.1 + wiggle).tolist()), (ARM, (20 + wiggle).tolist()))
    result = judge(LEVEL, record)  # chance is 0.1 %
    assert result.verdict == "reproduced"
    assert result.mean == pytest.approx(0.0, abs=1e-9)
    assert judge(LEVEL, record_of((shuffled, (0.39 + wiggle).tolist()))).verdict == "not reproduced"
    assert judge_null(LEVEL, record).verdict == "not reproduced"  # pairs that match must not pass for chance


def test_a_null_passes_no_more_often_than_chance_allows():
    """Two arms from one law: the interval lies above 0 in 2.5 % of 1,000 experiments, the rule adds a margin to that."""
    rng = np.random.default_rng(0)
    nulls = [
        judge_null(COMPARISON, record_of((AGAIN, a.tolist()), (OTHER, b.tolist()))).verdict
        for a, b in rng.normal(20.0, 1.0, (1000, 2, 10))
    ]
    assert nulls.count("reproduced") <= 40  # 25 expected, 5 of them the standard deviation
    assert nulls.count("not reproduced") >= 950


@pytest.mark.parametrize("metric", ["image_to_text@1", "image_to_text@3", "text_to_image@1", "text_to_image@3"])
def test_chance_is_what_guessing_gives(metric):
    p = replace(profile("lite"), test_items=6, captions=2)
    rng = np.random.default_rng(0)
    way, k = metric.split("@")
    gallery = np.repeat(np.arange(6), 2 if way == "image_to_text" else 1)
    hits = [0 in rng.permutation(gallery)[: int(k)] for _ in range(20_000)]
    assert chance(metric, p) == pytest.approx(100 * np.mean(hits), abs=1.5)


def test_the_committed_rows_are_about_arms_and_metrics_that_exist():
    claims = load_claims()
    assert len(claims) >= 8
    for claim in claims:
        _, arms = plan(claim.record, profile(claim.profile))
        named = [source[key] for source in (claim.rule, claim.null) for key in ("arm", "other") if key in source]
        assert all(arm in arms for arm in named), claim.id
        media = "audio" if claim.record in ("audio", "philharmonia") else "image"
        assert claim.rule["metric"] in {f"{way}@{k}" for way in (f"{media}_to_text", f"text_to_{media}") for k in (1, 5, 10)}
        assert claim.null != {key: claim.rule[key] for key in claim.null}, claim.id


def test_the_committed_nulls_do_not_pass():
    """Over all rows no more often than chance allows (2.5 % each), and a matched arm never passes for chance."""
    claims = load_claims()
    passed = [c for c in claims if judge_null(c, Record.load(c.record, c.profile)).verdict == "reproduced"]
    assert not [claim.id for claim in passed if "level" in claim.rule]
    assert len({(claim.rule["metric"], str(claim.null)) for claim in passed}) <= 1


def test_a_record_of_something_else_is_refused():
    record = compare([1.0] * 10)
    record.content["profile"] = "smoke"
    with pytest.raises(FuseMixLiteError, match="smoke"):
        judge(COMPARISON, record)


@pytest.mark.parametrize(
    ("rule", "null", "message"),
    [
        ("other: {}, margin: 1", '"null": {arm: {}}', "null names the arms"),
        ("margin: 1", '"null": {arm: {}}', "either other or level"),
        ("level: high, margin: 1", '"null": {arm: {}}', "chance"),
        ("level: chance, margin: 0", '"null": {arm: {}}', "above 0"),
        ("level: chance, margin: 1", "null: {arm: {}}", "quotes"),
        ("level: chance, margin: 1", '"null": {arm: {}', "broken"),
    ],
)
def test_a_broken_ledger_says_where(tmp_path, rule, null, message):
    path = tmp_path / "claims.yml"
    path.write_text(ROW % ("ours", rule, null))
    with pytest.raises(FuseMixLiteError, match=message):
        load_claims(path)


def test_a_claim_whose_source_is_only_remembered_has_no_place(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text(ROW % ("R", "level: chance, margin: 1", '"null": {arm: {}}'))
    with pytest.raises(FuseMixLiteError, match="mark is 'R'"):
        load_claims(path)


def test_a_missing_ledger_and_a_double_id(tmp_path):
    with pytest.raises(FuseMixLiteError, match="no claim ledger"):
        load_claims(tmp_path / "claims.yml")
    (tmp_path / "claims.yml").write_text(2 * (ROW % ("ours", "level: chance, margin: 1", '"null": {arm: {}}')))
    with pytest.raises(FuseMixLiteError, match="twice"):
        load_claims(tmp_path / "claims.yml")


@pytest.mark.parametrize(
    ("rise", "verdict"),
    [
        (Interval(2.0, 1.0, 3.0), "a cause"),
        (Interval(0.1, -0.2, 0.4), "acquitted"),  # surely below the margin
        (Interval(0.2, 0.1, 0.3), "acquitted"),  # surely there, surely too small
        (Interval(-3.0, -4.0, -2.0), "acquitted"),  # taking it away makes things worse
        (Interval(0.1, -1.0, 1.2), "open"),  # an interval that holds 0 acquits nobody
        (Interval(2.0, -0.1, 4.1), "open"),
        (Interval(0.4, 0.1, 0.7), "open"),  # surely there, perhaps too small
    ],
)
def test_what_an_interval_says_about_a_suspect(rise, verdict):
    assert explains(rise) == verdict
