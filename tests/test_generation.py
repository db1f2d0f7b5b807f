"""Audio to image: sampling against straight lines, agreement by hand, corrections, public pipelines, and how it was trained."""

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fusemix_lite import FuseMixLiteError, LatentPairs, SoundingScenes, load_encoder, profile
from fusemix_lite import generation as gen
from fusemix_lite import pretrain_generator as training
from fusemix_lite.disk import read_json
from fusemix_lite.scene_viewing import GUESSING, NOTHING, SceneReader, agreement, load_reader, truth
from fusemix_lite.scenes import KINDS, Scene, Thing

TINY = {
    "sample_size": 4, "in_channels": 16, "out_channels": 16, "block_out_channels": [8], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"],
    "mid_block_type": "UNetMidBlock2D", "norm_num_groups": 4, "class_embed_type": "projection",
}  # fmt: skip
D = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tiny():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = gen.LatentToImage(D, TINY, width=8).eval()
        torch.nn.init.normal_(model.unet.conv_out.weight, std=0.3)  # so that what it is told shows
        torch.nn.init.normal_(model.nothing)
    return model


@pytest.fixture(scope="module")
def latents():
    return torch.randn(3, D, generator=seeded())


# sampling


def test_pictures_are_bytes_and_follow_seed_and_latent(tiny, latents):
    a, b = (tiny.generate(latents, seeded(), steps=3) for _ in range(2))
    assert a.shape == (3, 3, 32, 32) and a.dtype == torch.uint8 and torch.equal(a, b)
    assert not torch.equal(a, tiny.generate(latents, seeded(1), steps=3))
    assert not torch.equal(a, tiny.generate(-latents, seeded(), steps=3))


def test_only_the_direction_of_a_latent_counts(tiny, latents):
    assert torch.equal(tiny.generate(latents, seeded(), 3), tiny.generate(8 * latents, seeded(), 3))


def test_a_picture_does_not_depend_on_the_others(tiny, latents):
    alone, among = tiny.generate(latents[:1], seeded(), 3)[0], tiny.generate(latents, seeded(), 3)[0]
    assert (alone.int() - among.int()).abs().max() <= 1


def test_told_nothing_it_does_not_see_the_latent(tiny, latents):
    x, t = torch.randn(3, *gen.CODE, generator=seeded()), torch.full((3,), 0.5)
    told = torch.tensor([True, False, False])
    with torch.inference_mode():
        one, other = tiny(x, t, latents, told), tiny(x, t, -latents, told)
    assert torch.equal(one[1:], other[1:]) and not torch.allclose(one[0], other[0])


@pytest.fixture
def codes_as_they_are(tiny, monkeypatch):
    """The generator without its decoder: what comes out are codes, as bytes."""
    monkeypatch.setattr(tiny.decoder, "forward", lambda codes: codes)
    return tiny


def as_bytes(x):
    return ((x.clamp(-1, 1) + 1) * 127.5).round()


def straight(sign=1.0):
    """A velocity field whose lines all lead to one code: what a perfect model says where there is only one picture."""
    code = torch.linspace(-1, 1, 256).reshape(gen.CODE)
    return code, lambda x, t, z, told: sign * (x - code) / t[:, None, None, None]


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_straight_lines_are_followed_exactly(codes_as_they_are, latents, monkeypatch, steps):
    code, field = straight()
    monkeypatch.setattr(codes_as_they_are, "forward", field)
    made = codes_as_they_are.generate(latents, seeded(), steps, guidance=1.0)
    assert (made.float() - as_bytes(code)).abs().max() <= 1


def test_lines_followed_the_wrong_way_are_noticed(codes_as_they_are, latents, monkeypatch):
    code, field = straight(-1.0)
    monkeypatch.setattr(codes_as_they_are, "forward", field)
    made = codes_as_they_are.generate(latents, seeded(), 4, guidance=1.0)
    assert (made.float() - as_bytes(code)).abs().max() > 50


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0])
def test_guidance_goes_beyond_what_it_says_when_told(codes_as_they_are, latents, monkeypatch, guidance):
    noise = torch.randn(3, *gen.CODE, generator=seeded())
    yes, no = torch.tensor(0.10), torch.tensor(0.25)  # constant velocities: from 1 to 0 they are taken off the noise once

    def constant(x, t, z, told):
        return torch.where(told, yes, no)[:, None, None, None].expand_as(x)

    monkeypatch.setattr(codes_as_they_are, "forward", constant)
    wanted = as_bytes(noise - (no + guidance * (yes - no)))
    assert (codes_as_they_are.generate(latents, seeded(), 5, guidance).float() - wanted).abs().max() <= 1


@pytest.mark.parametrize(
    "z, options",
    [
        (torch.zeros(2, D + 1), {}),
        (torch.zeros(D), {}),
        (torch.zeros(0, D), {}),
        (torch.full((2, D), torch.nan), {}),
        (torch.ones(2, D), {"steps": 0}),
        (torch.ones(2, D), {"guidance": -1}),
    ],
)
def test_what_cannot_be_told_is_refused(tiny, z, options):
    with pytest.raises(FuseMixLiteError, match="generate: "):
        tiny.generate(z, seeded(), **options)


# loading


def test_saved_and_loaded_it_draws_the_same(tiny, latents, tmp_path):
    folder = gen.save_module(tiny, tmp_path / "own", {"pretraining": {}})
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "fusemix_lite.json", "model.safetensors"]
    again = gen.load_generator(folder)
    difference = tiny.generate(latents, seeded(), 3).int() - again.generate(latents, seeded(), 3).int()
    assert again.dim == D and difference.abs().max() <= 3  # weights in half precision


def test_what_is_no_generator_is_refused(tiny, tmp_path, monkeypatch):
    with pytest.raises(FuseMixLiteError, match="give 'lite-generator', a folder, or a hub id"):
        gen.load_generator("no-such-generator")
    with pytest.raises(FuseMixLiteError, match="hf download owner/never-fetched"):
        gen.load_generator("owner/never-fetched")
    folder = gen.save_module(SceneReader(4), tmp_path / "reader", {})
    with pytest.raises(FuseMixLiteError, match="broken, or no LatentToImage"):
        gen.load_generator(folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(FuseMixLiteError, match="model_index.json is missing"):
        gen.load_generator(tmp_path / "other")
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(FuseMixLiteError, match="takes no pooled CLIP embedding"):
        gen.load_generator(tmp_path / "other")
    with pytest.raises(FuseMixLiteError, match="takes no pooled CLIP embedding"):
        gen.PipelineGenerator(object())
    own = gen.save_module(tiny, tmp_path / "own", {})
    (own / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(FuseMixLiteError, match="broken, or no LatentToImage"):
        gen.load_generator(own)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(FuseMixLiteError, match=r"pip install .*generation"):
        gen.LatentToImage(D, TINY)


# a public pipeline


@pytest.fixture(scope="module")
def kandinsky(tmp_path_factory):
    """A pipeline folder of a public class, very small and with random weights."""
    diffusers = gen._diffusers()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            in_channels=4, out_channels=8, addition_embed_type="image", encoder_hid_dim=D, encoder_hid_dim_type="image_proj",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), block_out_channels=(32, 32),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), layers_per_block=1, attention_head_dim=4,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=D, resnet_time_scale_shift="scale_shift",
        )  # fmt: skip
        movq = diffusers.VQModel(
            block_out_channels=[32, 32], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=32, latent_channels=4, vq_embed_dim=4, num_vq_embeddings=8, norm_type="spatial",
        )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="epsilon")
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    diffusers.KandinskyV22Pipeline(unet, scheduler, movq).save_pretrained(folder)
    return folder


def test_a_public_pipeline_has_the_same_interface(kandinsky, latents):
    public = gen.load_generator(kandinsky, device="cpu")
    assert isinstance(public, gen.PipelineGenerator) and public.dim == D

    def made(z, model=public, seed=0):
        return model.generate(z, seeded(seed), steps=2, guidance=4.0, side=32)

    a = made(latents[:2])
    assert a.shape[:2] == (2, 3) and a.dtype == torch.uint8 and torch.equal(a, made(latents[:2]))
    assert torch.equal(a, made(4 * latents[:2]))  # directions alone, scaled to the norm that it is told
    assert not torch.equal(a, made(latents[1:])) and not torch.equal(a, made(latents[:2], seed=1))
    assert not torch.equal(a, made(latents[:2], gen.load_generator(kandinsky, norm=30.0, device="cpu")))
    with pytest.raises(FuseMixLiteError, match=rf"takes \(B, {D}\)"):
        public.generate(latents[:, 1:])


def test_a_pipeline_with_a_broken_part_is_refused(kandinsky, tmp_path):
    import shutil

    folder = shutil.copytree(kandinsky, tmp_path / "broken")
    next((folder / "unet").glob("*.safetensors")).write_bytes(b"12345678")
    with pytest.raises(FuseMixLiteError, match="cannot be loaded"):
        gen.load_generator(folder, device="cpu")


# corrections


def clouds(n=400):
    g = seeded(3)
    z = F.normalize(torch.randn(n, D, generator=g) * torch.linspace(0.5, 2, D) + 2, dim=1)
    y = F.normalize(torch.randn(n, D, generator=g) * torch.linspace(0.3, 0.1, D) - 1, dim=1)
    return z, y


def check_move(move):
    z, y = clouds()
    source, target = gen.cloud(z), gen.cloud(y)
    wanted = F.normalize(y.mean(0) + z - z.mean(0), dim=1)
    torch.testing.assert_close(move(z, source, target), wanted)
    scaled = F.normalize(y.mean(0) + (z - z.mean(0)) / z.std(0, correction=0) * y.std(0, correction=0), dim=1)
    torch.testing.assert_close(move(z, source, target, spread=True), scaled)
    torch.testing.assert_close(move(z, source, source), z)  # nothing to do


def test_embeddings_are_moved_to_where_captions_lie():
    check_move(gen.move)
    z, y = clouds()
    gap = [(moved.mean(0) - y.mean(0)).norm() for moved in (z, gen.move(z, gen.cloud(z), gen.cloud(y), spread=True))]
    assert gap[1] < 0.1 * gap[0]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda z, source, target, spread=False: gen.move(z, target, source, spread),
        lambda z, source, target, spread=False: gen.move(z, source, target, not spread),
        lambda z, source, target, spread=False: 2 * gen.move(z, source, target, spread),
        lambda z, source, target, spread=False: z,
    ],
)
def test_wrong_corrections_are_noticed(wrong):
    with pytest.raises(AssertionError):
        check_move(wrong)


# the audio adapter


def test_sounds_are_brought_to_captions_that_stay_where_they_are():
    g = seeded(1)
    x = torch.randn(300, 10, generator=g)
    y = 3 * (x @ torch.randn(10, 8, generator=g)).repeat_interleave(2, 0) + 5
    pairs = LatentPairs(x, y, torch.arange(300).repeat_interleave(2), ("audio", "text"))
    parts = pairs.split({"train": 0.7, "val": 0.3})
    options = {"steps": 150, "batch_size": 64, "dropout": 0.0, "device": "cpu", "progress": False, "seed": 0}
    adapter = gen.fit_audio(parts["train"], parts["val"], "none", **options)
    assert torch.equal(adapter.model.embed("text", F.normalize(y, dim=1)), F.normalize(F.normalize(y, dim=1), dim=1))
    assert adapter.val_mean > 30  # guessing: 5.9
    torch.testing.assert_close(adapter.written, gen.cloud(F.normalize(parts["train"].y, dim=1)))
    with torch.inference_mode():
        torch.testing.assert_close(adapter.heard, gen.cloud(adapter.model.embed("audio", parts["train"].x)))


# agreement


def scene(*things, background="beach"):
    return Scene(background, tuple(Thing(*t, 0.0, 0.0) for t in things), "slow", "dry", -40.0)


BIRD = ("bird", "small", "left", 2, "red")
CAR = ("car", "large", "right", 1, "blue")


def test_agreement_by_hand():
    scenes = [scene(BIRD, CAR), scene(CAR, background="snow")]
    seen = truth([scene(("bird", "large", "left", 2, "pink")), scene(("car", "large", "middle", 3, "blue"), BIRD)])
    expected = {
        "kinds": 100 * (2 / 3 + 2 / 3) / 2,  # a bird of bird and car; car of car and bird
        "things": 0.0,
        "background": 50.0,
        "found": 100 * 2 / 3,
        "size": 50.0,
        "count": 50.0,
        "colour": 50.0,
        "position": 50.0,
    }
    assert agreement(seen, scenes) == pytest.approx(expected)


def test_scenes_agree_with_themselves_and_with_nothing_not_at_all():
    scenes = [SoundingScenes("audio-text", "test", 50).scene(i) for i in range(50)]
    there = truth(scenes)
    assert set(agreement(there, scenes).values()) == {100.0}
    empty = replace(there, kind=torch.full_like(there.kind, NOTHING), background=(there.background + 1) % 6)
    assert set(agreement(empty, scenes).values()) == {0.0}
    with pytest.raises(FuseMixLiteError, match="give one a scene"):
        agreement(there, scenes[1:])


def test_what_is_seen_is_told_in_words():
    from fusemix_lite.report import describe

    scenes = [scene(BIRD, CAR), scene(("rain", "small", "middle", 1, "red"), background="snow")]
    there = truth(scenes)
    assert [there.describe(i) for i in range(2)] == [describe(s) for s in scenes]
    empty = replace(there, kind=torch.full_like(there.kind, NOTHING))
    assert empty.describe(0) == "no thing, background: beach"


def test_small_pictures_are_enlarged_pixel_by_pixel_large_ones_stay():
    pictures = torch.randint(256, (1, 3, 2, 2), dtype=torch.uint8, generator=seeded())
    (large,) = gen.enlarged(pictures, 6)
    assert large.shape == (6, 6, 3)
    assert all((large[y, x] == pictures[0, :, y // 3, x // 3].numpy()).all() for y in range(6) for x in range(6))
    assert gen.enlarged(torch.zeros(2, 3, 256, 256, dtype=torch.uint8))[1].shape == (256, 256, 3)


def test_where_captions_lie_is_where_their_unit_latents_lie():
    world, encoder = SoundingScenes("image-text", "train", 20), load_encoder("lite-text-a", "cpu")
    z = F.normalize(encoder.encode(list(world.fields("text")[1])), dim=1)
    found = gen.where_captions_lie("lite-text-a", 20)
    torch.testing.assert_close(found.mean, z.mean(0), atol=1e-3, rtol=0)  # stored in half precision
    torch.testing.assert_close(found.std, z.std(0, correction=0), atol=1e-3, rtol=0)


def test_of_two_of_a_kind_the_surer_one_counts():
    seen = truth([scene(BIRD, ("car", "small", "middle", 3, "red"))])
    kind = seen.kind.clone()
    kind[0, 1] = KINDS.index("bird")  # the second one stands in the middle, is small, three, red
    for sure, position in ((0.9, 100.0), (0.1, 0.0)):
        both = replace(seen, kind=kind, sure=torch.tensor([[sure, 0.5, 0.0]]))
        assert agreement(both, [scene(BIRD)])["position"] == position


def test_what_is_independent_agrees_as_often_as_guessing_says():
    a, b = ([SoundingScenes("audio-text", part, 1500).scene(i) for i in range(1500)] for part in ("train", "val"))
    found = agreement(truth(a), b)
    for name, guess in GUESSING.items():
        assert found[name] == pytest.approx(guess, abs=7), name  # 400 things of the same kind: 3 standard errors
    assert 10 < found["kinds"] < 20


def test_the_packaged_reader_reads_drawn_pictures():
    world = SoundingScenes("audio-text", "val", 100)
    read = load_reader().read(training.pictures(world))
    found = agreement(read, [world.scene(i) for i in range(len(world))])
    low = {"kinds": 90, "things": 90, "background": 97, "size": 80, "count": 85, "colour": 90, "position": 95}
    assert all(found[name] > least for name, least in low.items()), found


def test_the_reader_wants_pictures():
    with pytest.raises(FuseMixLiteError, match="uint8"):
        SceneReader(4).read(torch.zeros(2, 3, 32, 32))
    with pytest.raises(FuseMixLiteError, match="uint8"):
        SceneReader(4).read(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))
    with pytest.raises(FuseMixLiteError, match="uint8"):
        SceneReader(4).read(torch.zeros(2, 3, 32, 64, dtype=torch.uint8))


def test_larger_pictures_are_read_as_the_small_ones_they_were():
    pictures = torch.randint(256, (4, 3, 32, 32), generator=seeded(), dtype=torch.uint8)
    large = pictures.repeat_interleave(4, 2).repeat_interleave(4, 3)
    small, reduced = (load_reader().read(x) for x in (pictures, large))
    assert all(
        torch.allclose(a.float(), b.float(), atol=1e-4)
        for a, b in zip(vars(small).values(), vars(reduced).values(), strict=True)
    )


# the record's runs


def test_the_sampler_is_the_one_that_validation_chose():
    sampler = read_json(gen.WEIGHTS / gen.PACKAGED / "fusemix_lite.json", "train it again")["sampler"]
    best = max(sampler["tried"], key=lambda row: row["kinds"])
    assert (gen.STEPS, gen.GUIDANCE) == (sampler["steps"], sampler["guidance"]) == (best["steps"], best["guidance"])
    assert len(sampler["tried"]) == len(training.SAMPLERS["steps"]) * len(training.SAMPLERS["guidance"])


def test_the_packaged_generator_draws_what_captions_say():
    p = replace(profile("smoke"), test_items=200)
    numbers = gen.run(p, {"data": "audio-text", "told": "image-caption"}, 0.2, 5, seed=0, test=True)
    assert numbers["kinds"] > 50 and numbers["background"] > 40, numbers  # guessing: about 15 and 17


@pytest.fixture
def small(monkeypatch, tiny_text):
    """Runs at the smoke scale with a generator that takes no time."""
    monkeypatch.setattr(gen, "_packaged", lambda name: tiny_text)
    return profile("smoke")


@pytest.fixture(scope="module")
def tiny_text():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return gen.LatentToImage(128, TINY, width=8).eval()


SOUND = {"data": "audio-text", "generator": "lite-generator", "scheme": "fusemix", "items": 100, "told": "sound"}


def test_runs_have_the_same_numbers_whatever_is_told(small):
    arms = [
        {**SOUND, "correct": "mean"},
        {**SOUND, "correct": "none"},
        {**SOUND, "correct": "mean", "towards": "audio-captions"},
        {**SOUND, "correct": "mean", "null": "shuffled"},
        {"data": "audio-text", "generator": "lite-generator", "told": "image-caption"},
    ]
    moved, raw, heard, shuffled, seen = (gen.run(small, arm, 0.2, 3, seed=1, test=True) for arm in arms)
    assert moved.keys() == raw.keys() == seen.keys() >= {"kinds", "colour", "gap", "gap_image", "val_mean", "seconds"}
    assert moved["val_mean"] == raw["val_mean"] == shuffled["val_mean"] > 0  # one adapter for all of them
    assert moved["gap_image"] < raw["gap_image"] and heard["gap"] < raw["gap"]
    again = gen.run(small, arms[0], 0.2, 3, seed=1, test=True)
    assert {**again, "seconds": 0} == {**moved, "seconds": 0}
    assert gen.run(small, arms[0], 0.2, 3, seed=1, test=False).keys() == {"seed", "seconds", "best_step", "val_mean"}
    assert gen.run(small, {**arms[4], "null": "again"}, 0.2, 3, seed=1, test=False)["seed"] == 501


def test_shuffled_pictures_are_told_other_scenes(small, monkeypatch):
    told = []
    model = gen._packaged("lite-generator")
    monkeypatch.setattr(
        type(model), "generate", lambda self, z, g: told.append(z) or torch.zeros(len(z), 3, 32, 32, dtype=torch.uint8)
    )
    for arm in ({**SOUND, "correct": "none"}, {**SOUND, "correct": "none", "null": "shuffled"}):
        gen.run(small, arm, 0.2, 3, seed=1, test=True)
    own, others = told
    assert (own == others).all(1).sum() == 0 and torch.equal(own.sort(0).values, others.sort(0).values)


def test_unknown_arms_are_refused(small):
    for arm in ({**SOUND, "told": "smell"}, {**SOUND, "correct": "twice"}):
        with pytest.raises(FuseMixLiteError, match="told is one of"):
            gen.run(small, arm, 0.2, 3, seed=1, test=True)


def test_captions_are_of_the_scene_and_the_sense():
    scenes = [scene(BIRD), scene(CAR)]
    seen, heard = (gen.captions_of(scenes, [0, 1], kind) for kind in ("image", "audio"))
    assert seen == gen.captions_of(scenes, [0, 1], "image") and seen != heard and len(seen) == 2
    assert seen[:1] == gen.captions_of(scenes[:1], [0], "image")


# training

RECIPE = {
    **training.RECIPES["lite-generator"], "items": 12, "batch": 4, "steps": 4, "val_items": 6, "warmup": 2,
    "coder": {**training.RECIPES["lite-generator"]["coder"], "items": 8, "batch": 4, "steps": 2},
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(training, "LatentToImage", lambda dim: gen.LatentToImage(dim, TINY))
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    monkeypatch.setattr("fusemix_lite.checkpoints.SHARE", 1)
    monkeypatch.setattr(training, "LOOK_EVERY", 2)


def test_stopped_and_resumed_it_is_the_same_generator(quick, monkeypatch, tmp_path):
    whole, facts = training.train_generator(RECIPE, seed=3)
    assert set(facts["looks"]) == {2, 4} and facts["looks"][4].keys() == {"loss", "val", "val_other"}
    calls, loss = [], training._loss

    def stops(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(training, "_loss", stops)
    with pytest.raises(KeyboardInterrupt):
        training.train_generator(RECIPE, 3, tmp_path)
    resumed, again = training.train_generator(RECIPE, 3, tmp_path)
    assert again["looks"].keys() == {2, 4}  # the first was taken by the process that was stopped
    assert len(calls) == 5  # step 4 was done again
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    with pytest.raises(FuseMixLiteError, match="another run .*'lr': 0.5"):
        training.train_generator(RECIPE | {"lr": 0.5}, 3, tmp_path)


def test_the_loss_is_the_distance_to_the_velocity():
    g = seeded()
    x, noise = torch.randn(5, 3, 4, 4, generator=g), torch.randn(5, 3, 4, 4, generator=g)
    t, z, told = torch.rand(5, generator=g), torch.zeros(5, D), torch.ones(5, dtype=torch.bool)
    given = []
    loss = training.velocity_loss(lambda *args: given.append(args) or torch.zeros_like(x), x, z, t, noise, told)
    assert loss.item() == pytest.approx(sum(((noise[i] - x[i]) ** 2).mean().item() for i in range(5)) / 5, rel=1e-5)
    torch.testing.assert_close(given[0][0][2], (1 - t[2]) * x[2] + t[2] * noise[2])
    perfect = training.velocity_loss(lambda at, t, z, told: noise - x, x, z, t, noise, told)
    assert perfect.item() == 0


def test_learning_rate_rises_stays_and_falls_to_nothing():
    recipe = {"steps": 100, "warmup": 10, "decay": 0.3}
    rates = [training._rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10:70] == [1.0] * 60 and 0 < rates[-1] < 0.05
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_recipes_leave_folders_that_load(quick, tmp_path):
    reader = load_reader(training.pretrain("lite-reader", tmp_path, items=30, steps=2, batch=8))
    assert reader.read(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).kind.shape == (2, 3)
    few = {key: RECIPE[key] for key in ("items", "batch", "val_items", "coder")}
    model = gen.load_generator(training.pretrain("lite-generator", tmp_path, steps=2, **few))
    assert model.dim == 128 and model.mean.norm() > 0.1
