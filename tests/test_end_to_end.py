"""Training end to end: the same network, items, selection and metrics as fusion; everything learns."""

import pytest
import torch

from fusemix_lite import FuseMixLiteError, LatentPairs, SoundingScenes, end_to_end, load_encoder, profile, retrieval
from fusemix_lite.end_to_end import DualEncoder, fit_end_to_end, raw_pairs, run

SMOKE = profile("smoke", device="cpu")
QUICK = {"steps": 2, "batch_size": 8, "evals": 1}


@pytest.fixture(scope="module")
def encoders():
    return load_encoder("lite-image-a", "cpu"), load_encoder("lite-text-a", "cpu")


def scenes(encoders, split, n, captions=2):
    return raw_pairs(SoundingScenes("image-text", split, n, captions), torch.arange(n), encoders[1].processor)


@pytest.fixture(scope="module")
def train(encoders):
    return scenes(encoders, "train", 16)


@pytest.fixture(scope="module")
def val(encoders):
    return scenes(encoders, "val", 8)


def dual(encoders, start="scratch", dropout=0.2, seed=0):
    torch.manual_seed(seed)
    return DualEncoder(*encoders, start, shared_dim=16, depth=1, dropout=dropout)


def test_started_from_the_frozen_encoders_it_gives_their_latents(encoders, train):
    world = SoundingScenes("image-text", "train", 16, 2)
    image, text = (encoder.encode(world.fields(encoder.modality)[1][:]) for encoder in encoders)
    latents = dual(encoders, "finetune").latents(train)
    torch.testing.assert_close(latents.x, image, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(latents.y, text, rtol=1e-4, atol=1e-4)
    assert latents.owner.tolist() == [i for i in range(16) for _ in range(2)]


def test_from_scratch_nothing_of_the_frozen_encoders_is_left(encoders):
    model, drawn = dual(encoders), 0
    for name, encoder in zip(("image", "text"), encoders, strict=True):
        frozen = dict(encoder.model.named_parameters())
        for key, weight in model.encoders[name].named_parameters():
            if weight.ndim > 1 and "position" not in key and "token_type" not in key:
                assert not torch.isclose(weight, frozen[key]).float().mean() > 0.01, key
                drawn += 1
    assert drawn > 10


def test_everything_learns_but_places_that_a_bag_of_words_lacks(encoders, train, val):
    model = dual(encoders)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    fit_end_to_end(train, val, model, **QUICK)
    still = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    assert still == {"encoders.text.embeddings.position_embeddings.weight"}
    assert not before["encoders.text.embeddings.position_embeddings.weight"].any()


def test_the_frozen_encoders_stay_as_they_are(encoders, train, val):
    before = [weight.clone() for encoder in encoders for weight in encoder.model.state_dict().values()]
    fit_end_to_end(train, val, dual(encoders, "finetune"), **QUICK)
    after = [weight for encoder in encoders for weight in encoder.model.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def check_looking(encoders, val):
    model = dual(encoders, dropout=0.6).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}  # batch norm's statistics too
    first, second = model.latents(val), model.latents(val)
    assert torch.equal(first.x, second.x) and torch.equal(first.y, second.y)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_looking_changes_nothing(encoders, val):
    check_looking(encoders, val)


def test_looking_while_it_learns_is_seen(monkeypatch, encoders, val):
    monkeypatch.setattr(DualEncoder, "eval", lambda self: self)  # a deliberate break
    with pytest.raises(AssertionError):
        check_looking(encoders, val)


def test_the_best_look_at_validation_is_kept(encoders, train, val):
    result = fit_end_to_end(train, val, dual(encoders), steps=6, batch_size=8, evals=6)
    means = {entry["step"]: entry["val_mean"] for entry in result.history}
    assert len(means) == 6 and means[result.best_step] == max(means.values())
    kept = retrieval(result.model.adapters, result.model.latents(val))
    assert kept == result.history[result.best_step - 1]["val"]


def test_it_learns(encoders, train):
    model = fit_end_to_end(train, train, dual(encoders, dropout=0.0), steps=25, batch_size=16, views=False).model
    for recall in retrieval(model.adapters, model.latents(train)).values():
        assert recall[5] > 70  # chance is about 31 (text to image) and 53


def test_batches_hold_different_pictures(monkeypatch, encoders, train, val):
    seen = []
    encode = DualEncoder.encode_images
    monkeypatch.setattr(DualEncoder, "encode_images", lambda self, x, view=None: (seen.append(x), encode(self, x, view))[1])
    fit_end_to_end(train, val, dual(encoders), steps=2, batch_size=8, evals=1)
    epoch = torch.cat(seen[:2])
    assert len(epoch.flatten(1).unique(dim=0)) == 16  # two batches of 8: a whole epoch, nothing twice


def test_operations_are_counted_for_all_steps(encoders, train, val):
    short = fit_end_to_end(train, val, dual(encoders), **QUICK)
    long = fit_end_to_end(train, val, dual(encoders), **QUICK | {"steps": 4})
    assert short.flops > 1e8 and long.flops == 2 * short.flops


def test_a_seed_trains_on_the_items_of_a_fusion_run(encoders):
    made = end_to_end._part("train", 40, 2, 10, 3, "lite-text-a")
    rows = LatentPairs(torch.arange(40.0)[:, None], torch.arange(40.0)[:, None]).subset(10, 3).x[:, 0].long().sort().values
    expected = raw_pairs(SoundingScenes("image-text", "train", 40, 2), rows, encoders[1].processor)
    assert torch.equal(made.images, expected.images) and torch.equal(made.tokens, expected.tokens)


def test_shuffled_pairs_match_nowhere(train):
    other = train.shuffled()
    assert torch.equal(other.images, train.images)
    assert not (other.tokens == train.tokens).flatten(1).all(1).any()
    assert sorted(map(str, other.tokens.tolist())) == sorted(map(str, train.tokens.tolist()))


def test_numbers_are_named_as_those_of_fusion():  # whose arms run as in every other record
    arm = {"items": 100}
    ours = run(SMOKE, {**arm, "scheme": "scratch"}, 0.2, 2, 7, test=True)
    theirs = run(SMOKE, {**arm, "scheme": "fusemix"}, 0.2, 2, 7, test=True)
    assert list(ours) == [*list(theirs)[:2], "flops", *list(theirs)[2:]]


def test_a_seed_says_everything():
    def numbers(seed, **more):
        result = run(SMOKE, {"scheme": "scratch", "items": 50, **more}, 0.2, 2, seed, test=True)
        return {key: value for key, value in result.items() if key != "seconds"}

    torch.manual_seed(1)
    first = numbers(0)
    torch.manual_seed(2)
    assert numbers(0) == first
    assert numbers(0, null="again") == numbers(500) != first


@pytest.mark.parametrize(
    ("arm", "steps", "told"),
    [
        ({"scheme": "nonsense", "items": 50}, 2, "nonsense"),
        ({"scheme": "scratch", "items": 201}, 2, "201 items of 200"),
        ({"scheme": "scratch", "items": 50}, 0, "steps 0"),
        ({"scheme": "scratch", "items": 50, "lr": 0.0}, 2, "lr 0.0"),
    ],
)
def test_what_cannot_be_trained_is_named(arm, steps, told):
    with pytest.raises(FuseMixLiteError, match=told):
        run(SMOKE, arm, 0.2, steps, 0, test=False)
