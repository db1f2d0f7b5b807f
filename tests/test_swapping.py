"""Swapping a tower: the kept one stays what it was, the new one learns its space."""

import pytest
import torch
from test_pairs import toy_pairs

from fusemix_lite import FuseMixLiteError, FusionModel, LatentPairs, fit, profile, retrieval, swapping
from fusemix_lite.arms import plan
from fusemix_lite.metrics import embed_rows
from fusemix_lite.swapping import swap_tower

QUICK = {"steps": 40, "batch_size": 64, "lr": 0.01, "progress": False}


def other_encoder(pairs, side):
    """The same pairs, with one side seen by another encoder: rotated, widened and shifted."""
    z = (pairs.x, pairs.y)[side]
    turn = torch.randn(z.shape[1], z.shape[1] + 3, generator=torch.Generator().manual_seed(5))
    sides = [pairs.x, pairs.y]
    sides[side] = z @ turn + 1
    return LatentPairs(*sides, pairs.owner, pairs.names, pairs.item_ids)


@pytest.fixture(params=["image", "text"])
def swapped(request):
    """(old model, what swap_tower returns, new training and test pairs, the side that was kept)"""
    keep = request.param
    train, test = toy_pairs(200, noise=0.3), toy_pairs(50, noise=0.3, seed=1)
    old = fit(train, shared_dim=16, expansion=2, standardize=True, **{**QUICK, "steps": 120}).model
    side = 1 - train.names.index(keep)
    new_train, new_test = other_encoder(train, side), other_encoder(test, side)
    result = swap_tower(old, new_train, new_test, keep=keep, dropout=0.1, **{**QUICK, "steps": 120})
    return old, result, new_train, new_test, keep


def check_kept_tower(old, new, z, keep):
    assert torch.equal(embed_rows(old, keep, z), embed_rows(new, keep, z))


def test_the_kept_tower_embeds_as_before_and_the_new_one_finds_its_way(swapped, tmp_path):
    old, result, train, test, keep = swapped
    z = test.x if keep == "image" else test.y
    check_kept_tower(old, result.model, z, keep)
    for recall in retrieval(result.model, test).values():
        assert recall[10] > 70  # chance is about 20
    best = max(entry["val_mean"] for entry in result.history if "val_mean" in entry)  # looked at by way of embeddings
    own = retrieval(result.model, test)
    assert sum(sum(recall.values()) for recall in own.values()) / 6 == pytest.approx(best, abs=0.2)
    result.model.save_pretrained(tmp_path)
    assert retrieval(FusionModel.from_pretrained(tmp_path), test) == own


def test_a_kept_tower_that_moves_would_be_caught(swapped):
    old, result, _, test, keep = swapped
    with torch.no_grad():
        result.model.towers[keep].project.bias[0] += 1e-2
    with pytest.raises(AssertionError):
        check_kept_tower(old, result.model, test.x if keep == "image" else test.y, keep)


def test_the_old_model_is_left_as_it_is(swapped):
    old, _, train, _, keep = swapped
    before = {name: value.clone() for name, value in old.state_dict().items()}
    swap_tower(old, train, keep=keep, **{**QUICK, "steps": 2})
    assert all(torch.equal(before[name], value) for name, value in old.state_dict().items())
    assert not old.training


def test_what_does_not_fit_is_refused():
    pairs = toy_pairs()
    old = fit(pairs, shared_dim=4, **{**QUICK, "steps": 1, "batch_size": 8}).model
    with pytest.raises(FuseMixLiteError, match="keep = 'audio'; the model aligns image and text"):
        swap_tower(old, pairs, keep="audio", steps=1)
    with pytest.raises(FuseMixLiteError, match="image latents of shape .* this model takes"):
        swap_tower(old, other_encoder(pairs, 0), keep="image", steps=1, batch_size=8, progress=False)


def test_every_arm_of_the_record_runs(monkeypatch):
    p, arms = plan("swap", profile("smoke"))
    seen = {}
    for arm in arms:
        if "swap" in arm:
            numbers = swapping.run(p, arm, arm["dropout"], arm["steps"], 0, True)
            assert 0 <= numbers["image_to_text@1"] <= 100 and numbers["seed"] == 0
            seen[str(arm)] = numbers["val_mean"]
    assert len(seen) == 4
    calls = []
    monkeypatch.setattr(swapping.experiments, "run", lambda *job: calls.append(job))
    plain = next(arm for arm in arms if "swap" not in arm)
    swapping.run(p, plain, 0.2, 5, 0, True)
    assert calls == [(p, plain, 0.2, 5, 0, True)]


def test_an_untrained_tower_is_kept_as_it_was_initialised(monkeypatch):
    p, arms = plan("swap", profile("smoke"))
    arm = next(arm for arm in arms if arm.get("kept") == "untrained")
    kept = []
    monkeypatch.setattr(swapping, "swap_tower", lambda model, *a, **o: (kept.append(model), swap_tower(model, *a, **o))[1])
    for seed in (0, 0, 1):
        swapping.run(p, arm, arm["dropout"], arm["steps"], seed, False)
    first, again, other = (model.towers["text"].project.weight for model in kept)
    assert torch.equal(first, again) and not torch.equal(first, other)
    blocks = kept[0].towers["text"].blocks[0]
    assert blocks.norm.weight.eq(1).all() and kept[0].temperature.item() == pytest.approx(0.07)
    assert kept[0].standardizers["text"].std.ne(1).any()  # it knows the latents' scale, no more
