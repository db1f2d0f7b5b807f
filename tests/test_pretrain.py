"""Pre-training: every recipe runs, learns something, and leaves a folder that the ordinary loader takes."""

import json

import pytest
import torch

from fusemix_lite import FuseMixLiteError, SoundingScenes, load_encoder, pretrain, pretrain_generator, retrieval, scene_pairs
from fusemix_lite.encoders import LITE_ENCODERS, WEIGHTS, resolve_encoder
from fusemix_lite.searching import load_for_search

FIELD = {"image": "image", "text": "text", "audio": "audio"}


@pytest.mark.parametrize("name", LITE_ENCODERS)
def test_a_recipe_makes_a_folder_that_loads(name, tmp_path):
    folder = pretrain.pretrain(name, tmp_path, items=24, steps=2, batch=8)
    encoder = load_encoder(folder)
    modality = name.split("-")[1]
    items = SoundingScenes(size=2).fields(modality)[1]
    latents = encoder.encode([items[0], items[1]])
    assert encoder.modality == modality and latents.isfinite().all()
    assert latents.shape == (2, pretrain.CONV_DIM if name in ("lite-image-a", "lite-audio-a") else pretrain.DIM)


def test_tokenizer_is_the_same_every_time_and_knows_every_word():
    captions = list(SoundingScenes(size=40).fields("text")[1])
    one, two = (pretrain.make_tokenizer(order) for order in (captions, captions[::-1]))
    assert one.get_vocab() == two.get_vocab()
    assert one.unk_token_id not in one(captions[0])["input_ids"]
    assert one.unk_token_id not in one("zebras")["input_ids"] or "z" not in "".join(captions)


def test_views_are_mild_and_reproducible():
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, two = (pretrain.image_view(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == x.shape and not torch.equal(one, x)
    mel = torch.randn(4, pretrain.MELS, 150)
    assert pretrain.audio_view(mel, torch.Generator().manual_seed(1)).shape == mel.shape


def test_tags_are_of_one_modality():
    scene = SoundingScenes("unimodal").scene(0)
    image, audio = (pretrain.tags_of(scene, modality) for modality in ("image", "audio"))
    assert len(image) == 12 + 8 + 6 and len(audio) == 12
    assert sum(audio) == len(scene.things) and image[:12] == audio


def test_shipped_weights_fit_the_budget():
    total = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    known, there = {*LITE_ENCODERS, *pretrain.ADAPTERS}, {folder.name for folder in WEIGHTS.iterdir()}
    assert known <= there <= known | {*pretrain_generator.RECIPES}
    assert total < 20e6, f"{total / 1e6:.1f} MB"


def test_adapters_are_made_by_one_call_and_load(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path / "cache"))
    folder = pretrain.train_adapters("adapters-image-text", tmp_path, items=120, steps=2)
    model, encoders = load_for_search(folder)
    assert encoders == {"image": "lite-image-a", "text": "lite-text-a"} and model.in_dims == {"image": 192, "text": 128}
    assert set(json.loads((folder / "fit.json").read_text())["tried"]) == {"0.2", "0.4"}
    assert {file.name for file in folder.iterdir()} == {"config.json", "encoders.json", "fit.json", "model.safetensors"}


def test_adapters_do_not_go_where_something_else_is(tmp_path):
    (tmp_path / "adapters-audio-text").mkdir()
    (tmp_path / "adapters-audio-text" / "mine.txt").touch()
    with pytest.raises(FuseMixLiteError, match="in use"):
        pretrain.train_adapters("adapters-audio-text", tmp_path, items=120, steps=1)


@pytest.mark.parametrize("name", pretrain.ADAPTERS)
def test_shipped_adapters_fit_the_shipped_encoders(name):
    recorded = json.loads((WEIGHTS / name / "encoders.json").read_text())["encoders"]
    for modality, encoder in recorded.items():
        now = resolve_encoder(encoder["name"])
        assert now.modality == modality and encoder["revision"] == now.revision
        assert encoder["preprocessing_hash"] == now.preprocessing_hash


@pytest.mark.parametrize("name", pretrain.ADAPTERS)
def test_shipped_adapters_find_new_scenes(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path))
    recipe = pretrain.ADAPTERS[name]
    test = scene_pairs(SoundingScenes(recipe["pair"], "test", 60), *recipe["encoders"].values(), progress=False)
    model, _ = load_for_search(WEIGHTS / name)
    found, lost = retrieval(model, test), retrieval(model, test.shuffled())
    assert all(by_k[1] > 50 and by_k[10] > 90 for by_k in found.values()), found  # guessing: 1.7 and 16
    assert all(by_k[1] < 20 for by_k in lost.values()), lost
