"""The four scales: that their values fit each other, and that no code asks which of them it is on."""

import re
from pathlib import Path

import pytest
import torch

from fusemix_lite import FuseMixLiteError, profile
from fusemix_lite.arms import EXPERIMENTS, plan
from fusemix_lite.device import pick_device
from fusemix_lite.mixing import SCHEMES
from fusemix_lite.profiles import SCENES
from fusemix_lite.real import REAL
from fusemix_lite.records import data_of, scale, sets_of

NAMES = ("lite", "smoke", "colab", "paper")
PACKAGE = Path(__file__).parent.parent / "fusemix_lite"


def test_overrides_take_what_json_and_notebooks_have():
    p = profile("lite", sizes=[10, 20], lr=1, image_encoders=["a/b", "c"])
    assert (p.sizes, p.lr, p.image_encoders) == ((10, 20), 1, ("a/b", "c"))
    assert hash(p)  # experiments keep pairs by their profile
    assert profile("lite", dropouts=[0, 0.5]).dropouts == (0, 0.5) and profile("lite", audio_sizes=[]).audio_sizes == ()
    for wrong in ({"image_encoders": ["a/b"]}, {"text_encoders": []}, {"audio_encoders": ["a", "b", "c"]}, {"sizes": []}):
        with pytest.raises(FuseMixLiteError, match=f"profile value {next(iter(wrong))} = .*: give (two, |one or more)"):
            profile("lite", **wrong)
    for wrong in (
        {"sizes": ["10"]},
        {"image_encoders": ["a", 3]},
        {"sizes": 10},
        {"batch_size": "10"},
        {"image_text": 3},
        {"batch_size": 2.5},
        {"seeds": True},
    ):
        with pytest.raises(FuseMixLiteError, match=f"profile value {next(iter(wrong))} = .*: give a"):
            profile("lite", **wrong)


@pytest.mark.parametrize("name", ("lite", "smoke"))
def test_small_profiles_have_one_scale_for_everything(name):
    p = profile(name)
    assert p.scenes == p.sounds == p and p.image_text == p.audio_text == SCENES


@pytest.mark.parametrize("name", ("colab", "paper"))
def test_sounding_scenes_keep_the_encoders_and_take_the_small_scale(name):
    p, lite = profile(name, seed=3, device="cpu"), profile("lite")
    w = p.scenes
    assert w.image_text == w.audio_text == SCENES and w.scenes == w
    assert (w.name, w.image_encoders, w.text_encoders, w.seed, w.device) == (
        name, p.image_encoders, p.text_encoders, 3, "cpu",
    )  # fmt: skip
    assert (w.train_items, w.batch_size, w.sizes, w.depth) == (lite.train_items, lite.batch_size, lite.sizes, lite.depth)


@pytest.mark.parametrize("name", ("colab", "paper"))
def test_sounds_have_numbers_of_their_own(name):
    p = profile(name)
    s = p.sounds
    assert (s.train_items, s.val_items, s.test_items) == p.audio_items
    assert (s.sizes, s.scarce, s.lengths) == (p.audio_sizes, p.audio_sizes[0], p.audio_lengths)
    assert s.batch_size == p.audio_batch_size != p.batch_size
    assert s.image_encoders == p.image_encoders and s.sounds == s


def pairs_in(p, arm) -> float:
    """Pairs that an arm learns from, at least."""
    of = p.sounds if data_of(arm) == "audio-text" else p
    each = of.train_pairs / of.train_items if of.train_pairs else of.captions
    return arm["items"] * arm.get("train_captions", arm.get("captions", each))


@pytest.mark.parametrize("name", ("lite", "colab", "paper"))
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_scheme_of_a_comparison_fills_the_same_batch(name, experiment):
    """`fit` makes a batch smaller that the pairs do not fill, and a mixing scheme needs two rows a pair: what is compared
    would then differ in its batch as well. Between kinds of captions only FuseMix is compared with itself."""
    p, arms = plan(experiment, profile(name))
    for arm in arms:
        if arm.get("scheme") in SCHEMES and data_of(arm) not in REAL and "train_captions" not in arm and "captions" not in arm:
            assert 2 * arm.get("batch_size", p.batch_size) <= pairs_in(p, arm) + 0.5, arm


@pytest.mark.parametrize("name", ("colab", "paper"))
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_arms_fit_a_large_scale(name, experiment):
    p, arms = plan(experiment, profile(name))
    most = {"image-text": p.train_items, "audio-text": p.sounds.train_items}
    for arm in arms:
        if data_of(arm) not in REAL:
            assert 1 < arm.get("items", 2) <= arm.get("pool", most[data_of(arm)]) <= most[data_of(arm)]
    turned = {"noise", "clean", "skew", "wording"} & {knob for arm in arms for knob in arm}
    if turned or experiment in ("scratch", "generation"):
        assert p.image_text == p.audio_text == SCENES, "a knob of Sounding Scenes"


def test_where_the_splits_of_an_arm_come_from():
    paper = profile("paper")
    assert sets_of({}, paper) == {
        "train": ("coco+visual-genome+sbu+cc3m",), "val": ("coco",), "test": ("flickr30k", "coco"),
    }  # fmt: skip
    assert sets_of({"data": "audio-text"}, profile("colab")) == dict.fromkeys(("train", "val", "test"), ("clotho",))
    assert sets_of({}, profile("lite"))["val"] == (SCENES,)
    assert sets_of({"data": "flickr8k"}, paper)["train"] == ("flickr8k",)


def test_every_set_that_a_profile_names_has_the_splits():
    from fusemix_lite.public_sets import DATASETS

    for name in ("colab", "paper"):
        for data in ("image-text", "audio-text"):
            for split, names in sets_of({"data": data}, profile(name)).items():
                for one in (one for union in names for one in union.split("+")):
                    assert split in DATASETS[one].splits, (name, one, split)


def test_the_scale_of_the_first_records_is_what_it_was():
    """Values that came later are not in it, unless they are otherwise than they were."""
    then = set(scale(profile("lite")))
    assert not then & {"image_text", "audio_text_tests", "expansion", "warmup", "workers", "audio_sizes"}
    assert set(scale(profile("lite", expansion=2))) - then == {"expansion"}
    assert set(scale(profile("colab"))) - then == {"image_text", "audio_text", "precision"}


def test_no_code_asks_which_profile_it_is_on():
    asks = re.compile(r"""(profile|p)(\.name)? *(==|!=|in) *\(?["'](lite|smoke|colab|paper)""")
    for file in PACKAGE.glob("*.py"):
        assert not asks.search(file.read_text()), file.name


def test_a_device_that_is_not_there_is_said_in_one_line():
    assert pick_device("auto").type in ("cpu", "cuda") and pick_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(FuseMixLiteError, match="device gpu cannot be used .* try cpu, or auto"):
        pick_device("gpu")
