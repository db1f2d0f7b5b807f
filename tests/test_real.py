"""Real latents: their form, their reduction, their hash, and what is said where they are not there."""

import json
from datetime import date

import pytest
import torch

from fusemix_lite import FuseMixLiteError, LatentPairs, experiments, profile, real
from fusemix_lite.records import Record, weights_digest


def pack(seed: int = 0, captions: int = 2, dims: tuple[int, int] = (12, 9), names=("image", "text")) -> dict:
    """Parts of 40 / 10 / 10 items whose two sides see the same three factors."""
    g = torch.Generator().manual_seed(seed)
    parts = {}
    to_x, to_y = torch.randn(3, dims[0], generator=g), torch.randn(3, dims[1], generator=g)
    for part, n in {"train": 40, "val": 10, "test": 10}.items():
        owner = torch.arange(n).repeat_interleave(captions)
        factors = torch.randn(n, 3, generator=g)
        x = factors @ to_x + 0.1 * torch.randn(n, dims[0], generator=g)
        y = factors[owner] @ to_y + 0.1 * torch.randn(len(owner), dims[1], generator=g)
        parts[part] = LatentPairs(x, y, owner, names, [f"{part} item {i}" for i in range(n)])
    return parts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with both sets, which the experiments now take."""
    real.write_real(pack(), tmp_path, "flickr8k")
    real.write_real(pack(1, 1, names=("audio", "text")), tmp_path, "philharmonia")
    monkeypatch.setenv("FUSEMIX_LITE_REAL", str(tmp_path))
    return tmp_path


def sides(pairs):
    return pairs.x.double(), pairs.y.double()


def test_what_is_written_is_read_again(folder):
    loaded = real.load_real("flickr8k", components=None)
    for part, pairs in pack().items():
        assert torch.equal(loaded[part].x, pairs.x) and torch.equal(loaded[part].y, pairs.y)
        assert torch.equal(loaded[part].owner, pairs.owner)
        assert (loaded[part].item_ids, loaded[part].names) == (pairs.item_ids, pairs.names)


def test_what_cannot_be_written(tmp_path):
    parts = pack()
    with pytest.raises(FuseMixLiteError, match="no part 'val'"):
        real.write_real({"train": parts["train"], "test": parts["test"]}, tmp_path, "flickr8k")
    with pytest.raises(FuseMixLiteError, match="audio with text, not image with text"):
        real.write_real(parts, tmp_path, "philharmonia")
    with pytest.raises(FuseMixLiteError, match="there are flickr8k"):
        real.write_real(parts, tmp_path, "coco")
    assert not list(tmp_path.iterdir())


def test_no_folder_no_file_no_set(tmp_path, monkeypatch):
    monkeypatch.delenv("FUSEMIX_LITE_REAL", raising=False)
    assert real.find_latents("flickr8k") is None and real.data_digest("flickr8k") is None
    with pytest.raises(FuseMixLiteError, match="set FUSEMIX_LITE_REAL"):
        real.load_real("flickr8k")
    monkeypatch.setenv("FUSEMIX_LITE_REAL", str(tmp_path))
    assert real.find_latents("philharmonia") is None
    with pytest.raises(FuseMixLiteError, match="no real latents called 'coco'"):
        real.find_latents("coco")


def test_use_latents_names_the_folder_or_nothing(folder, monkeypatch):
    monkeypatch.delenv("FUSEMIX_LITE_REAL")
    real.use_latents(None)
    assert real.find_latents("flickr8k") is None
    real.use_latents(folder)
    assert real.find_latents("flickr8k") == folder.resolve() / "flickr8k.safetensors"


def test_a_set_without_its_split_or_with_another_is_refused(folder):
    split = folder / "flickr8k.json"
    content = json.loads(split.read_text())
    split.write_text(json.dumps({"items": content["items"][1:], "split": content["split"][1:]}))
    with pytest.raises(FuseMixLiteError, match="59 items"):
        real.load_real("flickr8k")
    split.unlink()
    with pytest.raises(FuseMixLiteError, match="flickr8k.json"):
        real.load_real("flickr8k")


def test_reduction_keeps_distances_within_the_kept_space():
    """Orthonormal, unscaled: with as many components as dimensions nothing changes but the coordinates; with fewer, every
    distance is the one along the kept directions."""
    parts = pack()
    whole, few = real.reduced(parts, 100), real.reduced(parts, 4)
    assert few["test"].dims == {"image": 4, "text": 4} and whole["test"].dims == parts["test"].dims
    for part in parts:
        for before, same, kept in zip(sides(parts[part]), sides(whole[part]), sides(few[part]), strict=True):
            assert torch.allclose(torch.cdist(before, before), torch.cdist(same, same), atol=1e-4)
            assert torch.allclose(same[:, :4], kept, atol=1e-4)
            assert (torch.cdist(kept, kept) <= torch.cdist(before, before) + 1e-4).all()


def test_reduction_keeps_the_largest_part_of_the_variance_and_all_else():
    parts = pack()
    few = real.reduced(parts, 4)
    for before, kept in zip(sides(parts["train"]), sides(few["train"]), strict=True):
        variances = torch.linalg.svdvals(before - before.mean(0)) ** 2 / (len(before) - 1)
        assert torch.allclose(kept.var(0), variances[:4], rtol=1e-4)
    for part in parts:
        assert torch.equal(few[part].owner, parts[part].owner)
        assert (few[part].names, few[part].item_ids) == (parts[part].names, parts[part].item_ids)


def check_directions_come_from_training_latents(reduce):
    """Other val and test latents, the same training latents: the same map. Other training latents: another one."""
    parts, others = pack(), pack(7)
    moved = reduce({**others, "train": parts["train"], "probe": parts["val"]}, 4)
    for a, b in zip(sides(moved["probe"]), sides(reduce(parts, 4)["val"]), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    for a, b in zip(sides(reduce({**parts, "train": others["train"]}, 4)["val"]), sides(reduce(parts, 4)["val"]), strict=True):
        assert not torch.allclose(a, b, atol=0.1)


def check_no_pair_is_looked_at(reduce):
    """Partners dealt anew: the same latents on both sides."""
    parts = pack()
    dealt = {part: pairs.shuffled(3) for part, pairs in parts.items()}
    for part in parts:
        for a, b in zip(sides(reduce(parts, 4)[part]), sides(reduce(dealt, 4)[part]), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def leaky(parts, components):
    """The mistake: principal components of everything."""
    joined = {part: p for part, p in parts.items() if part != "train"}
    x, y = (torch.cat([getattr(p, side) for p in parts.values()]) for side in ("x", "y"))
    everything = LatentPairs(x, y, torch.zeros(len(y), dtype=torch.int64))
    found = real.reduced({"train": everything, **joined}, components)
    return {part: found[part] for part in joined} | {"train": real.reduced(parts, components)["train"]}


def paired(parts, components):
    """The other mistake: directions from each item beside its captions."""
    train = parts["train"]
    both = torch.cat([train.x[train.owner], train.y], dim=1)
    basis = torch.linalg.svd(both - both.mean(0), full_matrices=False).Vh[:components].T
    cut = train.x.shape[1]
    return {part: LatentPairs(p.x @ basis[:cut], p.y @ basis[cut:], p.owner, p.names, p.item_ids) for part, p in parts.items()}


def test_directions_come_from_training_latents():
    check_directions_come_from_training_latents(real.reduced)
    with pytest.raises(AssertionError):
        check_directions_come_from_training_latents(leaky)


def test_no_pair_is_looked_at():
    check_no_pair_is_looked_at(real.reduced)
    with pytest.raises(AssertionError):
        check_no_pair_is_looked_at(paired)


def test_reduction_is_deterministic(folder):
    a, b = real.load_real("flickr8k", 4), real.load_real("flickr8k", 4)
    assert all(torch.equal(a[part].x, b[part].x) and torch.equal(a[part].y, b[part].y) for part in a)


def test_the_digest_changes_with_a_byte_of_either_file(folder):
    seen = {real.data_digest("flickr8k")}
    for file in (folder / "flickr8k.safetensors", folder / "flickr8k.json"):
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)
        seen.add(real.data_digest("flickr8k"))
    assert len(seen) == 3 and all(len(digest) == 16 for digest in seen)
    assert real.data_digest("philharmonia") not in seen
    (folder / "flickr8k.json").unlink()
    with pytest.raises(FuseMixLiteError, match="both files"):
        real.data_digest("flickr8k")


def test_share_kept_is_what_the_reduction_keeps():
    train = pack()["train"]
    kept = real.reduced({"train": train}, 4)["train"]
    shares = real.share_kept(train, 4)
    for name, before, after in zip(train.names, sides(train), sides(kept), strict=True):
        assert shares[name] == pytest.approx((after.var(0).sum() / before.var(0).sum()).item(), abs=1e-5)
        assert 0.9 < shares[name] < 1
    assert real.share_kept(train, 100) == pytest.approx({"image": 1, "text": 1})


def test_describe_looks_at_no_test_item(folder):
    told = real.describe("flickr8k")
    assert told["items"] == {"train": 40, "val": 10, "test": 10} and told["captions"]["val"] == 20
    assert told["dims"] == {"image": 12, "text": 9} and told["digest"] == real.data_digest("flickr8k")
    parts = pack()
    real.write_real({**parts, "test": pack(3)["test"]}, folder, "flickr8k")
    again = real.describe("flickr8k")
    assert again.pop("digest") != told.pop("digest") and again == told


def test_facts_are_those_of_the_committed_records():
    for name, known in real.REAL.items():
        told = real.facts(name)
        assert set(told["dims"]) == set(known.names)
        assert Record.load(name).content["data"] == {name: told["digest"]}
    for teller in real.TELLERS:
        weights = real.facts(teller)["weights"]
        assert weights == {name: weights_digest(name) for name in weights}, "run `python -m fusemix_lite.real`"


def test_facts_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "FACTS", tmp_path / "none.json")
    with pytest.raises(FuseMixLiteError, match="python -m fusemix_lite.real"):
        real.facts("flickr8k")


def toy_record() -> Record:
    """A record that no run made: where another scale is asked for, nothing of it is compared."""
    made = {"date": "2001-02-03", "torch": "9.9"}
    content = {"name": "flickr8k", "cells": [], "seeds": [0, 1], "provenance": made, "data": {"flickr8k": "0"}}
    return Record(content | {"config": {"name": "lite"}})


def test_live_rows_say_that_nothing_was_run(monkeypatch):
    monkeypatch.delenv("FUSEMIX_LITE_REAL", raising=False)
    (row,) = real.live_rows(toy_record(), profile("smoke"), [{"data": "flickr8k"}], ("image_to_text@1",))
    assert "nothing was run" in row["state"] and "recorded on 2001-02-03 with torch 9.9, 2 seeds" in row["state"]


def test_live_rows_run_where_the_latents_are(folder):
    p = profile("smoke", photo_sizes=(20, 40), batch_size=8)
    arms = [{"data": "flickr8k", "scheme": scheme, "items": 40} for scheme in ("none", "fusemix")]
    rows = real.live_rows(toy_record(), p, arms, ("image_to_text@1",))
    assert [(row["scheme"], row["seed"]) for row in rows] == [("none", 0), ("none", 1), ("fusemix", 0), ("fusemix", 1)]
    assert all(row["verdict"] == "other scale or data: not compared" and row["image_to_text@1"] >= 0 for row in rows)


def test_a_whole_record_is_made_where_the_latents_are(folder, monkeypatch):
    """live = "full", and a slice of what it made: the same data, the same scale, the same numbers."""
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(folder / "cache"))  # no run of an earlier test
    p = profile("smoke", photo_sizes=(20, 40), real_lengths=(2,), batch_size=8)
    record = experiments.obtain("flickr8k", p, live="full")
    assert record.content["data"] == {"flickr8k": real.data_digest("flickr8k")}
    assert record.stamp.startswith(f"recorded on {date.today()}") and record.stamp.endswith("2 seeds")
    arms = [{"data": "flickr8k", "scheme": scheme, "items": 40} for scheme in ("none", "fusemix")]
    rows = real.live_rows(record, p, arms, ("image_to_text@1",))
    assert [row["verdict"] for row in rows] == ["as recorded"] * 4
    recorded = [value for arm in arms for value in record.values("image_to_text@1", **arm)]
    assert [row["image_to_text@1"] for row in rows] == recorded
