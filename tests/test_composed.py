"""Encoders that are no single model: joined ones, and functions."""

import pickle

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
from PIL import Image

import fusemix_lite as fl
from fusemix_lite import FuseMixLiteError, SoundingScenes
from fusemix_lite.composed import JoinedEncoder
from fusemix_lite.encoders import load_encoder, resolve_encoder

RNG = np.random.default_rng(0)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (height, 40, 3), dtype=np.uint8)) for height in (40, 33, 64)]
SOUNDS = [RNG.normal(0, 0.1, length).astype(np.float32) for length in (32_000, 12_345, 800)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("encoders")
    kinds = {"bert": "bert", "other": "bert, spread", "dinov2": "dinov2", "whisper": "whisper", "ast": "ast"}
    return {name: tiny.save(base / name, kind) for name, kind in kinds.items()}


def test_joined_latents_are_those_of_the_parts_side_by_side(folders):
    a, b = load_encoder(folders["bert"]), load_encoder(folders["other"])
    both = load_encoder(f"{folders['bert']}+{folders['other']}")
    expected = torch.cat([a.encode(tiny.CAPTIONS), b.encode(tiny.CAPTIONS)], 1)
    for batch_size in (1, 2, 64):
        torch.testing.assert_close(both.encode(tiny.CAPTIONS, batch_size), expected, rtol=0, atol=1e-6)
    assert (both.dim, both.id, both.modality) == (32, "bert+other", "text")
    assert both.revision == f"{a.revision}+{b.revision}"
    assert both.encode([]).shape == (0, 32)
    again = load_encoder(both.name, revision=both.revision)
    assert (again.id, again.preprocessing_hash) == (both.id, both.preprocessing_hash)
    turned = resolve_encoder(f"{folders['other']}+{folders['bert']}")
    assert (turned.id, turned.revision) == ("other+bert", f"{b.revision}+{a.revision}")


def test_joined_encoders_of_sound_open_an_item_once_and_resample_it_for_each(folders):
    both = load_encoder(f"{folders['whisper']}+{folders['ast']}")
    opened = []
    items = [lambda sound=sound: opened.append(1) or (np.stack([sound, sound]), 16_000) for sound in SOUNDS]
    expected = torch.cat([load_encoder(folders[name]).encode(SOUNDS) for name in ("whisper", "ast")], 1)
    torch.testing.assert_close(both.encode(items), expected, rtol=0, atol=1e-5)
    assert len(opened) == len(SOUNDS)


def test_joined_layers_of_one_model_are_one_pass(folders, monkeypatch):
    both = load_encoder(f"{folders['dinov2']}@1+{folders['dinov2']}+{folders['dinov2']}@0")
    calls, forward = [], type(both.parts[0].model).forward
    monkeypatch.setattr(type(both.parts[0].model), "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    latents = both.encode(IMAGES)
    assert calls == [1]
    expected = torch.cat([load_encoder(f"{folders['dinov2']}{end}").encode(IMAGES) for end in ("@1", "", "@0")], 1)
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-6)


def test_the_inputs_are_made_without_the_models(folders):
    for name in ("bert", "dinov2"):
        whole = load_encoder(f"{folders[name]}+{folders[name]}@1")
        bare = pickle.loads(pickle.dumps(whole.without_model()))
        items = tiny.CAPTIONS if name == "bert" else IMAGES
        inputs = bare.to_inputs([bare.prepare(item) for item in items])
        torch.testing.assert_close(whole.encode_inputs(inputs), whole.encode(items), rtol=0, atol=0)
        assert bare.model is None and all(part.model is None for part in bare.parts)
        assert isinstance(whole, JoinedEncoder) and whole.parts[0].model is not None


def test_only_one_modality_can_be_joined(folders):
    with pytest.raises(FuseMixLiteError, match="one modality can be joined: bert text, dinov2 image"):
        load_encoder(f"{folders['bert']}+{folders['dinov2']}")
    with pytest.raises(FuseMixLiteError, match="has 2 parts and 1 revisions"):
        resolve_encoder("lite-text-a+lite-text-b", revision="0" * 64)
    with pytest.raises(FuseMixLiteError, match="unknown encoder "):
        load_encoder("lite-text-a+")
    with pytest.raises(FuseMixLiteError, match="has revision .*, not 1"):
        resolve_encoder("lite-text-a+lite-text-b", revision=f"{'1' * 64}+{'1' * 64}")


def test_joined_encoders_are_extracted_and_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path))
    world = SoundingScenes(size=3, captions=2)
    joined = fl.cached_latents(world, "lite-text-a+lite-text-b", progress=False)
    parts = [fl.cached_latents(world, name, progress=False).array[:] for name in ("lite-text-a", "lite-text-b")]
    np.testing.assert_allclose(joined.array[:], np.concatenate(parts, 1), atol=2e-3)
    assert joined.origin.encoder_id == "lite-text-a+lite-text-b"
    assert fl.cached_latents(world, "lite-text-a+lite-text-b", progress=False).path == joined.path


# --- functions ----------------------------------------------------------------------------------------------------------------


def lengths(captions):
    return [[len(caption), caption.count(" ")] for caption in captions]


def made(fn=lengths, **options):
    return fl.callable_encoder(fn, **{"id": "api/lengths", "modality": "text", "revision": "2026-11", **options})


def test_a_function_is_an_encoder():
    batches = []
    encoder = made(lambda captions: batches.append(len(captions)) or lengths(captions))
    latents = encoder.encode(["a dog", "a", "two red birds"], batch_size=2)
    assert latents.tolist() == [[5, 1], [1, 0], [13, 2]] and latents.dtype == torch.float32
    assert batches == [2, 1]  # nothing else was asked for
    assert (encoder.dim, batches) == (2, [2, 1, 1])  # one blank caption, once
    assert encoder.dim == 2 and len(batches) == 3
    assert made(dim=2).encode([]).shape == (0, 2)
    assert encoder.to("cpu") is encoder and encoder.device.type == "cpu"


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda rows: np.array(rows, np.float64), list])
def test_a_function_may_give_arrays_tensors_or_lists(kind):
    assert made(lambda captions: kind(lengths(captions))).encode(["a dog"]).tolist() == [[5, 1]]


def test_a_function_gets_what_every_encoder_gets():
    seen = []
    picture = made(lambda items: seen.extend(items) or torch.zeros(len(items), 1), modality="image")
    picture.encode([Image.new("L", (4, 4), 7), lambda: Image.new("CMYK", (4, 4))])
    assert [item.mode for item in seen] == ["RGB", "RGB"]
    seen.clear()
    sound = made(lambda items: seen.extend(items) or torch.zeros(len(items), 1), modality="audio", rate=8_000)
    sound.encode([SOUNDS[0], (np.stack([SOUNDS[1]] * 2), 16_000)])
    assert [(item.dtype, item.ndim) for item in seen] == [(np.float32, 1)] * 2 and len(seen[0]) == 16_000
    seen.clear()
    made(lambda items: seen.extend(items) or torch.zeros(len(items), 1), clean=True).encode(["A Dog!"])
    assert seen == ["a dog"]


def test_a_function_is_extracted_and_goes_on_where_it_failed(tmp_path):
    world = SoundingScenes(size=4, captions=2)
    store = fl.extract(world, made(), tmp_path / "latents", progress=False)
    assert store.array[:].tolist() == lengths(world.fields("text")[1])
    origin = store.origin
    assert (origin.encoder_id, origin.encoder_revision) == ("api/lengths", "2026-11")
    with pytest.raises(FuseMixLiteError, match="choose another folder"):
        fl.extract(world, made(revision="2026-12"), tmp_path / "latents", progress=False)

    def down(captions):
        raise ConnectionError("429: too many requests\nand more")

    with pytest.raises(FuseMixLiteError, match=r"api/lengths failed on 8 items \(ConnectionError: 429: too many requests\)"):
        fl.extract(world, made(down, dim=2), tmp_path / "other", progress=False)
    again = fl.extract(world, made(dim=2), tmp_path / "other", progress=False)
    assert np.array_equal(again.array[:], store.array[:])


def test_its_identity_is_what_it_was_told():
    base = made()
    assert base.preprocessing_hash == made(lambda captions: captions).preprocessing_hash
    others = [made(clean=True), made(modality="audio"), made(modality="audio", rate=8_000), made(modality="image")]
    assert len({encoder.preprocessing_hash for encoder in (base, *others)}) == 5


WRONG = {
    "too few": (lambda items: [[1.0]], r"gave \(1, 1\) for 2 items"),
    "flat": (lambda items: [1.0, 2.0], r"gave \(2,\) for 2 items"),
    "no numbers": (lambda items: [["a"], ["b"]], r"failed on 2 items \(\w+Error: "),
    "nothing": (lambda items: None, r"failed on 2 items"),
    "other width": (lambda items: [[1.0, 2.0, 3.0]] * 2, "gave 3 dimensions where it gave 2 before"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_a_function_gives_is_checked(fault):
    fn, message = WRONG[fault]
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        made(fn, dim=2).encode(["a dog", "a bell"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "smell"}, 'modality "smell": choose one of image, text, audio'),
        ({"id": ""}, "needs a function, an id and a revision"),
        ({"revision": ""}, "needs a function, an id and a revision"),
        ({"fn": None}, "needs a function, an id and a revision"),
        ({"modality": "image", "clean": True}, "only captions can be cleaned"),
    ],
)
def test_a_function_without_identity_is_refused(options, message):
    with pytest.raises(FuseMixLiteError, match=message):
        made(**options)


def test_bad_items_are_named_before_the_function_is_asked():
    with pytest.raises(FuseMixLiteError, match="item 1: .*is no caption"):
        made(lambda captions: 1 / 0).encode(["a dog", " "])


def test_a_worker_gets_everything_but_the_function():
    encoder = made(lambda captions: torch.ones(len(captions), 2))  # a lambda cannot be pickled
    bare = pickle.loads(pickle.dumps(encoder.without_model()))
    assert bare.to_inputs([bare.prepare("a dog")]) == {"items": ["a dog"]}
    sound = made(lambda items: [[float(len(item))] for item in items if isinstance(item, np.ndarray)], modality="audio")
    assert sound.encode_inputs({"items": [torch.zeros(500)]}).tolist() == [[500.0]]  # arrays that came as tensors
