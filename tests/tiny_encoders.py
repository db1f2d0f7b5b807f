"""Model folders with random weights, of the very classes that public encoders have, small enough to build in a test."""

import json
from functools import cache
from pathlib import Path

import torch

from fusemix_lite.torchvision_fix import import_torchvision_safely

import_torchvision_safely()

import transformers as hf  # noqa: E402

VOCABULARY = 300
CAPTIONS = [
    "a dog barks",
    "two red birds sing slowly over the left of a green field while a siren comes nearer",
    "a bell",
    "rain falls on three drums and a guitar",
    "one small clock ticks",
]


@cache  # training breaks ties differently each time
def tokenizer() -> hf.PreTrainedTokenizerBase:
    from tokenizers import BertWordPieceTokenizer

    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(CAPTIONS, vocab_size=VOCABULARY, min_frequency=1, show_progress=False)
    return hf.BertTokenizerFast(tokenizer_object=pieces._tokenizer, model_max_length=32)


def image_processor(size: int = 32) -> hf.BitImageProcessor:
    return hf.BitImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def whisper_features() -> hf.WhisperFeatureExtractor:
    return hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2)


def bert(layers: int = 2, spread: float = 0.02, **options) -> hf.BertModel:
    """With a wide spread of its weights the first token hears of the others, as in a trained one."""
    config = hf.BertConfig(
        initializer_range=spread,
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return hf.BertModel(config, **options)


def dinov2() -> hf.Dinov2Model:
    config = hf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    return hf.Dinov2Model(config)


def resnet(channels: int) -> hf.ResNetModel:
    config = hf.ResNetConfig(num_channels=channels, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return with_statistics(hf.ResNetModel(config))


def mobilenet_v2() -> hf.MobileNetV2Model:
    """The class of the common ImageNet checkpoint, a tenth as wide; its map has 1,280 channels at every width."""
    model = with_statistics(hf.MobileNetV2Model(hf.MobileNetV2Config(image_size=64, depth_multiplier=0.1)))
    for weights in model.parameters():
        if weights.ndim == 4:  # the initial ones are so small that nothing gets through fifty layers
            torch.nn.init.kaiming_normal_(weights, nonlinearity="relu")
    return model


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Batch statistics as a trained model has them."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


def swin() -> hf.SwinModel:
    """Tokens, but none that stands for the class; pooled by a mean of its own."""
    return hf.SwinModel(hf.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2))


def ijepa() -> hf.IJepaModel:
    """Tokens only: neither a class token nor a pooled output."""
    config = hf.IJepaConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        pooler_output_size=16,
    )
    return hf.IJepaModel(config, add_pooling_layer=False)


def whisper(decoder_layers: int = 0) -> hf.WhisperModel:
    config = hf.WhisperConfig(
        vocab_size=8,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=decoder_layers,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        num_mel_bins=16,
        max_source_positions=100,
        max_target_positions=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return hf.WhisperModel(config)


def ast() -> hf.ASTModel:
    config = hf.ASTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=200,
        num_mel_bins=16,
    )
    return hf.ASTModel(config)


def dinov3() -> hf.DINOv3ViTModel:
    config = hf.DINOv3ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    return hf.DINOv3ViTModel(config)


def dinov3_processor() -> hf.DINOv3ViTImageProcessor:
    return hf.DINOv3ViTImageProcessor(size={"height": 32, "width": 32})


VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**VISION, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 3}  # CLS, SEP


def clip_vision() -> hf.CLIPVisionModel:
    return hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION, image_size=32, patch_size=8))


def clip_text() -> hf.CLIPTextModel:
    return hf.CLIPTextModel(hf.CLIPTextConfig(**TEXT))


def clip() -> hf.CLIPModel:
    vision = {**VISION, "image_size": 32, "patch_size": 8}
    return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=8))


def modernbert() -> hf.ModernBertModel:
    """What GTE's newest stands on."""
    config = hf.ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=32,
        local_attention=4,
        initializer_range=0.3,
        global_attn_every_n_layers=3,
        **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    )
    return hf.ModernBertModel(config)


HTSAT = {
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "patch_embeds_hidden_size": 4,
    "hidden_size": 32,
    "spec_size": 64,
    "num_mel_bins": 32,
    "window_size": 2,
}


def clap_audio(fusion: bool = False) -> hf.ClapAudioModel:
    return with_statistics(hf.ClapAudioModel(hf.ClapAudioConfig(**HTSAT, enable_fusion=fusion)))


def clap() -> hf.ClapModel:
    return with_statistics(hf.ClapModel(hf.ClapConfig(text_config=TEXT, audio_config=HTSAT, projection_dim=8)))


def clap_features(truncation: str = "rand_trunc") -> hf.ClapFeatureExtractor:
    """Of at most two seconds."""
    return hf.ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=16_000,
        hop_length=320,
        max_length_s=2,
        fft_window_size=512,
        frequency_max=8_000,
        truncation=truncation,
    )


WAVES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_stride": (8, 5, 4),  # a frame is 10 ms
    "conv_kernel": (16, 10, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}  # as the large ones have it


def waves() -> hf.Wav2Vec2FeatureExtractor:
    return hf.Wav2Vec2FeatureExtractor()


PARTS = {
    "dinov2": (dinov2, image_processor),
    "dinov3": (dinov3, dinov3_processor),
    "clip vision": (clip_vision, image_processor),
    "clip text": (clip_text, tokenizer),
    "clip": (clip, image_processor),
    "modernbert": (modernbert, tokenizer),
    "clap audio": (clap_audio, clap_features),
    "clap audio, fused": (lambda: clap_audio(fusion=True), lambda: clap_features("fusion")),
    "clap": (clap, clap_features),
    "wav2vec2": (lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WAVES)), waves),
    "wav2vec2, layer norm": (lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WAVES, **LAYER_NORM)), waves),
    "hubert": (lambda: hf.HubertModel(hf.HubertConfig(**WAVES, **LAYER_NORM)), waves),
    "wavlm": (lambda: hf.WavLMModel(hf.WavLMConfig(**WAVES, **LAYER_NORM)), waves),
    "resnet": (lambda: resnet(3), image_processor),
    "mobilenet_v2": (mobilenet_v2, lambda: image_processor(64)),
    "swin": (swin, image_processor),
    "ijepa": (ijepa, image_processor),
    "bert": (bert, tokenizer),
    "bert, spread": (lambda: bert(spread=0.3), tokenizer),
    "bag of words": (lambda: bert(layers=0), tokenizer),
    "whisper": (whisper, whisper_features),
    "whisper with decoder": (lambda: whisper(decoder_layers=1), whisper_features),
    "log-mel resnet": (lambda: resnet(1), whisper_features),
    "ast": (ast, lambda: hf.ASTFeatureExtractor(num_mel_bins=16, max_length=200)),
}


def save_sentence(folder: Path, kind: str = "bert", more: tuple[str, ...] = ("Normalize",), **pooling: bool) -> Path:
    """A folder as sentence-transformers writes it: the model, and what it does with its tokens."""
    save(folder, kind)
    steps = [("Transformer", ""), ("Pooling", "1_Pooling"), *((name, f"{i}_{name}") for i, name in enumerate(more, 2))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    flags = {f"pooling_mode_{name}": on for name, on in {"cls_token": False, "mean_tokens": False, **pooling}.items()}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **flags}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    return folder


def save_timm(folder: Path, architecture: str = "vit_tiny_patch16_224", **options) -> Path:
    """A folder as timm writes it for the hub."""
    import timm
    from timm.models._hub import save_for_hf

    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = options.get("img_size", 224)  # said in the file too: not every timm asks the model
        told = {"pretrained_cfg_overlay": {"input_size": (3, size, size)}}
        model = with_statistics(timm.create_model(architecture, num_classes=5, **told, **options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # the initial ones are so small that a picture hardly matters
                parameter.uniform_(0.5, 1) if parameter.ndim == 1 else parameter.mul_(10)
    save_for_hf(model, folder, model_args=options, safe_serialization=True)
    return folder


TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def save_open_clip(folder: Path) -> Path:
    """A folder as open_clip writes it for the hub, with its own tokenizer: a caption's 20 tokens out of 49,408."""
    import open_clip
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 2, "width": 16, "patch_size": 8, "head_width": 8}
    text = {"context_length": 20, "vocab_size": 49_408, "width": 8, "heads": 2, "layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=text).eval()
    folder.mkdir()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", {"format": "pt"})
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.48, 0.45, 0.40], "std": [0.26, 0.26, 0.27]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def save(folder: Path, kind: str, half: bool = True, **settings: str) -> Path:
    """Write one kind of encoder to a folder, in fp16 as ours are shipped; `settings` become fusemix_lite.json."""
    make_model, make_processor = PARTS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_model().eval()
    model = model.half() if half else model
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    if settings:
        (folder / "fusemix_lite.json").write_text(json.dumps(settings))
    return folder
