"""Real photos and human captions, where FUSEMIX_LITE_REAL names a folder with flickr8k.safetensors and .json."""

import os
from pathlib import Path

import pytest
import torch

from fusemix_lite import fit, load_latent_pairs, retrieval

FOLDER = os.environ.get("FUSEMIX_LITE_REAL")
pytestmark = pytest.mark.skipif(not FOLDER, reason="FUSEMIX_LITE_REAL is not set")


@pytest.fixture(scope="module")
def flickr8k():
    pack = Path(FOLDER) / "flickr8k.safetensors"
    specs = (f"{pack}:{key}" for key in ("image_mobilenetv2", "text_minilm", "caption_to_item"))
    return load_latent_pairs(*specs, split=pack.with_suffix(".json"))


def test_the_official_split(flickr8k):
    assert {name: (part.n_items, len(part)) for name, part in flickr8k.items()} == {
        "train": (6000, 30000),
        "val": (1000, 5000),
        "test": (1000, 5000),
        "unused": (91, 455),
    }
    names = [item for part in flickr8k.values() for item in part.item_ids]
    assert len(set(names)) == 8091 and all(name.endswith(".jpg") for name in names)


def test_real_pairs_beat_shuffled_pairs(flickr8k):
    train, test = flickr8k["train"].subset(1000, seed=0), flickr8k["test"].subset(200, seed=0)
    options = {"steps": 20, "batch_size": 64, "expansion": 1, "shared_dim": 128, "standardize": True, "progress": False}
    recalls = []
    for pairs in (train, train.shuffled(0)):
        found = retrieval(fit(pairs, **options).model, test)
        recalls.append(torch.tensor([recall[10] for recall in found.values()]))
    real, null = recalls
    assert (real > 20).all() and (null < 12).all()  # of 200 photos, chance is 5
