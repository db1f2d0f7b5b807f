"""The page of the claim ledger: what it counts, says and draws is what the rules say, and its words are made from the rules."""

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from fusemix_lite import ledger, profile, records
from fusemix_lite.claims import GROUPS, Claim, judge, load_claims, points, record_of
from fusemix_lite.errors import FuseMixLiteError
from fusemix_lite.ledger import Row, cards_of, judged, nulls, page
from fusemix_lite.rule_words import asked_in_words, measured_in_words, metric_in_words, null_in_words
from tools.fragments import title
from tools.notebooks import chapters, toc_documents

T2I, I2T = "text_to_image@1", "image_to_text@1"
MIXED, PLAIN = {"scheme": "fusemix", "items": 500}, {"scheme": "none", "items": 500}
AGAIN = PLAIN | {"null": "again"}
TOY = Claim(
    "toy-t2i", "FuseMix beats <no mixing>.", "page 1", "P", 71.2, "toy", "lite",
    rule={"metric": T2I, "arm": MIXED, "other": PLAIN, "margin": 0.5},
    null={"arm": AGAIN, "other": PLAIN},
    group="method", chapter="03-fusemix",
)  # fmt: skip
OTHER_WAY = replace(TOY, id="toy-i2t", rule=TOY.rule | {"metric": I2T})
OURS = replace(TOY, id="ours", mark="ours", reported=None, group="ablations")
SUM = replace(
    TOY,
    id="sum",
    mark="D",
    record=None,
    profile=None,
    rule={"arithmetic": "3072 / 600", "equals": 5.1, "within": 1},
    null="none",
)
FAR = replace(
    TOY, id="far", record=None, profile=None, rule=None, null=None, why="It takes 5 million pairs.", reported="71.2 %"
)
WAITING = replace(TOY, id="waiting", record="not-made")
LIKE = replace(
    TOY, id="like", rule={"metric": T2I, "arm": AGAIN, "other": PLAIN, "within": 3}, null={"arm": MIXED, "other": PLAIN}
)
CLAIMS = [TOY, OTHER_WAY, OURS, SUM, FAR, WAITING, LIKE]


@pytest.fixture
def toy(tmp_path, monkeypatch) -> list[Row]:
    """Records in which FuseMix leads from text by 4 points, trails to text by 1, and the null has a difference of 0."""
    wiggle = np.linspace(-1, 1, 10)
    values = {
        str(PLAIN): {T2I: 20 + 0 * wiggle, I2T: 30 + 0 * wiggle, T2I.replace("1", "5"): 40 + 0 * wiggle},
        str(MIXED): {T2I: 24 + 0.2 * wiggle, I2T: 29 + 0.2 * wiggle, T2I.replace("1", "5"): 40.6 + 0 * wiggle},
        str(AGAIN): {T2I: 20 + wiggle, I2T: 30 + 1.5 * wiggle, T2I.replace("1", "5"): 40 + wiggle},
    }
    cells = [
        {"arm": arm, "runs": [{m: float(v[i]) for m, v in values[str(arm)].items()} for i in range(10)]}
        for arm in (PLAIN, MIXED, AGAIN)
    ]
    content = {"name": "toy", "profile": "lite", "config": asdict(profile("lite")), "seeds": list(range(10)), "cells": cells}
    content |= {"fingerprint": "toy", "provenance": {}}
    (tmp_path / "lite").mkdir()
    (tmp_path / "lite" / "toy.json").write_text(json.dumps(content))
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    return judged(CLAIMS)


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not open, and gathers what there is to read, its anchors and its links."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.anchors, self.links, self.text = [], [], [], ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        if tag not in ("br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data


def test_every_kind_of_row_gets_its_verdict(toy):
    assert {row.claim.id: row.verdict for row in toy} == {
        "toy-t2i": "reproduced",
        "toy-i2t": "not reproduced",
        "ours": "reproduced",
        "sum": "reproduced",
        "far": "not testable at this scale",
        "waiting": "not measured yet",
        "like": "reproduced",
    }


def test_nulls_that_claims_share_count_once_and_luck_needs_a_difference(toy):
    found = nulls(toy)  # "toy-t2i" and "ours" share one; that of "like" has a plain difference
    assert (found.passed, found.of, found.expected) == (0, 3, 0.05)
    lucky = [row._replace(null=row.null._replace(verdict="reproduced")) for row in toy if row.null]
    assert nulls(lucky).passed == 3


def test_nulls_that_come_to_the_same_numbers_are_one(toy):
    (row, *_) = toy
    same = row._replace(claim=replace(TOY, id="other", rule=TOY.rule | {"margin": 2}))
    assert nulls([row, same]).of == 1
    assert nulls([row, row._replace(null=row.null._replace(low=row.null.low - 0.1))]).of == 2
    fixed = row._replace(null=row.null._replace(mean=0.0, low=0.0, high=0.0))
    assert (nulls([row, fixed]).of, nulls([row, fixed]).expected) == (2, 0.025)  # an arm minus itself: luck has no part


def test_the_headline_counts_the_papers_claims_apart_from_ours(toy):
    text = page(toy, {})
    assert "Of **3** claims of the paper" in text
    assert "**1** are not reproduced, **0** in direction only, and **2** are reproduced" in text
    assert "**1** cannot be tested" in text
    assert "own **1** questions and controls, 0 fail, 0 hold in direction only, 1 hold" in text
    assert "Of 1 sums about the paper’s own numbers, 1 come out" in text
    assert "1 rules still wait" in text
    assert "Nulls that passed: 0 of 3; by chance we expect about 0.1" in text
    assert 'aria-label="method: 1 not reproduced, 2 reproduced, 1 not testable at this scale, 1 not measured yet"' in text


def test_the_directions_of_a_question_share_a_card_and_the_worst_comes_first(toy):
    found = [[row.claim.id for row in card] for card in cards_of(toy)]
    assert found[0] == ["toy-t2i", "toy-i2t"]  # since one of them is not reproduced
    assert found[-1] == ["waiting"]
    assert found.index(["like"]) < found.index(["far"])


def test_what_a_card_says(toy):
    html = page(toy, {"03-fusemix": "FuseMix & more"})
    text = re.sub(r"\s+", " ", Balanced(html).text)
    assert "FuseMix beats <no mixing>." in text and "<no mixing>" not in html
    assert "Sounding Scenes +4.0 (+3.9 to +4.1) points" in text
    assert "Sounding Scenes −1.0 (−1.1 to −0.9) points, surely the other way" in text
    assert "+0.0 (−0.5 to +0.5) points, the interval holds 0: did not pass" in text
    assert "Paper’s value71.2" in text and "Paper’s value71.2 %" in text
    assert text.count("How we knowP: stated in the paper") == 4 and text.count("How we knowD: arithmetic") == 1
    assert "It comes to 5.12" in text
    assert "It takes 5 million pairs." in text
    assert "paired over 10 seeds" in text
    assert 'href="../03-fusemix.html">Chapter: FuseMix &amp; more</a>' in html
    assert "03-fusemix.html" not in page(toy, {})  # a chapter that is not there gets no link


def test_real_latents_stand_beside_the_result_of_the_scenes():
    (claim,) = (claim for claim in load_claims() if claim.id == "fusemix-none-500-i2t")
    text = Balanced(page(judged([claim]), {})).text
    assert "Sounding Scenes" in text
    assert re.search(r"Flickr8K [+−][\d.]+ \(.*?\) points.*; by the same rule (not )?reproduced", text)


def test_the_forest_plot_draws_what_the_rule_measured(toy):
    html = ledger._forest(toy)
    lines = re.findall(r'<div class="ledger-forest-line">.*?</div>', html)
    assert len(lines) == 3  # toy in two directions, ours, like; neither sums nor what is not measured
    (line,) = (line for line in lines if "#claim-toy" in line)
    axis = ledger._axis([end for row in toy if row.null and row.claim.group == "method" for end in row.found[1:3]], [-3, 3])
    assert axis.left <= -1.1 and axis.right >= 4.1
    marks = [float(x) for x in re.findall(r'ledger-mark" style="left:([\d.]+)%', line)]
    assert marks == pytest.approx([axis.at(4.0), axis.at(-1.0)], abs=0.01)
    (margin,) = re.findall(r'ledger-margin" style="left:([\d.]+)%', line)
    (zero,) = re.findall(r'ledger-zero" style="left:([\d.]+)%', line)
    assert (float(margin), float(zero)) == pytest.approx((axis.at(0.5), axis.at(0)), abs=0.01)
    assert 'class="ledger-yes"' in line and 'class="ledger-no"' in line
    (like,) = (line for line in lines if "#claim-like" in line)
    assert "ledger-band" in like and "ledger-margin" not in like


def test_an_axis_goes_from_end_to_end():
    axis = ledger._axis([-1.2, 3.9], [0.5])
    assert axis == (-2, 4, 1) and axis.ticks() == [-2, -1, 0, 1, 2, 3, 4]
    assert [axis.at(x) for x in (-2, 1, 4)] == [0, 50, 100]
    assert ledger._axis([0.2, 0.3], [5])[:2] == (0, 5)  # a margin out of reach is shown all the same
    assert ledger._axis([-0.1, 0.1], [-1, 1])[:2] == (-1, 1)  # and a band whole
    assert ledger._axis([-3.0, -1.0], [0.5])[:2] == (-3, 0.5)


def test_a_short_label_keeps_what_differs():
    long = "image-a minus image-b (FuseMix, 2,000 scenes, dropout 0.2, standardised latents, 300 steps, text-a)"
    assert ledger._brief(long) == "image-a minus image-b (FuseMix, 2,000 scenes, text-a)"
    short = "FuseMix minus no mixing (500 scenes, dropout 0.6)"
    assert ledger._brief(short) == short


def test_one_far_result_does_not_press_the_others_together():
    axis = ledger._axis([1.0] * 30 + [60.0, -1.0], [0.5])
    assert -2 <= axis.left < 0 < 2 <= axis.right <= 3
    far = judged([SUM])[0].found._replace(mean=60.0, low=58.0, high=62.0, verdict="reproduced", unit="points")
    drawn = ledger._forest_mark(Row(TOY, "reproduced", far), axis, 50)
    assert "ledger-goes-right" in drawn and "ledger-mark" not in drawn
    assert "left:100.00%" in drawn


def test_a_claim_that_waits_says_why(toy):
    text = Balanced(page(judged([replace(WAITING, why="Its generator is still in training.")]), {})).text
    assert "not measured yet" in text and "Its generator is still in training." in text


def test_without_any_record_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "RESULTS", tmp_path)
    text = page(judged([WAITING, TOY]), {})
    assert "Nothing has been measured yet" in text and "2 rules still wait" in text


def short_table(rows, chosen, both=True) -> str:
    """The table, its unbreakable spaces as spaces: they keep an interval in one line."""
    table = ledger.results(rows, chosen, both)
    assert not re.search(r"\([^|)]* [^|)]*\)", "".join(line.split("</a>")[-1] for line in table.splitlines() if "</a>" in line))
    return table.replace("\xa0", " ")


def test_a_table_of_results_for_another_page(toy):
    row = '<a href="reference/ledger.html#claim-toy">FuseMix minus no mixing (500 scenes)</a>'
    assert f"| {row} | ✗ −1.0 (−1.1 to −0.9) | ✓ +4.0 (+3.9 to +4.1) |" in short_table(toy, ["toy"])
    one = short_table(toy, ["ours", "sum", "waiting"], both=False)
    claim = "FuseMix beats &lt;no mixing&gt;."
    assert f'| <a href="reference/ledger.html#claim-ours">{claim}</a> | from text ✓ +4.0 (+3.9 to +4.1) |' in one
    assert f'| <a href="reference/ledger.html#claim-sum">{claim}</a> | ✓ 5.12 |' in one
    assert f'| <a href="reference/ledger.html#claim-waiting">{claim}</a> | … not measured yet |' in one
    with pytest.raises(FuseMixLiteError, match="no claim 'tyo'"):
        short_table(toy, ["tyo"])
    with pytest.raises(FuseMixLiteError, match="has from text, not both directions"):
        short_table(toy, ["ours"])


def test_a_rule_over_both_directions_fills_both_columns(toy):
    (row,) = judged([replace(OURS, rule=OURS.rule | {"metric": [I2T, T2I]})])
    assert row.verdict == "not reproduced"
    assert "| ✗ −1.0 (−1.1 to −0.9) | ✓ +4.0 (+3.9 to +4.1) |" in short_table([row], ["ours"])
    assert "| to text ✗ −1.0 (−1.1 to −0.9)<br>from text ✓ +4.0" in short_table([row], ["ours"], both=False)
    (row,) = judged([replace(OURS, rule=OURS.rule | {"metric": [T2I, T2I.replace("1", "5")]})])
    assert "| from text ✓ +0.6 (+0.6 to +0.6) |" in short_table([row], ["ours"], both=False)  # the weaker of the two
    (row,) = judged([replace(OURS, rule=OURS.rule | {"metric": [I2T, T2I]})])
    each = "R@1 from image to text −1.0 (−1.1 to −0.9); R@1 from text to image +4.0 (+3.9 to +4.1) points; the weakest counts"
    assert each in page([row], {})


# The committed ledger


@pytest.fixture(scope="module")
def committed() -> list[Row]:
    return judged()


@pytest.fixture(scope="module")
def html(committed) -> str:
    return page(committed, {path.stem: title(path) for path in chapters()})


def test_the_committed_page_has_every_claim_with_its_result(committed, html):
    text = Balanced(html).text
    assert len(committed) == len(load_claims()) >= 20
    for row in committed:
        assert row.claim.claim in text, row.claim.id
        if row.claim.record and row.found:
            assert points(judge(row.claim, record_of(row.claim))).replace("-", "−") in text, row.claim.id


def test_the_committed_page_has_each_anchor_once_and_leads_to_chapters_that_exist(committed, html):
    found = Balanced(html)
    assert len(set(found.anchors)) == len(found.anchors)
    assert {row.claim.id for row in committed} <= set(found.anchors)
    inside = [link[1:] for link in found.links if link.startswith("#")]
    assert inside and set(inside) <= set(found.anchors)
    assert {link.removeprefix("../").removesuffix(".html") for link in found.links if not link.startswith("#")} <= {
        path.stem for path in chapters()
    }
    assert "book/reference/ledger" in toc_documents()


def test_blocks_of_html_hold_no_blank_line_and_no_indentation(html):
    """Markdown would end the block at a blank line, and make code of what is indented."""
    for line in html.splitlines():
        assert not line.startswith((" ", "\t"))
        if line.startswith("<"):
            Balanced(line)  # every block is one line, and whole


def test_verdicts_are_told_apart_without_colour():
    signs = [sign for sign, _ in ledger.SIGNS.values()]
    assert len(set(signs)) == len(signs)
    assert set(ledger.SIGNS) == set(ledger.MEANINGS)


def test_groups_of_the_ledger_are_headings(committed, html):
    headings = re.findall(r"^### (.+)$", html, re.MULTILINE)
    assert headings == [group.capitalize() for group in GROUPS if any(row.claim.group == group for row in committed)]


# Rules in words

CLEAN = {"scheme": "fusemix", "items": 1000, "train_captions": 1}
BIG = {"scheme": "fusemix", "items": 500, "batch_size": 1024, "steps": 75}
SOUNDS = {"data": "audio-text", "scheme": "fusemix", "items": 500, "audio": "lite-audio-a+lite-audio-b"}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"arm": MIXED, "other": PLAIN, "margin": 1}, "FuseMix minus no mixing (500 scenes)"),
        (
            {"arm": MIXED, "other": PLAIN | {"items": 8000}, "share": 90},
            "FuseMix, 500 scenes as a share of no mixing, 8,000 scenes",
        ),
        ({"arm": AGAIN, "other": PLAIN, "within": 1}, "no mixing, 500 scenes, minus the same on other seeds"),
        (
            {"arm": BIG, "other": MIXED, "margin": 1},
            "batch 1,024, 75 steps minus usual batch, tuned steps (FuseMix, 500 scenes)",
        ),
        (
            {"arm": CLEAN, "other": CLEAN | {"noise": 0.5}, "margin": 1},
            "careful captions minus 50% of captions as on the web (FuseMix, 1,000 scenes, captions an item in training: 1)",
        ),
        (
            {"arm": SOUNDS, "other": SOUNDS | {"audio": "lite-audio-a"}, "margin": 1},
            "sounds: audio-a + audio-b minus audio-a (FuseMix, 500 scenes)",
        ),
        (
            {"arm": MIXED | {"data": "flickr8k"}, "other": PLAIN | {"data": "flickr8k"}, "margin": 1},
            "Flickr8K: FuseMix minus no mixing (500 photos)",
        ),
        (
            {"arm": MIXED | {"pick": "kdpp-y-centred"}, "other": MIXED | {"pick": "uniform"}, "margin": 1},
            "picked by k-DPP on captions, centred minus picked at random (FuseMix, 500 scenes)",
        ),
        (
            {"arm": MIXED | {"null": "shuffled"}, "level": "chance", "margin": 1},
            "FuseMix, 500 scenes, shuffled pairs, minus blind guessing",
        ),
        ({"arm": MIXED, "level": 50, "above": 1}, "FuseMix, 500 scenes, minus 50 %"),
        (
            {
                "change": "shrinks",
                "before": {"arm": MIXED, "other": PLAIN},
                "after": {"arm": MIXED | {"dropout": 0.6}, "other": PLAIN | {"dropout": 0.6}},
                "margin": 1,
            },
            "by how much the lead shrinks from “FuseMix minus no mixing (500 scenes)” to “FuseMix minus no mixing (500 scenes, "
            "dropout 0.6)”",
        ),
        (
            {"trend": "rises", "arms": [MIXED, MIXED | {"items": 2000}], "over": "items", "margin": 1},
            "by how much FuseMix rises with each doubling of scenes, 500 to 2,000",
        ),
        (
            {
                "trend": "falls",
                "arms": [MIXED | {"batch_size": b} for b in (64, 256)],
                "others": [PLAIN | {"batch_size": b} for b in (64, 256)],
                "over": "batch_size",
                "margin": 1,
            },
            "by how much FuseMix minus no mixing (500 scenes) falls with each doubling of batch, 64 to 256",
        ),
    ],
)
def test_what_a_rule_measures_in_words(rule, words):
    null = {
        key: rule[key] for key in ("arm", "other", "before", "after") if key in rule
    } or {"order": "scrambled"}  # fmt: skip
    assert measured_in_words(replace(TOY, rule={"metric": T2I, **rule}, null=null)) == words


def test_what_a_rule_asks_for_in_words():
    assert asked_in_words(TOY) == (
        "reproduced if the interval lies above 0 and the mean is at least 0.5 points; "
        "direction only if the interval lies above 0, but the mean is smaller"
    )
    assert asked_in_words(LIKE) == "reproduced if the whole interval lies within 3 points of 0"
    assert asked_in_words(replace(LIKE, rule=LIKE.rule | {"within": 1})).endswith("within 1 point of 0")
    assert asked_in_words(replace(TOY, rule=TOY.rule | {"metric": [T2I, I2T]})).count("at each of the metrics") == 1
    assert asked_in_words(SUM) == "reproduced if it comes to 5.1, give or take 1 %"
    assert null_in_words(TOY) == "no mixing, 500 scenes, minus the same on other seeds"
    assert null_in_words(replace(TOY, null={"arm": PLAIN, "other": PLAIN})) == "no mixing, 500 scenes, minus itself"
    assert null_in_words(SUM) == "none: there is no luck in arithmetic"


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("image_to_text@1", "R@1 from image to text"),
        ("even_text_to_image@10", "R@10 from text to image (even test)"),
        ("val_mean", "val mean"),
    ],
)
def test_a_metric_in_words(metric, words):
    assert metric_in_words(metric) == words


def test_no_committed_rule_has_words_that_nobody_reads():
    """Made words have no bare key, no "None", nothing empty around a minus."""
    for claim in load_claims():
        if claim.rule:
            for text in (measured_in_words(claim), null_in_words(claim), asked_in_words(claim)):
                assert not re.search(r"_|None|True|\{|\(\)|^\s*minus|minus\s*\(|  ", text), (claim.id, text)
