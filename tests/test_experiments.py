"""What an arm learns from and is judged on."""

import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mutations import failures, mutated_bytes, mutated_json_bytes
from torture import tries

from fusemix_lite import FuseMixLiteError, LatentPairs, SoundingScenes, experiments, profile, records
from fusemix_lite.arms import EXPERIMENTS, plan
from fusemix_lite.encoders import resolve_encoder
from fusemix_lite.experiments import pairs_of, run, source_of, training_pairs
from fusemix_lite.extraction import cached_latents
from fusemix_lite.rows import StoredRows
from tests import tiny_encoders

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


@pytest.fixture
def public(monkeypatch, tmp_path):
    """Public data sets "toy" and "far", which Sounding Scenes stand in for, and a profile that measures on them."""
    sizes = {"toy": {"train": 90, "val": 30, "test": 30}, "far": {"test": 20}}

    def open_public(name, split):
        return replace(SoundingScenes("image-text", split, sizes[name][split]), captions=4 if name == "toy" else 5)

    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(experiments, "open_public", open_public)
    monkeypatch.setattr(experiments, "lacks_public", lambda name, split: None)
    monkeypatch.setattr("fusemix_lite.budget._rows_here", lambda name, split: None)
    pairs_of.cache_clear()
    yield profile("smoke", device="cpu", image_text="toy", image_text_tests=("toy", "far"), scenes_as="smoke")
    pairs_of.cache_clear()


def test_public_data_are_never_cut_and_every_test_set_has_its_numbers(public):
    arm = {"scheme": "none", "items": 60}
    found = {split: pairs_of(public, split, source_of(arm, public, split)) for split in ("train", "val", "test")}
    assert {split: pairs.n_items for split, pairs in found.items()} == {"train": 90, "val": 30, "test": 30}
    assert len(found["train"]) == 4 * 90  # as many captions as there are, whatever the profile says
    numbers = run(public, arm, 0.2, 5, 0, True)
    own = {key for key in numbers if key.startswith(("image_to_text", "text_to_image"))}
    assert {key for key in numbers if key.startswith("far_")} == {f"far_{key}" for key in own} and len(own) == 6
    assert run(public, arm, 0.2, 5, 0, False).keys() & own == set()


def test_an_arm_takes_as_many_as_there_are(public):
    """Addresses die, so that nobody has all items that a profile counts on; of Sounding Scenes that would be a mistake."""
    assert training_pairs(public, {"scheme": "none", "items": 5_000}, 0).n_items == 90
    with pytest.raises(FuseMixLiteError, match="5000 items: there are 200"):
        training_pairs(SMOKE, {"scheme": "none", "items": 5_000}, 0)


def test_fewer_captions_are_the_first_ones(public):
    arm = {"scheme": "none", "items": 90, "train_captions": 2}
    few, every = (pairs_of(public, "train", source_of(arm | more, public, "train")) for more in ({}, {"train_captions": 4}))
    assert len(few) == 180 and torch.equal(few.owner.bincount(), torch.full((90,), 2))
    assert torch.equal(few.y, every.y.view(90, 4, -1)[:, :2].flatten(0, 1))
    assert len(pairs_of(public, "val", source_of(arm, public, "val"))) == 120  # in training only
    uneven = LatentPairs(torch.eye(2), torch.arange(5.0)[:, None] + 1, [1, 0, 1, 1, 0])
    assert experiments.first_captions(uneven, 2).y.flatten().tolist() == [1, 2, 3, 5]


@pytest.mark.parametrize("knob", [{"noise": 0.5}, {"skew": 1.0}, {"wording": "template"}, {"clean": 10}])
def test_knobs_of_the_small_world_are_refused_elsewhere(public, knob):
    arm = {"scheme": "none", "items": 60, **knob}
    with pytest.raises(FuseMixLiteError, match=f"{next(iter(knob))} is a knob of Sounding Scenes, not of toy"):
        source_of(arm, public, "train")
    assert source_of(arm, public.scenes, "train").data == "image-text"


def test_all_encoders_of_an_experiment_look_in_one_pass(public, monkeypatch):
    passes = []
    look = "fusemix_lite.extraction.cached_latents"
    monkeypatch.setattr(look, lambda data, encoders, **how: passes.append((data.id, encoders)))
    asked = ("lite-image-a", "lite-image-b@1", "lite-image-a+lite-image-b")
    arms = [{"scheme": "none", "items": 60, "image": image} for image in asked]
    experiments.extract_public(public, arms)
    images = [encoders for _, encoders in passes if "image" in encoders[0]]
    assert images == [["lite-image-a", "lite-image-b@1", "lite-image-b"]] * 4  # train, val, two tests
    assert len(passes) == 8  # and their captions
    experiments.extract_public(SMOKE, arms)
    assert len(passes) == 8


def test_runs_on_other_data_are_other_runs(public):
    arm = {"scheme": "none", "items": 60}
    key = experiments._key(public, arm, 0.2, 5, 0, True)
    assert experiments._key(SMOKE, arm, 0.2, 5, 0, True) != key
    stamp = experiments.data_stamp(public, [arm])
    assert set(stamp) == {"toy train", "toy val", "toy test", "far test"} and experiments.data_stamp(SMOKE, [arm]) == {}


def test_public_data_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.delenv("FUSEMIX_LITE_DATA", raising=False)
    told = experiments.lacks("retrieval", profile("colab"))
    assert "FUSEMIX_LITE_DATA" in told and "fusemix-lite data flickr30k FOLDER" in told
    monkeypatch.setenv("FUSEMIX_LITE_DATA", str(tmp_path))
    assert "fusemix-lite data flickr30k" in experiments.lacks("retrieval", profile("colab"))
    assert experiments.lacks("quality", profile("colab")) is None  # stays in Sounding Scenes
    with pytest.warns(UserWarning, match="nothing of retrieval can be run here: flickr30k"):
        assert experiments.obtain("retrieval", profile("colab")).profile.name == "lite"


def test_other_encoders_are_known_by_their_revision(tmp_path):
    folder = str(tiny_encoders.save(tmp_path / "mine", "bert"))
    assert records.weights_digest(folder) == resolve_encoder(folder).revision[:16]


@pytest.mark.parametrize("arm", [{}, {"null": "shuffled"}, {"unit": True}, {"swap": "image", "before": "lite-image-b"}])
def test_latents_that_stay_on_disk_give_the_same_numbers(public, arm):
    from fusemix_lite import swapping

    arm = {"scheme": "fusemix", "items": 60, "image": "lite-image-a", "text": "lite-text-a"} | arm
    found = [swapping.run(replace(public, in_memory=how), arm, 0.2, 5, 0, True) for how in (True, False)]
    assert found[0] | {"seconds": 0} == found[1] | {"seconds": 0}
    on_disk = replace(public, in_memory=False)
    assert isinstance(pairs_of(on_disk, "train", source_of(arm, on_disk, "train")).x, StoredRows)


def test_public_data_are_extracted_as_the_profile_says(public, monkeypatch):
    asked, original = [], cached_latents
    spy = lambda data, names, **how: (asked.append(how), original(data, names, **how))[1]  # noqa: E731
    monkeypatch.setattr("fusemix_lite.extraction.cached_latents", spy)
    half = replace(public, precision="bf16")
    pairs_of(half, "val", source_of({}, half, "val"))
    assert [how["precision"] for how in asked] == ["bf16", "bf16"] and asked[0]["device"] == "cpu"


def test_a_run_that_fails_ends_the_sweep(tmp_path, monkeypatch):
    """Runs that have not begun are not made, since nobody would keep what they give."""
    made = []

    def job(name, number):
        if number == 1:
            raise FuseMixLiteError("no memory")
        time.sleep(0.02)
        made.append(number)
        return str(number), {}

    monkeypatch.setattr(experiments, "_job", job)
    monkeypatch.setattr(experiments, "_key", str)
    monkeypatch.setattr(experiments, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    runs = experiments.Runs(tmp_path / "runs.jsonl")
    with pytest.raises(FuseMixLiteError, match="no memory"):
        experiments._run_all("toy", [(number,) for number in range(50)], runs, 1, "seeds")
    assert runs.done == {"0": {}} and len(made) < 10


NUMBERS = {"seed": 0, "seconds": 2.5, "val_mean": 1.0}


@pytest.mark.torture
def test_runs_that_were_cut_or_tampered_with_are_made_again(tmp_path, record_property):
    """Cut at any byte, the line that comes next is whole; what is mutated is passed over or read as it stands, and no more."""
    file = tmp_path / "runs.jsonl"
    runs = experiments.Runs(file)
    for job in "abc":
        runs.add(job, NUMBERS)
    whole = file.read_bytes()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        left = experiments.Runs(file).done
        assert list(left) == list("abc")[: whole[:end].count(b"}}")]
        runs.add("d", NUMBERS)
        assert experiments.Runs(file).done == left | {"d": NUMBERS}

    def trial(rng):
        text = mutated_json_bytes(rng, {"job": "a", "numbers": NUMBERS})
        file.write_bytes(mutated_bytes(rng, whole) if rng.random() < 0.5 else text)
        for numbers in experiments.Runs(file).done.values():
            assert math.isfinite(numbers["seconds"] + numbers["val_mean"])

    inputs = tries(50, 1000)
    assert not failures(trial, inputs)
    record_property("inputs", inputs)
    record_property("faults", len(whole))


def test_two_sweeps_may_share_a_file(tmp_path):
    code = (
        "import sys; from pathlib import Path; from fusemix_lite.experiments import Runs\n"
        "runs = Runs(Path(sys.argv[1]))\n"
        "more = dict.fromkeys(map(str, range(30)), 0.5) | {'seconds': 1.0, 'val_mean': 2.0}\n"
        "for i in range(300): runs.add(f'{sys.argv[2]} {i}', more)"
    )
    call = [sys.executable, "-c", code, str(tmp_path / "runs.jsonl")]
    both = [subprocess.Popen([*call, name]) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert set(experiments.Runs(tmp_path / "runs.jsonl").done) == {f"{name} {i}" for name in "ab" for i in range(300)}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_is_said(tmp_path):
    runs = experiments.Runs(tmp_path / "runs.jsonl")
    runs.path = Path("/dev/full")
    with pytest.raises(FuseMixLiteError, match="/dev/full cannot be written .No space left on device.: make room"):
        runs.add("a", NUMBERS)


def test_what_cannot_be_run_is_one_line():
    call = [sys.executable, "-m", "fusemix_lite.experiments", "retrieval", "--profile", "huge", "--estimate"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: unknown profile 'huge'; there are lite, smoke, colab, paper\n"
