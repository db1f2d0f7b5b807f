"""What `fit` promises: batches, selection, schedules, seeds, errors."""

import math
import random

import numpy as np
import pytest
import torch
from test_pairs import toy_pairs

from fusemix_lite import SCHEMES, FuseMixLiteError, FusionModel, LatentPairs, fit, retrieval, training

QUICK = {"steps": 12, "batch_size": 8, "shared_dim": 5, "progress": False}


def states_equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def scripted_scheme(monkeypatch, scheme, rows_per_pair=1):
    scheme.rows_per_pair = rows_per_pair
    monkeypatch.setitem(SCHEMES, "scripted", scheme)


@pytest.fixture
def pairs():
    return toy_pairs()  # 20 items, 100 pairs


@pytest.mark.parametrize("augment", SCHEMES)
def test_learns_to_retrieve(augment):
    train, test = toy_pairs(200, noise=0.3), toy_pairs(50, noise=0.3, seed=1)
    model = fit(train, augment=augment, steps=150, batch_size=64, shared_dim=16, lr=0.01, progress=False).model
    for recall in retrieval(model, test).values():
        assert recall[10] > 75  # chance is about 20


def test_shuffled_pairs_end_at_chance():
    train, test = toy_pairs(200, noise=0.3), toy_pairs(50, noise=0.3, seed=1)
    means = []
    for seed in range(4):
        model = fit(train.shuffled(seed), steps=60, batch_size=64, shared_dim=16, lr=0.01, seed=seed, progress=False).model
        means += [recall[10] for recall in retrieval(model, test).values()]
    assert sum(means) / len(means) < 25  # chance is about 20


@pytest.mark.parametrize("augment", SCHEMES)
def test_batch_size_counts_the_pairs_in_the_loss(monkeypatch, pairs, augment):
    sizes = []
    loss = training.symmetric_infonce
    monkeypatch.setattr(training, "symmetric_infonce", lambda u, v, t, same: (sizes.append((len(u), len(v))), loss(u, v, t))[1])
    fit(pairs, augment=augment, **QUICK)
    assert sizes == [(8, 8)] * 12


def test_rows_are_pairs_and_epochs_are_complete(monkeypatch, pairs):
    seen = []
    rows = {tuple(y.tolist()): row for row, y in enumerate(pairs.y)}

    def spy(zx, zy, alpha, generator, per):
        found = [rows[tuple(y.tolist())] for y in zy]
        assert torch.equal(zx, pairs.x[pairs.owner[found]])  # each y comes with its owner
        assert (alpha, per) == (0.7, "pair")
        seen.extend(found)
        return zx, zy

    scripted_scheme(monkeypatch, spy)
    fit(pairs, augment="scripted", alpha=0.7, per="pair", **QUICK | {"batch_size": 25, "steps": 8})
    assert sorted(seen[:100]) == sorted(seen[100:]) == list(range(100))
    assert seen[:100] != seen[100:]


def test_a_share_of_the_steps_is_not_mixed(monkeypatch, pairs):
    """Where nothing is mixed the loss sees as many pairs, and they are pairs of the data."""
    kept, own = [], {tuple(y.tolist()) for y in pairs.y}

    def mixed(zx, zy, alpha, generator, per):
        kept.append("mixed")
        return zx[: len(zx) // 2], zy[: len(zy) // 2]

    def plain(zx, zy, alpha, generator, per):
        assert len(zy) == QUICK["batch_size"] and {tuple(y.tolist()) for y in zy} <= own
        kept.append("plain")
        return zx, zy

    scripted_scheme(monkeypatch, mixed, rows_per_pair=2)
    monkeypatch.setattr(training, "no_mixing", plain)
    for share, expected in ((0, 0), (1, 100), (0.3, 30)):
        kept.clear()
        fit(pairs, augment="scripted", mix_probability=share, **QUICK | {"steps": 100})
        assert kept.count("mixed") == pytest.approx(expected, abs=0 if share in (0, 1) else 15)


@pytest.mark.parametrize(
    ("augment", "mask"),
    [
        ("fusemix", [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]),  # four pairs: 0+5, 1+5, 0+6, 2+7
        ("none", [[i == j or {i, j} in ({0, 2}, {4, 5}) for j in range(8)] for i in range(8)]),  # 0 twice, 5 twice
    ],
)
def test_masked_negatives_are_those_of_the_same_item(monkeypatch, pairs, augment, mask):
    """Of mixed pairs: those that hold one item at one place."""
    seen, loss, mask = [], training.symmetric_infonce, torch.tensor(mask).bool()

    def spy(u, v, t, same):
        seen.append(same)
        assert loss(u, v, t, same) == loss(u, v, t, mask) != loss(u, v, t)
        return loss(u, v, t, same)

    monkeypatch.setattr(training, "symmetric_infonce", spy)
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    by_item = LatentPairs(pairs.x, pairs.y[:8], torch.tensor([0, 1, 0, 2, 5, 5, 6, 7]))
    fit(by_item, augment=augment, mask_negatives=True, **QUICK | {"steps": 1, "batch_size": len(mask)})
    assert [same.shape for same in seen] == [(8 // len(mask), len(mask))]  # labels, not a matrix


def test_without_masking_every_other_pair_is_a_negative(monkeypatch, pairs):
    seen, loss = [], training.symmetric_infonce
    monkeypatch.setattr(training, "symmetric_infonce", lambda u, v, t, same: (seen.append(same), loss(u, v, t, same))[1])
    fit(pairs, **QUICK)
    assert seen == [None] * 12


def test_half_precision_is_of_products_only(monkeypatch, pairs):
    seen, loss = [], training.symmetric_infonce
    monkeypatch.setattr(
        training, "symmetric_infonce", lambda u, *rest: (seen.append(torch.is_autocast_enabled("cpu")), loss(u, *rest))[1]
    )
    half, full = (fit(pairs, toy_pairs(10, seed=1), precision=precision, **QUICK) for precision in ("bf16", "fp32"))
    assert seen == [True] * 12 + [False] * 12
    assert {tensor.dtype for tensor in half.model.state_dict().values()} == {torch.float32}
    losses = [torch.tensor([entry["loss"] for entry in result.history]) for result in (half, full)]
    assert not torch.equal(*losses) and torch.allclose(*losses, rtol=0.02)
    again = fit(pairs, precision="bf16", **QUICK)
    assert [entry["loss"] for entry in again.history] == losses[0].tolist()


def test_a_compiled_run_learns_the_same(monkeypatch, pairs):
    """With a backend that counts and compiles nothing: no C++ compiler is needed. Every fit gets programs of its own."""
    options = QUICK | {"dropout": 0.0, "standardize": True, "steps": 3}
    made, called, compile_ = [], [], torch.compile

    def counting(graph, inputs):
        made.append(graph)
        return lambda *given: (called.append(len(made)), graph.forward(*given))[1]

    monkeypatch.setattr(torch, "compile", lambda call: compile_(call, backend=counting))
    plain = fit(pairs, **options)
    for count in range(1, 7):  # torch keeps a few programs of a function, and then silently goes on without
        compiled = fit(pairs, compile=True, **options)
        assert (len(made), len(called)) == (2 * count, 6 * count)
    for name, tensor in compiled.model.state_dict().items():
        torch.testing.assert_close(tensor, plain.model.state_dict()[name], rtol=0, atol=1e-5)


def test_what_cannot_be_compiled_is_an_error_in_a_line(monkeypatch, pairs):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nhere")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call: compile_(call, backend=broken))
    with pytest.raises(FuseMixLiteError, match=r"torch.compile failed \(.*no compiler here.*leave compile out"):
        fit(pairs, compile=True, **QUICK)


def test_a_fixed_temperature_is_kept(pairs):
    result = fit(pairs, temperature=0.03, **QUICK)
    assert [entry["temperature"] for entry in result.history] == pytest.approx([0.03] * 12)
    assert len({entry["temperature"] for entry in fit(pairs, **QUICK).history}) > 1


def test_too_few_rows(pairs):
    with pytest.warns(UserWarning, match="takes 160 rows of 100: using 50"):
        fit(pairs, **QUICK | {"batch_size": 80})
    with pytest.raises(FuseMixLiteError, match="3 training pairs"):
        fit(toy_pairs(3, captions=1), **QUICK)


def test_same_seed_same_model_and_the_callers_state_is_untouched(pairs):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first = fit(pairs, seed=1, **QUICK)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # noqa: NPY002
    torch.rand(7)  # whatever the caller's state is
    second = fit(pairs, seed=1, **QUICK)
    assert first.history == second.history and states_equal(first.model, second.model)
    assert first.history != fit(pairs, seed=2, **QUICK).history


def test_the_best_look_on_val_is_returned(monkeypatch, pairs):
    scores, weights = iter([10.0, 30.0, 20.0, 30.0]), []

    def scripted(model, val):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        level = next(scores)
        return {"image_to_text": {1: level, 5: level, 10: level}, "text_to_image": {1: level, 5: level, 10: level}}

    monkeypatch.setattr(training, "retrieval", scripted)
    result = fit(pairs, toy_pairs(seed=1), evals=4, **QUICK)
    assert [entry["step"] for entry in result.history if "val" in entry] == [3, 6, 9, 12]
    assert [entry["val_mean"] for entry in result.history if "val" in entry] == [10, 30, 20, 30]
    assert result.best_step == 6  # the earlier of two equals
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in result.model.state_dict().items())


def test_looking_at_val_does_not_change_the_training(pairs):
    without, looked = fit(pairs, **QUICK), fit(pairs, toy_pairs(seed=1), evals=1, **QUICK)
    assert [entry["loss"] for entry in without.history] == [entry["loss"] for entry in looked.history]
    assert without.best_step == looked.best_step == 12 and states_equal(without.model, looked.model)
    last = looked.history[-1]
    assert last["val"] == retrieval(looked.model, toy_pairs(seed=1))
    assert last["val_mean"] == pytest.approx(np.mean([list(recall.values()) for recall in last["val"].values()]))


def test_history(pairs):
    result = fit(pairs, **QUICK)
    assert [entry["step"] for entry in result.history] == list(range(1, 13))
    assert result.history[0].keys() == {"step", "loss", "temperature", "lr"}
    assert result.history[0]["temperature"] == pytest.approx(0.07)
    assert result.seconds > 0 and not result.model.training


def test_learning_rate_warms_up_and_decays():
    factors = [training.lr_factor(step, 100, 0.1) for step in range(1, 101)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors == sorted(factors[:10]) + sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 1e-3 and factors[54] == pytest.approx(0.5, abs=0.02)


def test_no_decay_on_vectors_and_temperature():
    model = FusionModel({"image": 3, "text": 4}, 5, depth=1)
    decay, rest = training.adamw(model, 0.1).param_groups
    assert decay["weight_decay"] == 0.1 and all(p.ndim == 2 for p in decay["params"])
    assert rest["weight_decay"] == 0 and any(p is model.temperature for p in rest["params"])
    assert len(decay["params"]) + len(rest["params"]) == len(list(model.parameters()))


def test_temperature_stays_in_its_range(pairs):
    for entry in fit(pairs, lr=5.0, warmup=0.0, **QUICK).history:
        assert 0.001 <= round(entry["temperature"], 6) <= 0.5


def test_standardisation_is_of_the_training_items(pairs, tmp_path):
    model = fit(pairs, standardize=True, **QUICK).model
    assert torch.allclose(model.standardizers["image"].mean, pairs.x.mean(0), atol=1e-6)
    assert torch.allclose(model.standardizers["text"].std, pairs.y.std(0, correction=0), atol=1e-6)
    model.save_pretrained(tmp_path)
    assert states_equal(FusionModel.from_pretrained(tmp_path), model)


def test_a_frozen_modality(pairs):
    result = fit(pairs, **QUICK | {"shared_dim": 6}, depth={"image": 1, "text": "identity"})
    assert torch.equal(result.model.embed("text", pairs.y), torch.nn.functional.normalize(pairs.y, dim=1))
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    fit(toy_pairs(dims=(6, 6)), depth="identity", **QUICK | {"shared_dim": 6})  # the temperature alone


def test_a_loss_that_is_not_finite_names_its_step(monkeypatch, pairs):
    calls = iter(range(100))
    scripted_scheme(monkeypatch, lambda zx, zy, *_: (zx * (math.nan if next(calls) == 4 else 1), zy))
    with pytest.raises(FuseMixLiteError, match="nan at step 5"):
        fit(pairs, augment="scripted", **QUICK)


def test_silent_without_progress(pairs, capsys):
    fit(pairs, **QUICK)
    assert capsys.readouterr() == ("", "")
    fit(pairs, **QUICK | {"progress": True})
    assert "fit (fusemix)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "mixup"}, "'mixup': choose one of none, noise, separate, quantise, slerp, fusemix"),
        ({"batch_size": 1}, "batch_size = 1"),
        ({"steps": 0}, "steps = 0"),
        ({"lr": 0}, "lr = 0"),
        ({"mix_probability": 1.5}, "mix_probability"),
        ({"temperature": 0.7}, "temperature"),
        ({"warmup": 1.0}, "warmup = 1.0"),
        ({"evals": 0}, "evals = 0"),
        ({"alpha": 0}, "alpha = 0"),
        ({"alpha": -1, "augment": "noise"}, "alpha = -1 is out of range: give a number, 0 or more"),
        ({"alpha": math.nan}, "alpha = nan"),
        ({"steps": True}, "steps = True is out of range: give a whole number, 1 or more"),
        ({"steps": 12.0}, "steps = 12.0"),
        ({"steps": "12"}, "steps = '12'"),
        ({"batch_size": None}, "batch_size = None is out of range: give a whole number, 2 or more"),
        ({"seed": -1}, "seed = -1 is out of range: give a whole number, 0 or more"),
        ({"seed": 2**64}, "seed = 18446744073709551616"),
        ({"seed": 0.5}, "seed = 0.5"),
        ({"evals": 1.5}, "evals = 1.5"),
        ({"lr": math.nan}, "lr = nan is out of range: give a number above 0"),
        ({"lr": math.inf}, "lr = inf"),
        ({"lr": "fast"}, "lr = 'fast'"),
        ({"lr": True}, "lr = True"),
        ({"weight_decay": -0.1}, "weight_decay = -0.1"),
        ({"weight_decay": math.nan}, "weight_decay = nan"),
        ({"warmup": -0.1}, "warmup = -0.1"),
        ({"warmup": None}, "warmup = None"),
        ({"mix_probability": math.nan}, "mix_probability = nan"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": "0.07"}, "temperature = '0.07'"),
        ({"mask_negatives": "no"}, "mask_negatives = 'no': give True or False"),
        ({"augment": ["fusemix"]}, "unknown scheme"),
        ({"augment": None}, "unknown scheme None"),
        ({"standardize": "no"}, "standardize"),
        ({"shared_dim": True}, "shared_dim"),
        ({"shared_dim": 0}, "shared_dim"),
        ({"expansion": 0.5}, "expansion"),
        ({"dropout": 1.5}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"dropout": {"image": 0.1}}, "must name each modality"),
        ({"depth": -1}, "depth"),
        ({"depth": "deep"}, "depth"),
        ({"device": 7.5}, "device 7.5 cannot be used"),
        ({"per": "row"}, "per = 'row'"),
        ({"val": toy_pairs(dims=(8, 7))}, "'text': 7"),
        ({"val": toy_pairs(names=("audio", "text"))}, "'audio': 8"),
    ],
)
def test_bad_arguments(pairs, options, message):
    with pytest.raises(FuseMixLiteError, match=message):
        fit(pairs, **QUICK | options)


def test_what_is_no_pairs_is_refused_by_name():
    pairs = toy_pairs()
    with pytest.raises(FuseMixLiteError, match="train is a str: give LatentPairs"):
        fit("latents")
    with pytest.raises(FuseMixLiteError, match="val is a str"):
        fit(pairs, "latents")
    with pytest.raises(FuseMixLiteError, match="give a model, then LatentPairs"):
        retrieval(pairs, FusionModel(pairs.dims))
