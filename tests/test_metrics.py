"""Recall against loops that count, the bootstrap against what it should cover."""

import pytest
import torch
from test_losses import Largest

from fusemix_lite import FuseMixLiteError, FusionModel, LatentPairs, metrics, modality_gap, recall_at_k, retrieval
from fusemix_lite.metrics import (
    cluster_bootstrap,
    embed_rows,
    guessing,
    linearity,
    ranks,
    ranks_from_scores,
    recall_from_scores,
)


def naive_ranks(u, v, owner):
    """Rank of the best match, one comparison at a time."""
    score = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in v.tolist()] for x in u.tolist()]
    N, M, owner = len(u), len(v), owner.tolist()
    x_to_y, y_to_x = [], []
    for i in range(N):
        own = [score[i][j] for j in range(M) if owner[j] == i]
        if own:
            x_to_y.append(1 + sum(owner[j] != i and score[i][j] >= max(own) for j in range(M)))
    for j in range(M):
        y_to_x.append(1 + sum(i != owner[j] and score[i][j] >= score[owner[j]][j] for i in range(N)))
    return {"x_to_y": x_to_y, "y_to_x": y_to_x}


def check_recall(recall):
    """The oracle check; `test_breaks` feeds it broken recalls."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        N, M = 12, 30
        u, v = (
            torch.randint(-1, 2, (rows, 3), generator=generator).float() for rows in (N, M)
        )  # whole: many exact ties
        owner = torch.randint(N - 3, (M,), generator=generator)  # rows without a y exist, owners are in no order
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            got = recall(u.to(dtype), v.to(dtype), owner, ks=(1, 3, 10))
            for direction, expected in naive_ranks(u, v, owner).items():
                for k in (1, 3, 10):
                    share = 100 * sum(rank <= k for rank in expected) / len(expected)
                    assert got[direction][k] == pytest.approx(share), (seed, direction, k)


def test_recall_by_counting():
    check_recall(recall_at_k)


@pytest.mark.parametrize("scores", [1, 31, 100])
@pytest.mark.parametrize("held", [0, metrics.HELD_BYTES], ids=["two products", "one product"])
def test_tiles_change_nothing(monkeypatch, scores, held):
    monkeypatch.setattr(metrics, "TILE_SCORES", scores)  # uneven last tiles, and one query at a time
    monkeypatch.setattr(metrics, "COUNTED_SCORES", scores)
    monkeypatch.setattr(metrics, "HELD_BYTES", held)
    check_recall(recall_at_k)


def test_recall_from_similarities_that_are_given():
    check_recall(lambda u, v, owner, ks: recall_from_scores(u @ v.T, owner, ks))
    generator = torch.Generator().manual_seed(0)
    scores, owner = torch.randn(7, 20, generator=generator), torch.randint(7, (20,), generator=generator)
    shifted = ranks_from_scores((3 * scores - 50).T.contiguous().T, owner)  # of any kind, in any layout
    assert all(shifted[way].equal(rank) for way, rank in ranks_from_scores(scores, owner).items())


def test_counts_that_fp32_does_not_hold_are_whole_numbers(monkeypatch):
    monkeypatch.setattr(metrics, "FP32_COUNTS", 3)
    check_recall(recall_at_k)
    many = torch.ones(1, 2**24 + 3)
    monkeypatch.undo()
    assert metrics._count(many, torch.tensor(1.0), 1).item() == 2**24 + 3


@pytest.mark.parametrize("held", [0, 600 * 900 * 4])
def test_the_similarities_are_held_only_where_they_fit(monkeypatch, held):
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(600, 4, generator=generator), torch.randn(900, 4, generator=generator)
    monkeypatch.setattr(metrics, "TILE_SCORES", 9000)
    monkeypatch.setattr(metrics, "COUNTED_SCORES", 9000)
    monkeypatch.setattr(metrics, "HELD_BYTES", held)
    with Largest() as seen:
        recall_at_k(u, v, torch.arange(900) % 600)
    assert seen.numbers == (600 * 900 if held else 9000)


def test_limits():
    eye, owner = torch.eye(20), torch.arange(20)
    assert recall_at_k(eye, eye, owner) == {d: {1: 100.0, 5: 100.0, 10: 100.0} for d in ("x_to_y", "y_to_x")}
    same = torch.ones(20, 4)  # a collapsed model ties everywhere: last, not first
    assert ranks(same, same, owner)["y_to_x"].tolist() == [20] * 20
    assert recall_at_k(same, same, owner)["x_to_y"] == {1: 0.0, 5: 0.0, 10: 0.0}


def test_any_caption_is_enough_and_own_captions_do_not_compete():
    u = torch.eye(2)
    v = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.5], [0.6, 0.1]])
    assert ranks(u, v, torch.tensor([0, 0, 1, 1]))["x_to_y"].tolist() == [1, 1]


def test_items_without_rows_distract_but_do_not_ask():
    u, v = torch.tensor([[1.0, 0.0], [0.9, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    found = ranks(u, v, torch.tensor([1]))
    assert found["x_to_y"].tolist() == [1] and found["y_to_x"].tolist() == [3]


def test_invariances():
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(9, 4, generator=generator), torch.randn(9, 4, generator=generator)
    owner, order = torch.arange(9), torch.randperm(9, generator=generator)
    recalls = recall_at_k(u, v, owner, ks=(1, 3))
    swapped = recall_at_k(v, u, owner, ks=(1, 3))
    assert (swapped["x_to_y"], swapped["y_to_x"]) == (recalls["y_to_x"], recalls["x_to_y"])
    assert recall_at_k(u, v[order], owner[order], ks=(1, 3)) == recalls


def test_retrieval_names_its_directions_and_drops_nothing_out():
    generator = torch.Generator().manual_seed(0)
    pairs = LatentPairs(
        torch.randn(30, 6, generator=generator), torch.randn(30, 4, generator=generator), names=("audio", "text")
    )
    model = FusionModel(pairs.dims, 5, depth=1, dropout=0.9).train()
    found = retrieval(model, pairs, ks=(1, 7))
    assert model.training  # as it was
    u, v = model.eval().embed("audio", pairs.x), model.embed("text", pairs.y)
    expected = recall_at_k(u, v, pairs.owner, ks=(1, 7))
    assert found == {"audio_to_text": expected["x_to_y"], "text_to_audio": expected["y_to_x"]}


def test_embedding_in_tiles(monkeypatch):
    model, z = FusionModel({"text": 4}, 5, depth=1), torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    whole = embed_rows(model, "text", z)
    monkeypatch.setattr(metrics, "EMBED_ROWS", 3)
    assert torch.allclose(embed_rows(model, "text", z), whole, atol=1e-6)


def test_bad_input():
    u, v, owner = torch.eye(3), torch.eye(3), torch.arange(3)
    nan = u.clone()
    nan[1, 1] = torch.nan
    for arguments, message in (
        ((u, torch.eye(4), owner), "shape"),
        ((u, v, owner[:2]), "shape"),
        ((u[:0], v, owner), "shape"),
        ((u, v, owner + 1), "spans 1..3"),
        ((u, v, owner - 1), "spans -1..1"),
        ((nan, v, owner), "u hold NaN"),
        ((u, nan, owner), "v hold NaN"),
    ):
        with pytest.raises(FuseMixLiteError, match=message):
            recall_at_k(*arguments)
    scores = torch.eye(3)
    for arguments, message in (
        ((u[0], owner), "should be"),
        ((scores, owner[:2]), "should be"),
        ((scores[:0], owner), "should be"),
        ((scores.long(), owner), "floating point"),
        ((scores, owner + 1), "spans 1..3"),
        ((nan, owner), "scores hold NaN"),
        ((-scores / 0, owner), "scores hold NaN"),
    ):
        with pytest.raises(FuseMixLiteError, match=message):
            recall_from_scores(*arguments)
    for ks in ((), (0, 1)):
        with pytest.raises(FuseMixLiteError, match="ks"):
            recall_at_k(u, v, owner, ks)
        with pytest.raises(FuseMixLiteError, match="ks"):
            recall_from_scores(scores, owner, ks)


def test_bootstrap_resamples_clusters():
    generator = torch.Generator().manual_seed(0)
    images = 100.0 * (torch.rand(200, generator=generator) < 0.4)
    cluster = torch.arange(200).repeat_interleave(5)
    values = images[cluster]  # the five captions of an image agree: 1,000 rows know no more than 200
    before = torch.get_rng_state()
    result = cluster_bootstrap(values, cluster, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    share = images.mean().item()
    assert result.mean == pytest.approx(share)
    half = 1.96 * (share * (100 - share) / 200) ** 0.5
    assert (result.low, result.high) == pytest.approx((share - half, share + half), abs=1.0)
    renamed = cluster_bootstrap(values, 7 * cluster, generator=torch.Generator().manual_seed(1))
    assert renamed == cluster_bootstrap(values, cluster, generator=torch.Generator().manual_seed(1))


def test_bootstrap_wants_a_cluster_for_each_value():
    with pytest.raises(FuseMixLiteError, match="values"):
        cluster_bootstrap(torch.ones(3), torch.arange(2))


def test_modality_gap():
    u = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert modality_gap(u, u) == 0
    assert modality_gap(u[:1], -u[:1]) == 2
    assert modality_gap(u, u[:1]) == pytest.approx(0.5**0.5)


def related(rule, noise: float = 0.0, captions: int = 1):
    """Train and val pairs whose y follow from x by `rule`, up to noise that differs from caption to caption."""
    g = torch.Generator().manual_seed(0)
    parts = []
    for n in (400, 200):
        x = torch.randn(n, 3, generator=g)
        owner = torch.arange(n).repeat_interleave(captions)
        y = rule(x)[owner]
        parts.append(LatentPairs(x, y + noise * y.std() * torch.randn(y.shape, generator=g), owner))
    return parts


def test_linearity_tells_straight_from_curved():
    mix = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    straight = linearity(*related(lambda x: x @ mix + 3))["x_to_y"]
    assert straight.linear > 0.99 and straight.curved <= 1
    bent = linearity(*related(lambda x: (2 * x).sin() @ mix))["x_to_y"]
    assert bent.linear < 0.6 and bent.curved > bent.linear + 0.2
    pure = linearity(*related(lambda x: x.abs() @ mix))["x_to_y"]  # no linear part at all
    assert abs(pure.linear) < 0.1 and pure.curved > 0.6
    nothing = linearity(*related(lambda x: torch.randn(len(x), 5, generator=torch.Generator().manual_seed(len(x)))))
    assert all(abs(share) < 0.1 for found in nothing.values() for share in found)


def test_linearity_averages_captions_and_goes_both_ways():
    mix = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    one, five = (linearity(*related(lambda x: x @ mix, noise=1.0, captions=c)) for c in (1, 5))
    assert one["x_to_y"].linear == pytest.approx(1 / 2, abs=0.1)  # noise as large as what there is to explain
    assert five["x_to_y"].linear == pytest.approx(5 / 6, abs=0.07)
    assert five["y_to_x"].linear > one["y_to_x"].linear + 0.05


def test_guessing_is_what_random_rankings_give():
    owner = torch.tensor([0, 0, 0, 1, 3, 3])  # of four items, one without a caption
    generator, draws = torch.Generator().manual_seed(0), 20_000
    for k in (1, 2, 5, 10):
        hits = []
        for item in (0, 1, 3):
            own = int((owner == item).sum())
            order = torch.rand(draws, len(owner), generator=generator).argsort(1)
            hits.append((order[:, :k] < own).any(1).double().mean())
        found = guessing(owner, 4, k)
        assert found["x_to_y"] == pytest.approx(100 * float(torch.stack(hits).mean()), abs=1)
        assert found["y_to_x"] == pytest.approx(100 * min(k, 4) / 4)
