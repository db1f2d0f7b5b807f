"""Probes: they find what is there, and only that."""

from collections import Counter

import numpy as np
import pytest

from fusemix_lite import FuseMixLiteError, SoundingScenes
from fusemix_lite.probes import factor_table, knn_probe, linear_probe


def clusters(n, seed, straight=True):
    """Two circles, one around the other, in the first two of five dimensions, or two heaps side by side; their labels."""
    rng = np.random.default_rng(seed)
    label, turn = rng.integers(2, size=n), rng.uniform(0, 2 * np.pi, n)
    z = rng.normal(scale=0.2, size=(n, 5))
    if straight:
        z[:, 0] += label
    else:
        z[:, :2] += np.stack([np.cos(turn), np.sin(turn)], 1) * (1 + label)[:, None]
        z[:, 2] += 3 * label * np.cos(7 * turn)
    return z, label


def naive_knn(train, labels, test, test_labels, k):
    """One item after another: the k largest cosines of standardised latents vote with exp(cosine / 0.07)."""
    keep = [i for i, label in enumerate(labels) if label is not None]
    mean, std = train[keep].mean(0), train[keep].std(0)
    right = asked = 0
    for z, label in zip((test - mean) / std, test_labels, strict=True):
        if label is None:
            continue
        cosines = {}
        for i in keep:
            other = (train[i] - mean) / std
            cosines[i] = z @ other / np.linalg.norm(z) / np.linalg.norm(other)
        votes = Counter()
        for i in sorted(keep, key=cosines.get)[-k:]:
            votes[labels[i]] += np.exp(cosines[i] / 0.07)
        right += max(votes, key=votes.get) == label
        asked += 1
    return 100 * right / asked


@pytest.mark.parametrize("k", [1, 4, 10])
def test_neighbours_vote_as_the_naive_ones_do(k):
    (z, labels), (z_test, test_labels) = clusters(80, 0), clusters(60, 1)
    labels = [None if i % 9 == 0 else str(label) for i, label in enumerate(labels)]
    test_labels = [None if i % 7 == 0 else str(label) for i, label in enumerate(test_labels)]
    accuracy, chance = knn_probe(z, labels, z_test, test_labels, k)
    assert accuracy == pytest.approx(naive_knn(z, labels, z_test, test_labels, k))
    assert accuracy > 80 and 30 < chance < 70
    assert knn_probe(7 * z - 3, labels, 7 * z_test - 3, test_labels, k)[0] == pytest.approx(accuracy)


def test_neighbours_find_nothing_where_nothing_is_and_need_enough_items():
    rng = np.random.default_rng(0)
    blind, _ = knn_probe(
        rng.normal(size=(600, 8)), list(rng.random(600) > 0.5), rng.normal(size=(400, 8)), list(rng.random(400) > 0.5)
    )
    assert 40 < blind < 60
    with pytest.raises(FuseMixLiteError, match="10 neighbours of 12 items, fewer with a label"):
        knn_probe(np.eye(12), ["a"] * 9 + [None] * 3, np.eye(12), ["a"] * 12)


def test_neighbours_see_what_no_line_separates():
    (z, labels), (z_test, test_labels) = clusters(600, 0, straight=False), clusters(400, 1, straight=False)
    by_line, by_neighbours = (probe(z, list(labels), z_test, list(test_labels))[0] for probe in (linear_probe, knn_probe))
    assert by_line < 65 < 75 < by_neighbours


def test_probe_reads_what_a_line_can_read_and_nothing_else():
    rng = np.random.default_rng(0)
    z, z_test = rng.normal(size=(600, 8)), rng.normal(size=(400, 8))
    accuracy, chance = linear_probe(z, list(z[:, 0] > 0), z_test, list(z_test[:, 0] > 0))
    assert accuracy > 95 and 40 < chance < 60
    blind, _ = linear_probe(z, list(rng.random(600) > 0.5), z_test, list(rng.random(400) > 0.5))
    assert 40 < blind < 60


def test_items_without_a_label_are_left_out():
    z = np.eye(6)
    accuracy, _ = linear_probe(z, ["a", "b", None, "a", "b", None], z, ["a", "b", None, "a", "b", None])
    assert accuracy == 100


def test_every_factor_is_probed():
    world = SoundingScenes(size=120)
    scenes = [world.scene(i) for i in range(120)]
    code = np.array([[len(str(value)) for value in scene.factors().values()] for scene in scenes], dtype=float)
    table = factor_table(code[:80], scenes[:80], code[80:], scenes[80:])
    near = factor_table(code[:80], scenes[:80], code[80:], scenes[80:], lambda *args: knn_probe(*args, k=3))
    assert set(near) == set(table) and near != table
    assert set(table) == set(scenes[0].factors())
    assert all(0 <= row[key] <= 100 for row in table.values() for key in ("accuracy", "chance"))
