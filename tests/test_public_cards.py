"""Cards of the public data sets: they say what the records say, and grow stale with them."""

from dataclasses import replace

import pytest

from fusemix_lite import cards, public_sets
from fusemix_lite.public_cards import public_card
from fusemix_lite.public_sets import DATASETS


@pytest.mark.parametrize("name", DATASETS)
def test_a_card_says_what_the_record_knows(name):
    record, card = DATASETS[name], " ".join(public_card(name).split())
    facts = [record.title, record.about, record.captions, record.licence, record.size, record.source, record.page]
    facts += [layout.words for layout in record.layouts] + list(record.overlaps) + list(record.splits.values())
    for fact in facts:
        assert " ".join(fact.split()) in card
    for remote in record.remotes:
        row = next(line for line in public_card(name).splitlines() if line.startswith(f"| [{remote.name}]({remote.url})"))
        assert (remote.checksum is None) == row.endswith("| none |") and ("not stated" in row) == (remote.bytes is None)
    assert (f"fusemix-lite data {name} FOLDER" in card) == bool(record.remotes)
    assert ("**By hand**" in card) == bool(record.by_hand)


@pytest.mark.parametrize("name", DATASETS)
def test_a_changed_record_makes_its_card_stale(name, monkeypatch):
    committed = (cards.CARDS / f"{name}.md").read_text()
    assert cards.render()[f"{name}.md"] == committed, "run `python -m fusemix_lite.cards`"
    monkeypatch.setitem(public_sets.DATASETS, name, replace(DATASETS[name], licence="another licence"))
    assert public_card(name) != committed


def test_no_card_is_wider_than_a_page():
    for name in DATASETS:
        text = [line for line in public_card(name).splitlines() if not line.startswith("|")]
        assert max(map(len, text)) <= 128
