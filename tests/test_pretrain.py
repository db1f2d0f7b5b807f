"""Pre-training: every recipe runs, learns something, and leaves a folder that the ordinary loader takes."""

import pytest
import torch

from fusemix_lite import SoundingScenes, load_encoder, pretrain
from fusemix_lite.encoders import LITE_ENCODERS, WEIGHTS

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
    assert {folder.name for folder in WEIGHTS.iterdir()} == set(LITE_ENCODERS)
    assert total < 20e6, f"{total / 1e6:.1f} MB"
