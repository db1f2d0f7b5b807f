"""What an arm learns from and is judged on."""

import pytest
import torch

from fusemix_lite import SoundingScenes, experiments, profile
from fusemix_lite.arms import EXPERIMENTS, plan
from fusemix_lite.experiments import pairs_of, run, source_of, training_pairs

SMOKE = profile("smoke", device="cpu")
WEB = {"scheme": "fusemix", "items": 60, "train_captions": 1, "noise": 1.0}


def rows_of(pairs):
    return {tuple(y.tolist()) for y in pairs.y}


def test_only_training_captions_are_degraded_or_fewer():
    sources = {split: source_of(WEB, SMOKE, split) for split in ("train", "val", "test")}
    assert [(s.captions, s.noise) for s in sources.values()] == [(1, 1.0), (5, 0.0), (5, 0.0)]


def test_clean_items_are_the_first_of_the_same_subset():
    clean, web = (training_pairs(SMOKE, WEB | more, seed=3) for more in ({"noise": 0.0}, {}))
    mixture = training_pairs(SMOKE, WEB | {"clean": 20}, seed=3)
    assert mixture.item_ids[:20] == clean.item_ids[:20] == web.item_ids[:20] and len(set(mixture.item_ids)) == 60
    told = [tuple(y.tolist()) for y in mixture.y]
    assert set(told[:20]) <= rows_of(clean) and not set(told[:20]) & rows_of(web) and set(told[20:]) <= rows_of(web)
    assert torch.equal(training_pairs(SMOKE, WEB | {"clean": 60}, seed=3).y, clean.y)


def test_picks_come_from_the_seeds_pool():
    arm = {"scheme": "fusemix", "items": 30, "pool": 80, "pick": "kdpp-x"}
    for seed in (0, 1):
        pool = pairs_of(SMOKE, "train", source_of(arm, SMOKE, "train")).subset(80, seed)
        picked = training_pairs(SMOKE, arm, seed)
        assert picked.n_items == 30 and set(picked.item_ids) <= set(pool.item_ids)
    assert picked.item_ids != training_pairs(SMOKE, arm | {"pick": "uniform"}, 1).item_ids


def test_a_skewed_arm_is_judged_on_even_scenes_too():
    arm = {"scheme": "fusemix", "items": 100, "pool": 120, "pick": "uniform"}
    skewed, even = (run(SMOKE, arm | more, 0.2, 5, 0, True) for more in ({"skew": 1.0}, {}))
    assert {key for key in skewed if key.startswith("even_")} == {f"even_{key}" for key in even if "@" in key}
    assert skewed["even_image_to_text@10"] != skewed["image_to_text@10"]
    kinds = [[t.kind for i in range(100) for t in SoundingScenes("image-text", "test", 100, skew=skew).scene(i).things]
             for skew in (0.0, 1.0)]  # fmt: skip
    most = [max(map(which.count, which)) / len(which) for which in kinds]
    assert most[1] > 1.5 * most[0]


def test_options_of_an_arm_reach_fit(monkeypatch):
    seen, fit = {}, __import__("fusemix_lite").fit
    spy = lambda *pairs, **options: (seen.update(options), fit(*pairs, **options))[1]  # noqa: E731
    monkeypatch.setattr("fusemix_lite.training.fit", spy)
    arm = {"scheme": "none", "items": 100, "depth": 0, "temperature": 0.05, "alpha": 2.0}
    numbers = run(SMOKE, arm, 0.2, 5, 0, False)
    assert (seen["depth"], seen["temperature"], seen["alpha"], seen["batch_size"]) == (0, 0.05, 2.0, SMOKE.batch_size)
    assert numbers["temperature"] == 0.05 and not any("@" in key for key in numbers)


def test_the_control_of_a_concatenation_keeps_the_first_encoder():
    arm = {"scheme": "none", "items": 100, "image": "+".join(SMOKE.image_encoders), "standardize": True}
    one = pairs_of(SMOKE, "val", source_of({"scheme": "none", "items": 100}, SMOKE, "val"))
    both = pairs_of(SMOKE, "val", source_of(arm, SMOKE, "val"))
    control = experiments._as_wanted(SMOKE, arm | {"null": "shuffled-b"}, "val", both, 0)
    width = one.x.shape[1]
    assert torch.equal(control.x[:, :width], one.x) and not (control.x[:, width:] == both.x[:, width:]).all(1).any()


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["lite", "smoke"])
def test_arms_are_told_apart_and_fit_their_scale(name, scale):
    p, arms = plan(name, profile(scale))
    assert scale != "lite" or len({str(sorted(arm.items())) for arm in arms}) == len(arms)
    assert all(1 < arm.get("items", 2) <= arm.get("pool", p.train_items) <= p.train_items for arm in arms)


def test_what_an_experiment_lacks_is_named_with_its_remedy(monkeypatch):
    assert experiments.lacks("fusemix", SMOKE) is None
    monkeypatch.setattr(experiments, "find_latents", lambda name: None)
    assert "flickr8k are not here (--latents" in experiments.lacks("diversity-flickr8k", SMOKE)
    monkeypatch.setattr(experiments, "WEIGHTS", experiments.WEIGHTS / "nowhere")
    assert "pretrain_generator lite-generator" in experiments.lacks("generation", SMOKE)
