"""What an audit finds, and that it finds nothing where there is nothing."""

import csv

import numpy as np
import pytest
import torch

from fusemix_lite import LatentPairs, audit, audits, metrics, read_pairs

RNG = np.random.default_rng(0)


def dataset(folder, rows):
    """Rows of (name, content or None for no file, caption, part)."""
    for name, content, _, _ in rows:
        if content is not None:
            (folder / name).write_bytes(content)
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("image", "text", "split"), *((n, text, part) for n, _, text, part in rows)])
    return read_pairs(folder)


def clean(n=8):
    return [(f"{i}.png", b"%d" % i, f"caption {i}", "train" if i < n - 3 else "test") for i in range(n)]


def kinds(findings):
    return {finding.kind: (finding.count, finding.example) for finding in findings}


def pairs(x, name):
    return LatentPairs(x, x, item_ids=[f"{name}-{i}" for i in range(len(x))])


def test_nothing_is_found_where_nothing_is_wrong(tmp_path):
    parts = {name: pairs(RNG.normal(size=(n, 32)) + 5, name) for name, n in {"train": 50, "test": 20}.items()}
    assert audit(dataset(tmp_path, clean()), parts) == []
    assert audit(None, parts) == audit(None) == []


def test_files_and_captions_that_are_lacking(tmp_path):
    rows = [*clean(), ("gone.png", None, "a dog", "train"), ("mute.png", b"m", " ", "train"), ("0.png", b"0", "", "train")]
    rows += [("hollow.png", b"", "hollow", "train"), ("void.png", b"", "void", "train")]  # empty ones are broken, not equal
    assert kinds(audit(dataset(tmp_path, rows))) == {
        "missing files": (1, "gone.png"),
        "empty captions": (2, "mute.png"),
        "items without a caption": (1, "mute.png"),
    }


def test_files_that_cannot_be_looked_at_stop_no_audit(tmp_path, monkeypatch):
    rows = [*clean(), ("locked.png", b"0", "a dog", "train"), ("x" * 300 + ".png", None, "a cat", "train")]
    true = audits.sha256

    def hashed(path):
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied")
        return true(path)

    monkeypatch.setattr(audits, "sha256", hashed)
    found = kinds(audit(dataset(tmp_path, rows)))
    assert found == {"missing files": (1, "x" * 300 + ".png"), "unreadable files": (1, "locked.png")}


def test_equal_files_and_whether_they_leak(tmp_path):
    rows = clean() + [("copy.png", b"0", "a copy", "train"), ("third.png", b"0", "a third", "train")]
    assert kinds(audit(dataset(tmp_path, rows))) == {"identical files": (2, "0.png and copy.png")}
    rows += [("leak.png", b"1", "a leak", "test"), ("other.png", b"9", "same size, other content", "test")]
    assert kinds(audit(dataset(tmp_path, rows))) == {
        "identical files": (3, "0.png and copy.png"),
        "identical files in different parts": (2, "1.png in train and leak.png in test"),
    }


def test_equal_captions_and_whether_they_leak(tmp_path):
    rows = [*clean(), ("8.png", b"8", "Caption  1", "train"), ("1.png", b"1", "caption 1", "train")]
    assert kinds(audit(dataset(tmp_path, rows))) == {"captions of several items": (1, '"caption 1" of 1.png and 8.png')}
    rows.append(("9.png", b"9", "CAPTION 1", "test"))
    found = kinds(audit(dataset(tmp_path, rows)))
    assert found["captions in different parts"] == (1, '"caption 1" of 1.png in train and 9.png in test')
    assert found["captions of several items"][0] == 1 and len(found) == 2


def test_the_parts_that_are_given_count_more_than_the_column(tmp_path):
    rows = [*clean(), ("copy.png", b"0", "a copy", "train")]
    x = np.eye(9)
    ids = [row[0] for row in rows]
    parts = {
        "train": LatentPairs(x[:8], x[:8], item_ids=ids[:8]),
        "test": LatentPairs(x[8:], x[8:], item_ids=ids[8:]),
    }
    assert kinds(audit(dataset(tmp_path, rows), parts))["identical files in different parts"] == (
        2,
        "0.png in train and copy.png in test",
    )


@pytest.mark.parametrize("scores", [metrics.TILE_SCORES, 100, 1])
def test_near_duplicates_across_parts(monkeypatch, scores):
    monkeypatch.setattr(metrics, "TILE_SCORES", scores)  # tiles of all, of two and of one
    train, test = RNG.normal(size=(50, 32)) + 5, RNG.normal(size=(7, 32)) + 5
    test[2] = train[10] + 0.01
    test[5] = train[4] * 1.001
    test[6] = train[4] + RNG.normal(size=32)  # alike, but another
    parts = {"test": pairs(test, "test"), "train": pairs(train, "train")}  # train is the one that is known, in any order
    (found,) = audit(None, parts)
    assert found.kind == "near-duplicates in different parts" and found.count == 2
    assert found.example.startswith("test-2 in test, train-10 in train, cosine 0.99") or "1.000" in found.example
    assert found.advice.startswith("2 of 7 items of test have such a twin in train")
    assert "2 of 7" in str(found) and "\n" not in str(found)
    named = LatentPairs(parts["test"].x, parts["test"].y)
    assert "row 2 in test" in audit(None, {"train": parts["train"], "test": named})[0].example


def test_raw_latents_that_all_look_alike_are_no_duplicates():
    """Pooled features share a large mean: their raw cosines are near 1, whatever they show."""
    train, test = (torch.randn(40, 16, generator=torch.Generator().manual_seed(seed)) + 100 for seed in (0, 1))
    raw = torch.nn.functional.cosine_similarity(test[:1], train)
    assert raw.min() > audits.NEAR
    assert audit(None, {"train": pairs(train, "train"), "test": pairs(test, "test")}) == []


def test_every_two_parts_are_compared():
    x = RNG.normal(size=(30, 16))
    parts = {"val": pairs(x[:10], "val"), "train": pairs(x[9:20], "train"), "test": pairs(x[[3, 25, 26]], "test")}
    assert [finding.advice.split(":")[0] for finding in audit(None, parts)] == [
        "1 of 10 items of val have such a twin in train",
        "1 of 3 items of test have such a twin in val",
    ]
