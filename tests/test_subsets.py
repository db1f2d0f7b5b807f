"""Subsets against dense references and what must not change them; how many noisy pairs buy a clean one."""

import math

import numpy as np
import pytest
import torch

from fusemix_lite import FuseMixLiteError, LatentPairs, subsets
from fusemix_lite.stats import exchange_rate, interval
from fusemix_lite.subsets import (
    METHODS,
    PICKS,
    SIDES,
    cluster_balanced,
    greedy_kdpp,
    item_latents,
    k_centre,
    log_determinant,
    pick,
    redundant,
    squared_kernel,
    uniform,
    vendi_score,
)


def latents(n, d, seed=0, mean=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + mean


def unit(z):
    return z / z.norm(dim=1, keepdim=True)


def dense_kdpp(z, k):
    """Greedy MAP by its definition, on the dense kernel: of all items, the one with the largest Schur complement."""
    L = squared_kernel(unit(z) @ unit(z).T)
    picks = [0]
    while len(picks) < k:
        S = torch.tensor(picks)
        gains = L.diagonal() - (L[:, S] * torch.linalg.solve(L[S][:, S], L[S]).T).sum(1)
        gains[S] = -torch.inf
        picks.append(int(gains.argmax()))
    return picks


def check_kdpp(kdpp):
    """The oracle check; the deliberate breaks below must fail it."""
    for seed, (n, d, k) in enumerate([(40, 3, 8), (60, 8, 30), (50, 2, 5)]):
        z = latents(n, d, seed, mean=0.5)
        assert kdpp(z, k).tolist() == dense_kdpp(z, k), (n, d, k)


@pytest.mark.parametrize("mean", [0.0, 1.5], ids=["no common mean", "cosines of 0.7"])
def test_kdpp_picks_what_a_dense_kernel_picks(mean):
    check_kdpp(greedy_kdpp)
    z = latents(2000, 32, mean=mean)
    assert greedy_kdpp(z, 60).tolist() == dense_kdpp(z, 60)


def eliminated(z, k):
    """Greedy MAP on the dense kernel once more: what is left of L where the picks are eliminated, as Gauss does."""
    L = squared_kernel(unit(z) @ unit(z).T)
    picks = [0]
    while len(picks) < k:
        row = L[picks[-1]].clone()
        L.addr_(row, row / row[picks[-1]], alpha=-1)
        gain = L.diagonal().clone()
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
    return picks


@pytest.mark.parametrize(("block", "items", "k"), [(1, 2000, 20), (7, 300, 60), (subsets.BLOCK, subsets.ITEMS, 150)])
def test_blocks_of_picks_are_those_of_a_dense_kernel(monkeypatch, block, items, k):
    """Blocks of one and of many, items that catch up in uneven tiles, and real latents' kind of spectrum."""
    monkeypatch.setattr(subsets, "BLOCK", block)
    monkeypatch.setattr(subsets, "ITEMS", items)
    z = latents(2000, 48, mean=0.3) / torch.arange(1, 49) ** 0.5
    seen = []
    picks = greedy_kdpp(z, k, watch=seen.append)
    assert picks.tolist() == eliminated(z, k)
    assert seen[-1] == k and seen == sorted(set(seen)) and max(np.diff(seen)) <= block
    assert len(seen) < k / 2 or block == 1  # blocks are of more than one pick


def test_of_equal_gains_the_first_item_is_picked():
    axes = torch.eye(40, dtype=torch.float64)
    picks = greedy_kdpp(torch.cat([axes, axes, axes]), 40, kernel=lambda cosine: cosine)
    assert picks.tolist() == list(range(40))  # all gain the same; none of the copies


def kdpp_with(monkeypatch, part, broken):
    monkeypatch.setattr(subsets, part, broken)
    return greedy_kdpp


def trusts_its_candidates(gain, count):
    return true_candidates(gain, count)[0], -math.inf


def catches_up_without_the_past(block, triangle, z, kernel, factor, gain, t):
    row = kernel(z[block] @ z.T)
    factor[t : t + len(block)] = torch.linalg.solve_triangular(triangle.T, row, upper=False)
    gain -= (factor[t : t + len(block)] ** 2).sum(0)
    gain[block] = -torch.inf


def catches_up_in_part(block, triangle, z, kernel, factor, gain, t):
    true_catch_up(block[:1], triangle[:1, :1], z, kernel, factor, gain, t)
    gain[block] = -torch.inf


true_candidates, true_catch_up = subsets._candidates, subsets._catch_up


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        ("_candidates", trusts_its_candidates),
        ("_catch_up", catches_up_without_the_past),
        ("_catch_up", catches_up_in_part),
        ("_catch_up", lambda block, triangle, z, kernel, factor, gain, t: gain.__setitem__(block, -math.inf)),
    ],
    ids=["trusts its candidates", "without the past", "the first of a block only", "never"],
)
def test_broken_blocks_are_caught(monkeypatch, part, broken):
    with pytest.raises(AssertionError):
        check_kdpp(kdpp_with(monkeypatch, part, broken))


def test_single_precision_picks_the_same_while_gains_are_large():
    z = latents(2000, 64)
    assert greedy_kdpp(z, 200, single=True).equal(greedy_kdpp(z, 200))


def broken_kdpp(kernel=squared_kernel, update=lambda row: row**2, divide=lambda row, gain: row / gain.sqrt()):
    """Greedy MAP written out once more, with a place for each mistake."""

    def kdpp(z, k):
        z, picks, rows = unit(z), [0], []
        gain = kernel(torch.ones(len(z), dtype=z.dtype))
        while True:
            best = picks[-1]
            row = kernel(z @ z[best]) - sum(r * r[best] for r in rows)
            rows.append(divide(row, gain[best]))
            gain = gain - update(rows[-1])
            gain[picks] = -torch.inf
            if len(picks) == k:
                return torch.tensor(picks)
            picks.append(int(gain.argmax()))

    return kdpp


BREAKS = {
    "cosine, not the kernel": broken_kdpp(kernel=lambda cosine: cosine),
    "not squared": broken_kdpp(kernel=lambda cosine: 1 + cosine),
    "gains not updated by squares": broken_kdpp(update=torch.abs),
    "not divided by the root": broken_kdpp(divide=lambda row, gain: row / gain),
    "raw scalar products": lambda z, k: greedy_kdpp(z, k, kernel=lambda c: (1 + 2 * c) ** 2),
    "another start": lambda z, k: greedy_kdpp(z, k, start=1),
    "centred": lambda z, k: greedy_kdpp(z, k, centre=True),
    "farthest point instead": lambda z, k: k_centre(z, k),
}


def test_the_written_out_version_is_right_where_nothing_is_broken():
    check_kdpp(broken_kdpp())


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
def test_broken_kdpps_are_caught(broken):
    with pytest.raises(AssertionError):
        check_kdpp(broken)


def gains(z, picks):
    """What each pick multiplied the determinant by."""
    z = unit(z[picks])
    return torch.linalg.cholesky(squared_kernel(z @ z.T)).diagonal() ** 2


def test_gains_never_increase_and_no_other_item_would_have_gained_more():
    z = latents(300, 6, mean=0.3)
    picks = greedy_kdpp(z, 25)
    found = gains(z, picks)
    assert (found.diff() <= 1e-9).all() and found[0] == pytest.approx(4)
    for t in (1, 5, 24):
        others = [i for i in range(300) if i not in picks[:t].tolist()]
        best = max(gains(z, torch.cat([picks[:t], torch.tensor([i])]))[-1].item() for i in others)
        assert found[t].item() == pytest.approx(best)


def test_kdpp_spans_more_than_chance_and_the_redundant_set_less():
    z = latents(1000, 16, mean=0.5)
    by_lot = [log_determinant(z[uniform(1000, 50, seed=s)]) for s in range(20)]
    assert log_determinant(z[greedy_kdpp(z, 50)]) > max(by_lot) > min(by_lot) > log_determinant(z[redundant(z, 50)])
    assert vendi_score(z[greedy_kdpp(z, 50)]) > vendi_score(z[redundant(z, 50)])


DETERMINISTIC = {"kdpp": greedy_kdpp, "kcentre": k_centre, "redundant": redundant, "clusters": cluster_balanced}


@pytest.mark.parametrize("method", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_every_method_picks_k_different_rows_and_begins_with_those_of_a_smaller_k(method):
    z = latents(200, 12)
    picks = method(z, 60)
    assert picks.dtype == torch.int64 and picks.shape == (60,) and len(picks.unique()) == 60
    assert 0 <= picks.min() and picks.max() < 200
    assert method(z, 17).equal(picks[:17])
    mapped = z.numpy().copy()
    mapped.setflags(write=False)  # as a memory-mapped store is
    assert method(mapped, 60).equal(picks)
    assert sorted(k_centre(z, 200).tolist()) == list(range(200))


@pytest.mark.parametrize("method", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_the_length_of_a_latent_does_not_matter(method):
    z = latents(150, 12)
    lengths = 2.0 ** torch.randint(-3, 4, (150, 1), generator=torch.Generator().manual_seed(1))  # exact: k-means is touchy
    assert method(z * lengths, 40).equal(method(z, 40))


@pytest.mark.parametrize("method", [greedy_kdpp, k_centre])
def test_the_order_of_items_only_renames_the_picks(method):
    z = latents(120, 8)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    start = int((order == 7).nonzero())
    assert order[method(z[order], 30, start=start)].equal(method(z, 30, start=7))


def test_centring_takes_the_common_mean_away():
    z = latents(100, 6)
    z = z - z.mean(0)
    for method in (greedy_kdpp, k_centre, redundant):
        assert method(z + 5, 20, centre=True).equal(method(z, 20))
        assert not method(z + 5, 20).equal(method(z, 20))


def test_k_centre_takes_the_farthest():
    z = latents(80, 3)
    picks = k_centre(z, 12)
    cosine = unit(z) @ unit(z).T
    for t in range(1, 12):
        nearest = cosine[:, picks[:t]].amax(1)
        assert nearest[picks[t]] == nearest.min()


def test_k_centre_covers_to_twice_the_best_radius():
    z = latents(14, 2)
    angle = (unit(z) @ unit(z).T).clamp(-1, 1).arccos()
    radius = lambda chosen: angle[:, list(chosen)].amin(1).max().item()  # noqa: E731
    from itertools import combinations

    best = min(radius(chosen) for chosen in combinations(range(14), 4))
    assert best <= radius(k_centre(z, 4).tolist()) <= 2 * best + 1e-9


def test_clusters_have_equal_shares_until_they_are_empty():
    axes = torch.eye(3, dtype=torch.float64)
    z = torch.cat([axes[i].repeat(n, 1) for i, n in enumerate((100, 20, 5))]) + 0.01 * latents(125, 3)
    kind = torch.tensor([0] * 100 + [1] * 20 + [2] * 5)
    share = lambda k: kind[cluster_balanced(z, k, clusters=3)].bincount(minlength=3).tolist()  # noqa: E731
    assert share(15) == [5, 5, 5] and share(45) == [20, 20, 5] and share(125) == [100, 20, 5]
    assert not cluster_balanced(z, 15, clusters=3, seed=1).equal(cluster_balanced(z, 15, clusters=3, seed=2))


def test_redundant_is_one_neighbourhood():
    z = latents(90, 4)
    z[10] = z[11] = z[12]  # duplicates: the item itself still comes first
    for seed in range(40):
        picks = redundant(z, 9, seed=seed)
        cosine = unit(z) @ unit(z)[picks[0]]
        assert cosine[picks].min() >= cosine[[i for i in range(90) if i not in picks.tolist()]].max() - 1e-12
    firsts = {int(redundant(z, 1, seed=seed)) for seed in range(400)}
    assert {10, 11, 12} <= firsts and len(firsts) > 60


def test_uniform_is_what_pairs_draw():
    pairs = LatentPairs(latents(50, 3), latents(50, 3))
    assert pairs.take(uniform(50, 20, seed=4)).x.equal(pairs.subset(20, seed=4).x)


def test_duplicates_are_never_picked_and_the_message_says_how_many_there_are():
    z = latents(5, 4).repeat(3, 1)
    assert sorted((greedy_kdpp(z, 5) % 5).tolist()) == list(range(5))
    with pytest.raises(FuseMixLiteError, match=r"after 5 picks the largest gain .* ask for k <= 5"):
        greedy_kdpp(z, 6)


def test_there_is_room_for_as_many_as_the_feature_space_has_dimensions():
    z = latents(50, 4)
    greedy_kdpp(z, 14)
    with pytest.raises(FuseMixLiteError, match="after 14 picks"):
        greedy_kdpp(z, 15)
    greedy_kdpp(z, 4, kernel=lambda cosine: cosine)
    with pytest.raises(FuseMixLiteError, match="after 4 picks"):
        greedy_kdpp(z, 5, kernel=lambda cosine: cosine)


@pytest.mark.parametrize("method", DETERMINISTIC.values(), ids=DETERMINISTIC)
@pytest.mark.parametrize(
    ("z", "k", "says"),
    [
        (latents(60, 3), 0, "k = 0: there are 60 rows"),
        (latents(60, 3), 61, "k = 61: there are 60 rows"),
        (torch.zeros(60, 3), 5, "row 0 is zero"),
        (torch.tensor([[1.0, 2.0]] * 59 + [[math.nan, 1.0]]), 5, "row 59 is zero, NaN or infinite"),
        (torch.zeros(60), 5, r"shape \(60,\)"),
        (torch.zeros(0, 3), 1, r"shape \(0, 3\)"),
    ],
)
def test_bad_latents_are_refused(method, z, k, says):
    with pytest.raises(FuseMixLiteError, match=says):
        method(z, k)


def test_bad_options_are_refused():
    z = latents(10, 3)
    for method in (greedy_kdpp, k_centre):
        with pytest.raises(FuseMixLiteError, match="start = 10, the rows are 0..9"):
            method(z, 2, start=10)
    with pytest.raises(FuseMixLiteError, match="50 clusters of 10 rows"):
        cluster_balanced(z, 2)
    with pytest.raises(FuseMixLiteError, match="k = 11: there are 10"):
        uniform(10, 11)


def some_pairs():
    """60 items, one to three rows each, in no order; row lengths vary."""
    owner = torch.cat([torch.arange(60), torch.arange(40), torch.arange(20)])
    owner = owner[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    return LatentPairs(latents(60, 4, 1), latents(120, 5, 2) * (1 + owner[:, None]), owner)


def test_the_text_of_an_item_is_the_mean_of_its_unit_latents():
    pairs = some_pairs()
    z = item_latents(pairs, "y")
    for item in range(60):
        rows = pairs.y[pairs.owner == item].double()
        mean = (rows / rows.norm(dim=1, keepdim=True)).mean(0)
        torch.testing.assert_close(z[item], mean / mean.norm())
    both = item_latents(pairs, "both")
    cosines = [item_latents(pairs, side) @ item_latents(pairs, side).T for side in "xy"]
    torch.testing.assert_close(both @ both.T, (cosines[0] + cosines[1]) / 2)
    centred = unit(pairs.x.double() - pairs.x.double().mean(0))
    torch.testing.assert_close(item_latents(pairs, "x", centre=True), centred)


@pytest.mark.parametrize("name", PICKS)
def test_pick_goes_to_the_method_by_its_name(name):
    pairs = some_pairs()
    picks = pick(name, pairs, 12, seed=5)
    assert pairs.take(picks).n_items == 12
    if name == "uniform":
        return
    method, side = name.split("-")
    options = {"kdpp": {}, "kcentre": {}, "clusters": {"seed": 5, "clusters": 50}, "redundant": {"seed": 5}}
    assert picks.equal(METHODS[method](item_latents(pairs, side), 12, **options[method]))
    centred = pick(f"{name}-centred", pairs, 12, seed=5)
    assert centred.equal(METHODS[method](item_latents(pairs, side, centre=True), 12, **options[method]))


def test_every_method_is_offered_for_every_side():
    assert len(PICKS) == 1 + len(METHODS) * len(SIDES)
    for name in ("kdpp", "kdpp-z", "best-x", "uniform-x", "uniform-centred", ""):
        with pytest.raises(FuseMixLiteError, match="no method"):
            pick(name, some_pairs(), 3)
    with pytest.raises(FuseMixLiteError, match="side = 'z'"):
        item_latents(some_pairs(), "z")
    bare = LatentPairs(latents(3, 2), latents(2, 2), torch.tensor([0, 2]))
    with pytest.raises(FuseMixLiteError, match="item 1 has no row of text"):
        pick("kdpp-y", bare, 2)


def test_vendi_score_counts_directions():
    assert vendi_score(torch.eye(7)) == pytest.approx(7)
    assert vendi_score(torch.eye(3).repeat(5, 1)) == pytest.approx(3)
    assert vendi_score(torch.ones(6, 4)) == pytest.approx(1)
    z = unit(latents(30, 5))
    values = np.linalg.eigvalsh((z @ z.T).numpy() / 30)
    values = values[values > 1e-12]
    assert vendi_score(7 * z) == pytest.approx(np.exp(-(values * np.log(values)).sum()))


def test_log_determinant_by_hand():
    right_angle = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert log_determinant(right_angle) == pytest.approx(math.log(4 * 4 - 1 * 1))
    assert log_determinant(torch.ones(2, 3)) == -math.inf


def test_no_matrix_of_all_pairs_is_ever_made(monkeypatch):
    largest = 0

    def watched(cosine):
        nonlocal largest
        largest = max(largest, cosine.numel())
        return squared_kernel(cosine)

    monkeypatch.setattr(subsets, "BLOCK", 4)
    monkeypatch.setattr(subsets, "ITEMS", 50)
    greedy_kdpp(latents(500, 8), 20, kernel=watched)
    assert 200 <= largest <= 500  # 4 picks at 50 items; or a few candidates among themselves
    assert subsets.MIN_GAIN == 1e-10


SIZES = [250, 500, 1000, 2000, 4000]


def learning_curve(sizes, slope=8.0, worth=1.0):
    """What a straight line on a logarithmic axis reaches, where a pair of this kind is worth so many of the other."""
    return [10 + slope * math.log2(size * worth / 250) for size in sizes]


def test_exchange_rate_of_straight_lines_is_exact():
    curve = [[value, value + 1] for value in learning_curve(SIZES)]
    (reached,) = learning_curve([3000], worth=1 / 3)
    assert exchange_rate(SIZES, curve, 3000, [reached, reached + 1]) == pytest.approx((3, 3, 3))
    ends = [[10.0, 11.0], [14.0, 15.0]]
    assert exchange_rate([100, 400], ends, 400, [12.0, 13.0]).mean == pytest.approx(2)  # half way: 200


def test_exchange_rate_is_a_student_interval_where_only_the_bought_kind_varies():
    """On one straight piece the log rate is linear in the value, so the jackknife is the textbook interval."""
    curve = [[value] * 5 for value in learning_curve([100, 10_000])]
    noise = [0.3, -0.2, 0.5, -0.6, 0.1]
    (reached,) = learning_curve([2000], worth=0.5)
    low, high = (interval([reached + e for e in noise])[i] for i in (1, 2))
    found = exchange_rate([100, 10_000], curve, 2000, [reached + e for e in noise])
    size = lambda value: 250 * 2 ** ((value - 10) / 8)  # noqa: E731
    assert (found.low, found.high) == pytest.approx((2000 / size(high), 2000 / size(low)))


def test_exchange_rate_covers_the_truth():
    """95 % of intervals hold the true rate; seeds shift all arms together and each for itself, on a bent curve."""
    rng = np.random.default_rng(0)
    truth = np.array([5.0, 12, 22, 30, 35])
    reached = np.interp(math.log(1600), np.log(SIZES), truth)
    held = 0
    for _ in range(400):
        shared = rng.normal(0, 1.0, 5)
        curve = truth[:, None] + shared + rng.normal(0, 0.7, (5, 5))
        low, high = exchange_rate(SIZES, curve.tolist(), 4000, (reached + shared + rng.normal(0, 0.7, 5)).tolist())[1:]
        held += low <= 2.5 <= high
    assert 0.92 * 400 <= held <= 0.985 * 400, held


def test_exchange_rate_takes_the_smaller_size_where_a_curve_goes_down():
    curve = [[value, value] for value in (10.0, 20.0, 18.0, 30.0)]
    assert exchange_rate([100, 200, 400, 800], curve, 400, [19.0, 19.0]).mean == pytest.approx(400 / (100 * 2**0.9))


def test_exchange_rate_refuses_what_the_curve_does_not_say():
    curve = [[10.0, 11.0], [20.0, 21.0]]
    for value in (9.0, 22.0):
        with pytest.raises(FuseMixLiteError, match=r"the curve goes from 10\.5 to 20\.5: more sizes"):
            exchange_rate([100, 200], curve, 400, [value, value])
    for sizes, other in (([200, 100], curve), ([100], curve[:1]), ([100, 200], [[1.0], [2.0, 3.0]]), ([0, 1], curve)):
        with pytest.raises(FuseMixLiteError, match="ascending sizes"):
            exchange_rate(sizes, other, 400, [15.0, 15.0])
