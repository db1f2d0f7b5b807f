"""Similarity of latents: naive oracles, invariances, chance, and breaks that the oracles catch."""

from itertools import permutations

import numpy as np
import pytest
import torch
from test_pairs import toy_pairs

from fusemix_lite import FuseMixLiteError, LatentPairs, similarity
from fusemix_lite.similarity import cca_recall, cka, mutual_knn, rank_correlation, regret, sides

SCORES = {
    "cka": cka,
    "cka biased": lambda x, y: cka(x, y, debiased=False),
    "mutual_knn": lambda x, y: mutual_knn(x, y, k=4),
    "cca_recall": lambda x, y: cca_recall(x, y, k=3),
}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n=60, dx=5, dy=7, amount=1.0, seed=0):
    """Two views of one hidden thing, each with noise of its own."""
    hidden = noise(n, 4, seed=seed)
    return tuple(hidden @ noise(4, d, seed=d) + amount * noise(n, d, seed=seed + d + 1) for d in (dx, dy))


def naive_cka(x, y):
    """HSIC_1 as the average over all ordered quadruples of different items, a loop."""
    k, m = x @ x.T, y @ y.T

    def hsic(k, m):
        terms = [k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q] for i, j, q, r in permutations(range(len(k)), 4)]
        return sum(terms) / len(terms)

    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5)


def naive_biased_cka(x, y):
    """By centred Gram matrices, as the paper writes it."""
    centre = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    k, m = (centre @ z @ z.T @ centre for z in (x, y))
    return (k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()


def naive_mutual_knn(x, y, k):
    """One item after another, with sets."""

    def neighbours(z, i):
        cosine = {j: float(z[i] @ z[j] / z[i].norm() / z[j].norm()) for j in range(len(z)) if j != i}
        return set(sorted(cosine, key=cosine.get)[-k:])

    return sum(len(neighbours(x, i) & neighbours(y, i)) for i in range(len(x))) / k / len(x)


def check_cka(function):
    for n, seed in ((5, 0), (7, 1), (9, 2)):
        x, y = related(n, 3, 4, 0.3, seed)
        assert function(x + 2, y - 1) == pytest.approx(naive_cka(x, y), abs=1e-9)


def check_mutual_knn(function):
    x, y = related()
    for k in (1, 3, 10, 59):
        assert function(x, y, k) == pytest.approx(naive_mutual_knn(x, y, k))


def test_cka_is_the_average_over_quadruples():
    check_cka(cka)


def test_biased_cka_is_that_of_centred_gram_matrices():
    x, y = related()
    assert cka(x + 3, y, debiased=False) == pytest.approx(float(naive_biased_cka(x, y)))


def test_mutual_neighbours_are_those_of_a_loop(monkeypatch):
    check_mutual_knn(mutual_knn)
    monkeypatch.setattr("fusemix_lite.metrics.TILE_SCORES", 7 * 60)  # uneven last tile
    check_mutual_knn(mutual_knn)


BROKEN_HSIC = {
    "no diagonal correction": lambda x, y: similarity._hsic(x, y),
    "the middle term forgotten": lambda x, y: similarity._hsic(x, y) - (x.square().sum(1) * y.square().sum(1)).sum(),
}


@pytest.mark.parametrize("broken", BROKEN_HSIC.values(), ids=BROKEN_HSIC)
def test_a_broken_hsic_is_caught(monkeypatch, broken):
    monkeypatch.setattr(similarity, "_hsic_debiased", broken)
    with pytest.raises((AssertionError, FuseMixLiteError)):
        check_cka(cka)


BROKEN_NEIGHBOURS = {
    "its own neighbour": lambda z, rows, k: (z[rows] @ z.T).topk(k, dim=1).indices,
    "the farthest": lambda z, rows, k: (z[rows] @ z.T).topk(k, dim=1, largest=False).indices,
}


@pytest.mark.parametrize("broken", BROKEN_NEIGHBOURS.values(), ids=BROKEN_NEIGHBOURS)
def test_broken_neighbours_are_caught(monkeypatch, broken):
    monkeypatch.setattr(similarity, "_nearest", broken)
    with pytest.raises(AssertionError):
        check_mutual_knn(mutual_knn)


@pytest.mark.parametrize("name", SCORES)
def test_turning_scaling_and_a_common_order_change_nothing(name):
    score, (x, y) = SCORES[name], related()
    turn = torch.linalg.qr(noise(5, 5, seed=3)).Q
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    expected = score(x, y)
    assert score(3 * x @ turn, 0.01 * y) == pytest.approx(expected, abs=1e-9)
    if name != "cca_recall":  # another order is another split in halves
        assert score(x[order], y[order]) == pytest.approx(expected, abs=1e-9)
        assert score(y, x) == pytest.approx(expected, abs=1e-9)
    assert score(x[order], y) < expected  # but the pairing matters


def test_a_space_is_like_itself():
    x, _ = related()
    assert cka(x, 2 * x) == pytest.approx(1) == cka(x, x, debiased=False)
    assert mutual_knn(x, x) == 1
    assert cca_recall(x, x, ridge=1e-6) == 100


def test_chance():
    """Unrelated spaces: debiased CKA and neighbours are at chance, the biased CKA is not, the less the wider they are."""
    draws = [(noise(60, 40, seed=s), noise(60, 30, seed=100 + s)) for s in range(40)]
    mean = {name: sum(score(x, y) for x, y in draws) / len(draws) for name, score in SCORES.items()}
    assert abs(mean["cka"]) < 0.02 and mean["cka biased"] > 0.3
    assert mean["mutual_knn"] == pytest.approx(4 / 59, rel=0.1)
    assert mean["cca_recall"] == pytest.approx(100 * 3 / 30, rel=0.2)


def test_more_noise_less_alike():
    for name, score in SCORES.items():
        values = [score(*related(200, amount=amount)) for amount in (0.1, 1.0, 5.0)]
        assert values == sorted(values, reverse=True) and values[0] > values[2] + 0.05, name


def test_cca_finds_a_linear_relation_that_cosine_cannot():
    x = noise(300, 6)
    y = x @ noise(6, 9, seed=1) + 0.05 * noise(300, 9, seed=2) + 4
    assert cca_recall(x, y, k=1, ridge=1e-4) > 95
    assert cca_recall(x, y[torch.randperm(300)], k=1) < 5


def test_sides_are_the_means_of_captions():
    pairs = LatentPairs(torch.eye(3) * 2, torch.arange(8.0).view(4, 2), [0, 2, 2, 0])
    x, y = sides(pairs, standardize=False)
    assert x.tolist() == [[2, 0, 0], [0, 0, 2]] and y.tolist() == [[3, 4], [3, 4]]  # item 1 has no caption
    x, y = sides(toy_pairs(200))
    for z in (x, y):
        torch.testing.assert_close(z.mean(0), torch.zeros(z.shape[1], dtype=torch.float64))
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(z.shape[1], dtype=torch.float64))


def test_what_cannot_be_compared_is_refused():
    x, y = related()
    cases = [
        (lambda: cka(x[:5], y), r"x \(5, 5\) and y \(60, 7\) should be"),
        (lambda: cka(x[0], y[0]), "should be"),
        (lambda: cka(x[:3], y[:3]), "3 items are too few, 4 are the least"),
        (lambda: cka(torch.ones(9, 2), y[:9]), "does not vary"),
        (lambda: mutual_knn(x, y, k=60), r"k = 60 neighbours among 59 other items"),
        (lambda: mutual_knn(x, y, k=0), "k = 0"),
        (lambda: cca_recall(x[:20], y[:20]), "20 items are too few"),
        (lambda: cka(x / 0, y), "x holds NaN or infinity"),
        (lambda: regret([1, 2], [1, 2, 3]), "one shape"),
        (lambda: regret([1, np.nan], [1, 2]), "finite"),
        (lambda: rank_correlation([1, 2], [1, 2]), r"tables \(I, T\) that vary"),
        (lambda: rank_correlation([[1, 1]], [[1, 2]]), r"tables \(I, T\) that vary"),
    ]
    for call, message in cases:
        with pytest.raises(FuseMixLiteError, match=message):
            call()


def test_regret_by_hand():
    assert regret([[0.1, 0.9], [0.3, 0.2]], [[10, 40], [50, 20]]) == (1, 10, 20)
    assert regret([0.5, 0.5], [1, 3]) == (0, 2, 1)  # a tie: the first
    assert regret([3, 2, 1], [9, 8, 7]).lost == 0


def test_rank_correlation_is_spearmans_and_its_interval_knows_that_encoders_are_shared():
    outcomes = np.add.outer(np.arange(5.0), [0, 10, 20, 30])
    assert rank_correlation(np.exp(outcomes / 9), outcomes) == pytest.approx((1, 1, 1))
    assert rank_correlation(-outcomes, outcomes).mean == pytest.approx(-1)
    rng = np.random.default_rng(0)
    scores = outcomes + rng.normal(scale=12, size=outcomes.shape)
    found, listed = rank_correlation(scores, outcomes), rank_correlation(*(t.reshape(-1, 1) for t in (scores, outcomes)))
    a, b = (np.argsort(np.argsort(t.ravel())) for t in (scores, outcomes))
    assert found.mean == listed.mean == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found.low < found.mean < found.high and found == rank_correlation(scores, outcomes)
    assert found.high - found.low > listed.high - listed.low  # 5 and 4 encoders are fewer than 20 pairs


def test_the_interval_covers_nothing_where_nothing_is():
    """Rank correlation of unrelated tables: about 95 of 100 intervals hold 0, never far fewer."""
    rng = np.random.default_rng(1)
    tables = [(rng.normal(size=(12, 10)), rng.normal(size=(12, 10))) for _ in range(100)]
    held = sum(low <= 0 <= high for _, low, high in (rank_correlation(*pair, resamples=200) for pair in tables))
    assert held >= 88
