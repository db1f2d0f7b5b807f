"""Every class of public encoder against the bare library call, on folders of the same class with small random weights.

The bare call sees one item at a time, so that nothing is padded to a batch; the encoder sees them in batches. `pytest -s`
prints the table of largest differences.
"""

import json
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
from PIL import Image
from tiny_encoders import hf

from fusemix_lite import FuseMixLiteError, encoders
from fusemix_lite.encoders import encode_together, load_encoder, load_encoders, resolve_encoder, share_a_pass

pytestmark = [
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),  # of torch, inside WavLM
    pytest.mark.filterwarnings("ignore:At least one mel filter"),
]

RNG = np.random.default_rng(0)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (height, 40, 3), dtype=np.uint8)) for height in (40, 33, 64, 40, 50)]
SOUNDS = [RNG.normal(0, 0.1, length).astype(np.float32) for length in (32_000, 12_345, 800, 40_000, 31_999)]
WAVES = [RNG.normal(0, 0.1, length).astype(np.float32) for length in (3_200, 1_234, 800, 4_000, 3_200)]
ITEMS = {"image": IMAGES, "text": tiny.CAPTIONS, "audio": SOUNDS}


class Class(NamedTuple):
    """A folder to make, the name that loads it, and who computes the latent of one item in its stead."""

    checked_against: str
    save: Any
    bare: Any  # folder -> (item -> latent)
    name: str = "{}"
    items: list | None = None


def images(kind, pick, **options):
    """Of a transformers class for pictures."""

    def bare(folder):
        model = kind.from_pretrained(folder, dtype=torch.float32, **options).eval()
        processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
        return lambda image: pick(model(**processor(image, return_tensors="pt")))[0]

    return bare


def texts(kind, pick, prefix="", longest=32):
    def bare(folder):
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        cut = {"truncation": True, "max_length": longest, "return_tensors": "pt"}
        return lambda caption: pick(model(**tokenizer(prefix + caption, **cut)))[0]

    return bare


def sounds(kind, pick, cut=None, part=None):
    def bare(folder):
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        model = getattr(model, part) if part else model
        features = hf.AutoFeatureExtractor.from_pretrained(folder)

        def latent(sound):
            inputs = features(sound[:cut], sampling_rate=16_000, return_tensors="pt")
            if "is_longer" in inputs:
                inputs["is_longer"] = torch.tensor([[False]])
            return pick(model(**inputs))[0]

        return latent

    return bare


def whisper(folder):
    model = hf.WhisperModel.from_pretrained(folder, dtype=torch.float32).eval()
    features = hf.AutoFeatureExtractor.from_pretrained(folder)

    def latent(sound):
        real = -(-min(len(sound), 32_000) // 320)  # a frame of the encoder is 20 ms; the chunk is 2 s
        inputs = features(sound, sampling_rate=16_000, return_tensors="pt")["input_features"]
        return model.encoder(inputs).last_hidden_state[0, :real].mean(0)

    return latent


def log_mel_resnet(folder):
    model = hf.ResNetModel.from_pretrained(folder, dtype=torch.float32).eval()
    features = hf.AutoFeatureExtractor.from_pretrained(folder)

    def latent(sound):
        mels = features(sound, sampling_rate=16_000, return_tensors="pt")["input_features"]
        return model(mels[:, None]).last_hidden_state.mean((2, 3))[0]

    return latent


def timm_model(folder):
    import timm
    from safetensors.torch import load_file

    config = timm.models._hub.load_model_config_from_path(folder)
    classes = {"num_classes": config[0]["num_classes"]}  # which older versions keep apart
    model = timm.create_model(config[1], **classes | config[2]).eval()  # with its classifier
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.reset_classifier(0)
    data = {key: config[0][key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
    transform = timm.data.create_transform(**data, is_training=False)
    return lambda image: model(transform(image)[None])[0]


def open_clip_model(what):
    def bare(folder):
        import open_clip

        model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        model.eval()
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        if what == "text":
            return lambda caption: model.encode_text(tokenizer([caption]))[0]
        return lambda image: model.encode_image(transform(image)[None])[0]

    return bare


def cls(output):
    return output.last_hidden_state[:, 0]


def mean(output):
    return output.last_hidden_state.mean(1)


def over_map(output):
    return output.last_hidden_state.mean((2, 3))


def pooler(output):
    return output.pooler_output


def saved(kind, **settings):
    return lambda folder: tiny.save(folder, kind, **settings)


def with_tokenizer(folder):
    tiny.save(folder, "clip")
    tiny.tokenizer().save_pretrained(folder)


CLASSES = {
    "DINOv2, CLS": Class("Dinov2Model", saved("dinov2"), images(hf.Dinov2Model, cls)),
    "DINOv2, mean": Class("Dinov2Model", saved("dinov2", pooling="mean"), images(hf.Dinov2Model, mean)),
    "DINOv3 ViT, CLS": Class("DINOv3ViTModel", saved("dinov3"), images(hf.DINOv3ViTModel, cls)),
    "CLIP's vision class (MLCD)": Class("CLIPVisionModel", saved("clip vision"), images(hf.CLIPVisionModel, pooler)),
    "CLIP, tower of both, image": Class("CLIPVisionModel", with_tokenizer, images(hf.CLIPVisionModel, pooler), "{}#image"),
    "ResNet": Class("ResNetModel", saved("resnet", pooling="pooler"), images(hf.ResNetModel, over_map)),
    "ResNet, mean": Class("ResNetModel", saved("resnet", pooling="mean"), images(hf.ResNetModel, over_map)),
    "MobileNetV2": Class("MobileNetV2Model", saved("mobilenet_v2"), images(hf.MobileNetV2Model, over_map)),
    "timm ViT": Class("timm model(x)", lambda folder: tiny.save_timm(folder, **tiny.TIMM_VIT), timm_model, "timm:{}"),
    "timm ConvNet": Class(
        "timm model(x)", lambda folder: tiny.save_timm(folder, "resnet10t", channels=(8, 8, 16, 16)), timm_model
    ),
    "open_clip, image": Class("encode_image", tiny.save_open_clip, open_clip_model("image"), "open_clip:{}"),
    "open_clip, text": Class("encode_text", tiny.save_open_clip, open_clip_model("text"), "open_clip:{}#text"),
    "BERT, CLS (BGE)": Class("BertModel", saved("bert, spread", pooling="cls"), texts(hf.BertModel, cls)),
    "BERT, mean": Class("BertModel", saved("bert"), texts(hf.BertModel, mean)),
    "BERT, mean, prefix (E5)": Class("BertModel", saved("bert", prefix="a dog "), texts(hf.BertModel, mean, "a dog ")),
    "BERT, last token": Class(
        "BertModel", saved("bert, spread", pooling="last"), texts(hf.BertModel, lambda output: output.last_hidden_state[:, -1])
    ),
    "sentence folder, mean (all-MiniLM)": Class(
        "BertModel", lambda folder: tiny.save_sentence(folder, mean_tokens=True), texts(hf.BertModel, mean, longest=16)
    ),
    "ModernBERT, CLS (GTE)": Class("ModernBertModel", saved("modernbert", pooling="cls"), texts(hf.ModernBertModel, cls)),
    "bag of words": Class("BertModel", saved("bag of words"), texts(hf.BertModel, mean)),
    "CLIP's text class": Class("CLIPTextModel", saved("clip text"), texts(hf.CLIPTextModel, pooler)),
    "CLIP, tower of both, text": Class("CLIPTextModel", with_tokenizer, texts(hf.CLIPTextModel, pooler), "{}#text"),
    "AST": Class("ASTModel", saved("ast"), sounds(hf.ASTModel, pooler)),
    "HTS-AT (CLAP's)": Class("ClapAudioModel", saved("clap audio"), sounds(hf.ClapAudioModel, pooler, cut=32_000)),
    "HTS-AT, fused": Class("ClapAudioModel", saved("clap audio, fused"), sounds(hf.ClapAudioModel, pooler, cut=32_000)),
    "HTS-AT, tower of CLAP": Class(
        "ClapModel.audio_model", saved("clap"), sounds(hf.ClapModel, pooler, cut=32_000, part="audio_model")
    ),
    "Whisper": Class("WhisperModel.encoder", saved("whisper"), whisper),
    "Whisper with its decoder": Class("WhisperModel.encoder", saved("whisper with decoder"), whisper),
    "log-mel ResNet": Class("ResNetModel", saved("log-mel resnet", pooling="pooler"), log_mel_resnet),
    "Wav2Vec2, base": Class("Wav2Vec2Model", saved("wav2vec2"), sounds(hf.Wav2Vec2Model, mean), items=WAVES),
    "Wav2Vec2, large": Class("Wav2Vec2Model", saved("wav2vec2, layer norm"), sounds(hf.Wav2Vec2Model, mean), items=WAVES),
    "HuBERT": Class("HubertModel", saved("hubert"), sounds(hf.HubertModel, mean), items=WAVES),
    "WavLM": Class("WavLMModel", saved("wavlm"), sounds(hf.WavLMModel, mean), items=WAVES),
}
OPTIONAL = {"timm": "timm", "open_clip": "open_clip"}


class Case(NamedTuple):
    folder: Any
    name: str
    items: list
    expected: torch.Tensor


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """label -> Case, made once."""
    made = {}

    def get(label):
        for word, module in OPTIONAL.items():
            if label.startswith(word):
                pytest.importorskip(module)
        if label not in made:
            known = CLASSES[label]
            folder = tmp_path_factory.mktemp("encoders") / "encoder"
            known.save(folder)
            name = known.name.format(folder)
            items = known.items or ITEMS[resolve_encoder(name).modality]
            with encoders._quiet_transformers():
                bare = known.bare(folder)
            with torch.inference_mode():
                made[label] = Case(folder, name, items, torch.stack([bare(item) for item in items]))
        return made[label]

    return get


@pytest.fixture(scope="module")
def differences():
    """label -> the largest difference from the bare call (see `far`); shown at the end (`pytest -s`)."""
    found = {}
    yield found
    print(f"\n\n| {'encoder':34} | {'checked against':22} | largest difference |\n|{'-' * 36}|{'-' * 24}|{'-' * 18}--:|")
    for label, difference in found.items():
        print(f"| {label:34} | {CLASSES[label].checked_against:22} | {difference:18.1e} |")


def far(encoder, case, batch_size=64):
    """Largest absolute difference of an encoder's latents from those of the bare call, in units of the larger of 1 and the
    largest latent."""
    latents = encoder.encode(case.items, batch_size)
    assert latents.dtype == torch.float32 and latents.shape == (len(case.items), encoder.dim)
    return (latents - case.expected).abs().max().item() / max(1.0, case.expected.abs().max().item())


@pytest.mark.parametrize("label", CLASSES)
def test_equals_the_bare_library_call_at_every_batch_size(label, case, differences):
    found = case(label)
    encoder = load_encoder(found.name)
    assert found.expected.std(0).max() > 1e-2  # items differ, so the comparison says something
    differences[label] = max(far(encoder, found, batch_size) for batch_size in (1, 2, 64))
    assert differences[label] < 1e-5
    turned = found._replace(items=found.items[::-1], expected=found.expected.flip(0))
    assert far(encoder, turned) < 1e-5


# --- what these tests would catch ---------------------------------------------------------------------------------------------


def without_mask(monkeypatch, encoder):
    whole = encoders.pool
    monkeypatch.setattr(encoders, "pool", lambda output, pooling, mask, layer: whole(output, pooling, None, layer))


def without_prefix(monkeypatch, encoder):
    vars(encoder)["prefix"] = ""


def other_pooling(monkeypatch, encoder):
    vars(encoder)["pooling"] = "mean"


def padded_together(monkeypatch, encoder):
    """As if its first norm did not mind the padding."""
    encoder.model.config.feat_extract_norm = "layer"


def cut_by_lot(monkeypatch, encoder):
    extractor = type(encoder.processor)
    call = extractor.__call__

    def whole(self, batch, **options):
        return call(
            self, [SOUNDS[3] if len(sound) == 32_000 and sound[0] == SOUNDS[3][0] else sound for sound in batch], **options
        )

    monkeypatch.setattr(extractor, "__call__", whole)


def samples_for_frames(monkeypatch, encoder):
    monkeypatch.setattr(encoders, "_frames", lambda samples, config: samples * 0 + 3 if torch.is_tensor(samples) else 10**6)


BREAKS = {
    ("BERT, mean", without_mask): None,
    ("BERT, last token", without_mask): None,
    ("Whisper", without_mask): None,
    ("HuBERT", without_mask): None,
    ("BERT, mean, prefix (E5)", without_prefix): None,
    ("BERT, CLS (BGE)", other_pooling): None,
    ("DINOv2, CLS", other_pooling): None,
    ("Wav2Vec2, base", padded_together): None,
    ("HTS-AT (CLAP's)", cut_by_lot): None,
    ("Wav2Vec2, large", samples_for_frames): RuntimeError,  # shapes that do not fit
}


@pytest.mark.parametrize(("label", "broken"), BREAKS, ids=lambda value: getattr(value, "__name__", value))
def test_a_break_would_be_seen(label, broken, case, monkeypatch):
    found = case(label)
    encoder = load_encoder(found.name)
    broken(monkeypatch, encoder)
    error = BREAKS[label, broken]
    with pytest.raises(error) if error else nullcontext():
        assert far(encoder, found) > 1e-3  # a hundred times what is allowed


def test_htsat_does_not_depend_on_luck_nor_leaves_it_changed(case):
    found = case("HTS-AT, fused")
    encoder = load_encoder(found.name)
    np.random.seed(0)  # noqa: NPY002
    first = encoder.encode(found.items)
    np.random.seed(1)  # noqa: NPY002
    torch.testing.assert_close(encoder.encode(found.items), first, rtol=0, atol=0)


# --- as they were published ---------------------------------------------------------------------------------------------------


def renamed(folder, change):
    """The weights of a folder under other names."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({change(name): weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def old_clip(folder):
    """CLIP's vision class wrote its names with the tower before them."""
    tiny.save(folder, "clip vision", half=False)
    renamed(folder, lambda name: f"vision_model.{name}")


def with_a_head(model, kind, make_processor):
    """A checkpoint of the class that was trained, with more than an encoder in it."""

    def make(folder):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kind(model().config).save_pretrained(folder)
        make_processor().save_pretrained(folder)

    return make


def old_weight_norm(folder):
    """Wav2Vec2 as it was pre-trained, its weight norm under the names of an older torch."""
    with_a_head(tiny.PARTS["wav2vec2, layer norm"][0], hf.Wav2Vec2ForPreTraining, tiny.waves)(folder)
    before, after = "conv.parametrizations.weight.original", "conv.weight_"
    renamed(folder, lambda name: name.replace(f"{before}0", f"{after}g").replace(f"{before}1", f"{after}v"))


def whole_processor(folder):
    """CLAP with its processor, saved as one by today's transformers."""
    tiny.save(folder, "clap", half=False)
    (folder / "preprocessor_config.json").unlink()
    hf.ClapProcessor(tiny.clap_features(), tiny.tokenizer()).save_pretrained(folder)


def names_of_last_year(folder):
    """DINOv3's processor under the name that it had in transformers 4."""
    tiny.save(folder, "dinov3", half=False)
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace("ImageProcessor", "ImageProcessorFast"))


PUBLISHED = {
    "CLIP's vision class": (old_clip, hf.CLIPVisionModel, "image", "pooler"),
    "Wav2Vec2": (old_weight_norm, hf.Wav2Vec2Model, "audio", "mean"),
    "AST": (with_a_head(tiny.ast, hf.ASTForAudioClassification, tiny.PARTS["ast"][1]), hf.ASTModel, "audio", "pooler"),
    "Whisper": (
        with_a_head(lambda: tiny.whisper(1), hf.WhisperForConditionalGeneration, tiny.whisper_features),
        hf.WhisperModel,
        "audio",
        "mean",
    ),
    "CLAP": (whole_processor, hf.ClapModel, "audio", "pooler"),
    "DINOv3": (names_of_last_year, hf.DINOv3ViTModel, "image", "cls"),
}


@pytest.mark.parametrize("label", PUBLISHED)
def test_checkpoints_are_read_as_they_were_published(label, tmp_path):
    make, kind, modality, pooling = PUBLISHED[label]
    make(tmp_path / "encoder")
    encoder = load_encoder(tmp_path / "encoder")
    assert (encoder.modality, encoder.pooling) == (modality, pooling)
    with encoders._quiet_transformers():
        bare = kind.from_pretrained(tmp_path / "encoder", dtype=torch.float32)
    part = {"CLAP": "audio_model", "Whisper": "encoder"}.get(label)
    bare = getattr(bare, part) if part else bare
    assert type(bare) is type(encoder.model)
    ours, theirs = encoder.model.state_dict(), bare.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    if label == "CLAP":
        assert load_encoder(f"{tmp_path / 'encoder'}#text").encode(["a dog"]).shape == (1, 16)


# --- layers -------------------------------------------------------------------------------------------------------------------

LAYERED = ("DINOv2, CLS", "BERT, mean", "Whisper", "HuBERT", "timm ViT", "open_clip, image", "DINOv3 ViT, CLS")


@pytest.mark.parametrize("label", LAYERED)
def test_several_layers_are_one_pass_and_the_latents_of_each(label, case, monkeypatch):
    found = case(label)
    names = [f"{found.name}{end}" for end in ("@0", "@2", "@2,0", "")]
    loaded = load_encoders(names, "cpu")
    assert all(one.model is loaded[0].model and share_a_pass(one, loaded[0]) for one in loaded)
    calls, forward = [], type(loaded[0].model).forward
    monkeypatch.setattr(
        type(loaded[0].model), "forward", lambda self, *args, **given: calls.append(1) or forward(self, *args, **given)
    )
    inputs = loaded[0].to_inputs([loaded[0].prepare(item) for item in found.items])
    together = encode_together(loaded, inputs)
    assert len(calls) == 1
    for name, latents in zip(names, together, strict=True):
        alone = load_encoder(name)
        torch.testing.assert_close(latents, alone.encode(found.items), rtol=0, atol=1e-6)
    torch.testing.assert_close(together[2], torch.cat([together[1], together[0]], 1), rtol=0, atol=0)
    assert (loaded[2].layer, loaded[2].dim) == ((2, 0), 2 * loaded[0].dim)
    assert resolve_encoder(names[2]).id.endswith("@2,0")
    assert len({resolve_encoder(name).preprocessing_hash for name in names}) == 4


@pytest.mark.parametrize("layer", [1, 2])
def test_a_layer_of_timm_equals_the_librarys_own_intermediates(layer, case):
    timm = pytest.importorskip("timm")
    found = case("timm ViT")
    model = timm.create_model(f"local-dir:{found.folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    pixels = torch.stack([transform(image) for image in found.items])
    options = {"return_prefix_tokens": True, "norm": False, "output_fmt": "NLC", "intermediates_only": True}
    with torch.inference_mode():
        ((_, prefix),) = model.forward_intermediates(pixels, indices=[layer - 1], **options)
    torch.testing.assert_close(load_encoder(f"{found.name}@{layer}").encode(found.items), prefix[:, 0], rtol=0, atol=1e-5)


def test_layers_that_a_library_does_not_show_are_refused(case):
    for label, end in {"open_clip, text": "@1", "timm ConvNet": "@1", "AST": "@1", "HTS-AT (CLAP's)": "@1"}.items():
        with pytest.raises(FuseMixLiteError, match="leave out @1"):
            load_encoder(case(label).name + end)


@pytest.mark.parametrize("library, first", [("timm", "model.safetensors"), ("open_clip", "open_clip_model.safetensors")])
def test_pickled_weights_beside_safetensors_are_not_taken(library, first, tmp_path):
    """Both libraries prefer a pickled file of a common name to safetensors of an uncommon one, of which the revision is."""
    pytest.importorskip(library)
    pickled = tmp_path / "model" / ("pytorch_model.bin" if library == "timm" else "open_clip_pytorch_model.bin")
    folder = tiny.save_timm(pickled.parent, **tiny.TIMM_VIT) if library == "timm" else tiny.save_open_clip(pickled.parent)
    latents = load_encoder(folder).encode([IMAGES[0]])
    pickled.write_bytes(b"pickled")
    assert torch.equal(load_encoder(folder).encode([IMAGES[0]]), latents)
    (folder / first).rename(folder / "mine.safetensors")
    with pytest.raises(FuseMixLiteError, match=f"{library} would read {pickled.name}, which is pickled: .* {first}"):
        load_encoder(folder)


# --- length -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_tokenizer_that_pads_on_the_left_moves_no_caption(tmp_path, pooling):
    tiny.save(tmp_path, "bert, spread", pooling=pooling)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told | {"padding_side": "left"}))
    encoder = load_encoder(tmp_path)
    torch.testing.assert_close(encoder.encode(tiny.CAPTIONS), encoder.encode(tiny.CAPTIONS, 1), rtol=0, atol=1e-5)


def test_a_caption_longer_than_robertas_positions_is_cut(tmp_path):
    """Its positions are counted from behind that of padding, so that two of them are none; its tokenizer may know no end."""
    tiny.save(tmp_path, "bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = hf.RobertaConfig(**tiny.TEXT | {"max_position_embeddings": 34, "pad_token_id": 1})
        model = hf.RobertaModel(config).eval()
    model.save_pretrained(tmp_path)
    limits = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(limits | {"model_max_length": 10**30}))
    encoder = load_encoder(tmp_path)
    assert encoder.encode(["a dog barks " * 40]).isfinite().all()
    assert encoder.to_inputs(["a dog barks " * 40])["input_ids"].shape == (1, 32)


# --- precision ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["DINOv2, CLS", "BERT, mean", "Whisper", "timm ViT", "Wav2Vec2, base"])
def test_bf16_gives_nearly_the_same_as_float32(label, case):
    found = case(label)
    encoder = load_encoder(found.name)
    latents = encoder.encode(found.items, precision="bf16")
    assert latents.dtype == torch.float32 and torch.equal(encoder.encode(found.items), encoder.encode(found.items))
    scale = found.expected.abs().max()
    assert 0 < (latents - found.expected).abs().max() < 0.1 * scale
    with pytest.raises(FuseMixLiteError, match="precision = 'int8': choose one of fp32, bf16, fp16"):
        encoder.encode(found.items, precision="int8")
