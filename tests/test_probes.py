"""Linear probes: they find what is there, and only that."""

import numpy as np

from fusemix_lite import SoundingScenes
from fusemix_lite.probes import factor_table, linear_probe


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
    assert set(table) == set(scenes[0].factors())
    assert all(0 <= row[key] <= 100 for row in table.values() for key in ("accuracy", "chance"))
