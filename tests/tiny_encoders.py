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


def bert(layers: int = 2, **options) -> hf.BertModel:
    config = hf.BertConfig(
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


PARTS = {
    "dinov2": (dinov2, image_processor),
    "resnet": (lambda: resnet(3), image_processor),
    "mobilenet_v2": (mobilenet_v2, lambda: image_processor(64)),
    "swin": (swin, image_processor),
    "ijepa": (ijepa, image_processor),
    "bert": (bert, tokenizer),
    "bag of words": (lambda: bert(layers=0), tokenizer),
    "whisper": (whisper, whisper_features),
    "whisper with decoder": (lambda: whisper(decoder_layers=1), whisper_features),
    "log-mel resnet": (lambda: resnet(1), whisper_features),
    "ast": (ast, lambda: hf.ASTFeatureExtractor(num_mel_bins=16, max_length=200)),
}


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
