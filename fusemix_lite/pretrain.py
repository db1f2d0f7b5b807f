"""Everything in the package that was trained: ``python -m fusemix_lite.pretrain lite-image-a`` or ``adapters-image-text``.

The six lite encoders are pre-trained each on one modality alone: none ever sees a pair of modalities. Images and sounds: two
mildly augmented views of an item attract each other and repel the other items (SimCLR, Chen et al. 2020); the stronger encoder
of a modality also learns to name tags, as encoders supervised on ImageNet or AudioSet do. Text: words left out are predicted
from the rest of the caption. Two sets of adapters then align such encoders on pairs, so that a search works at once. The
weights in the package come from the recipes below.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .datasets import SoundingScenes
from .encoders import WEIGHTS, resolve_encoder
from .losses import symmetric_infonce
from .scenes import BACKGROUNDS, COLOURS, KINDS, Scene
from .torchvision_fix import import_torchvision_safely

DIM = 128  # of every latent but those of the two ConvNets
CONV_DIM = 192
MELS = 64

# a, the stronger one: a ConvNet that also learns tags; a bag of words. b: a transformer that is given no label at all.
RECIPES = {
    "lite-image-a": {"items": 16_000, "batch": 128, "steps": 1_200, "lr": 2e-3, "tags": True},
    "lite-image-b": {"items": 16_000, "batch": 128, "steps": 600, "lr": 1e-3, "tags": False},
    "lite-audio-a": {"items": 10_000, "batch": 96, "steps": 500, "lr": 2e-3, "tags": True},
    "lite-audio-b": {"items": 10_000, "batch": 128, "steps": 200, "lr": 1e-3, "tags": False},
    "lite-text-a": {"items": 20_000, "batch": 256, "steps": 1_500, "lr": 3e-3},
    "lite-text-b": {"items": 20_000, "batch": 192, "steps": 1_500, "lr": 1e-3},
}

# The scale of the profile "lite" and of the book's records; which dropout, the validation items say.
ADAPTERS = {
    f"adapters-{pair}": {
        "pair": pair,
        "encoders": {pair.split("-")[0]: f"lite-{pair.split('-')[0]}-a", "text": "lite-text-a"},
        "items": 8_000,
        "val_items": 1_000,
        "dropouts": (0.2, 0.4),
        "options": {"augment": "fusemix", "steps": 600, "batch_size": 256, "lr": 1e-3, "shared_dim": 128, "depth": 1},
    }
    for pair in ("image-text", "audio-text")
}


def build(name: str):
    """The untrained model and its processor (image processor, feature extractor or tokenizer), as transformers classes."""
    import_torchvision_safely()
    import transformers as t

    conv = dict(hidden_sizes=[32, 64, 128, CONV_DIM], depths=[1, 1, 1, 1], layer_type="basic", embedding_size=32)
    images = dict(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    if name == "lite-image-a":
        return t.ResNetModel(t.ResNetConfig(num_channels=3, **conv)), t.ViTImageProcessorPil(**images)
    if name == "lite-image-b":
        config = t.Dinov2Config(
            hidden_size=DIM,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            layerscale_value=0.1,
        )
        return t.Dinov2Model(config), t.ViTImageProcessorPil(**images)
    sound = t.WhisperFeatureExtractor(feature_size=MELS, chunk_length=3, hop_length=320)
    if name == "lite-audio-a":
        return t.ResNetModel(t.ResNetConfig(num_channels=1, **conv)), sound
    if name == "lite-audio-b":
        config = t.WhisperConfig(
            vocab_size=4, num_mel_bins=MELS, d_model=DIM, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=4 * DIM,
            decoder_layers=0, decoder_attention_heads=4, decoder_ffn_dim=DIM, max_source_positions=75,
            max_target_positions=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            begin_suppress_tokens=None,
        )  # fmt: skip
        return t.WhisperModel(config), sound
    layers = {"lite-text-a": 0, "lite-text-b": 2}[name]
    tokenizer = make_tokenizer(_captions(RECIPES[name]["items"]))
    config = t.BertConfig(
        vocab_size=len(tokenizer), hidden_size=DIM, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=4 * DIM,
        max_position_embeddings=64, type_vocab_size=1,
    )  # fmt: skip
    return t.BertModel(config, add_pooling_layer=False), tokenizer


def make_tokenizer(captions: list[str]):
    """A WordPiece tokenizer, in the form that ``AutoTokenizer`` loads: every word of the captions, and single characters.

    Not trained: the library's trainer breaks ties at random, and the world's words are few.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    words = sorted({word for caption in captions for word in re.findall(r"\w+|[^\w\s]", caption.lower())})
    characters = sorted({character for word in words for character in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *characters, *(f"##{c}" for c in characters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
    return BertTokenizerFast(tokenizer_object=tokenizer._tokenizer, model_max_length=64)


def _captions(items: int) -> list[str]:
    return list(SoundingScenes("unimodal", "train", items, captions=3).fields("text")[1])


def _images(items: int, processor) -> torch.Tensor:
    """(N, 3, 64, 64) float16, as the processor makes them."""
    _, values = SoundingScenes("unimodal", "train", items).fields("image")
    chunks = (values[i : i + 256] for i in tqdm(range(0, items, 256), desc="drawing"))
    return torch.cat([processor(chunk, return_tensors="pt")["pixel_values"].half() for chunk in chunks])


def _log_mels(items: int, extractor) -> torch.Tensor:
    """(N, MELS, 150) float16, as the feature extractor makes them."""
    _, values = SoundingScenes("unimodal", "train", items).fields("audio")
    chunks = (values[i : i + 64] for i in tqdm(range(0, items, 64), desc="synthesising"))
    return torch.cat([extractor(c, sampling_rate=16_000, return_tensors="pt")["input_features"].half() for c in chunks])


def _erase(x: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Overwrite one rectangle an item with the item's mean; its sides are up to ``share`` of the item's."""
    B, _, H, W = x.shape
    keep = torch.ones(B, 1, H, W, dtype=torch.bool)
    for i in range(B):
        h, w = (int(torch.randint(1, max(2, int(share * side)), (), generator=generator)) for side in (H, W))
        top, left = (int(torch.randint(0, side - s, (), generator=generator)) for side, s in ((H, h), (W, w)))
        keep[i, :, top : top + h, left : left + w] = False
    return torch.where(keep, x, x.mean((2, 3), keepdim=True))


def image_view(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A mildly changed view: a large crop, brighter or darker, grainy, one patch erased.

    No flip, no grey, no small crop: position, colour, size and count must survive.
    """
    B = x.shape[0]
    side = 0.6 + 0.4 * torch.rand(B, generator=g)  # of the crop, as a share of the picture's
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = (1 - side)[:, None] * (2 * torch.rand(B, 2, generator=g) - 1)
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    x = x * (1 + 0.2 * (2 * torch.rand(B, 1, 1, 1, generator=g) - 1)) + 0.2 * torch.randn(B, 3, 1, 1, generator=g)
    x = x + 0.1 * torch.randn(x.shape, generator=g)
    return _erase(x, 0.3, g)


def audio_view(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A mildly changed view of log-mels: moved in time, louder or softer, noisy, one rectangle erased (SpecAugment)."""
    B, _, T = x.shape
    start = torch.randint(-10, 11, (B, 1), generator=g)  # frames of 20 ms
    index = (torch.arange(T) + start).remainder(T)
    x = x.gather(2, index[:, None].expand(-1, x.shape[1], -1))
    x = x + 0.1 * torch.randn(B, 1, 1, generator=g) + 0.1 * torch.randn(x.shape, generator=g)
    return _erase(x[:, None], 0.3, g)[:, 0]


def tags_of(scene: Scene, modality: str) -> list[float]:
    """What a person would tag: the kinds of things; of a picture also colours and background. Not size, count, place."""
    tags = [kind in {t.kind for t in scene.things} for kind in KINDS]
    if modality == "image":
        tags += [colour in {t.colour for t in scene.things} for colour in COLOURS]
        tags += [scene.background == background for background in BACKGROUNDS]
    return [float(tag) for tag in tags]


def contrastive(name: str, model: nn.Module, data: torch.Tensor, recipe: dict, seed: int) -> None:
    """SimCLR on one modality: two views of an item are a positive pair; heads are thrown away afterwards.

    With ``tags`` a linear head also names the tags of every view.
    """
    g = torch.Generator().manual_seed(seed)
    modality = "image" if "image" in name else "audio"
    view = image_view if modality == "image" else audio_view
    dim = CONV_DIM if name.endswith("-a") else DIM
    head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.BatchNorm1d(2 * dim), nn.ReLU(), nn.Linear(2 * dim, DIM))
    scenes = SoundingScenes("unimodal", "train", recipe["items"])
    tags = torch.tensor([tags_of(scenes.scene(i), modality) for i in range(len(scenes))])
    tagger = nn.Linear(dim, tags.shape[1])

    def latents(x):
        if name == "lite-image-b":
            return model(pixel_values=x).last_hidden_state[:, 0]
        if name == "lite-audio-b":
            return model.encoder(x).last_hidden_state.mean(1)
        return model(pixel_values=x if x.ndim == 4 else x[:, None]).pooler_output.flatten(1)

    def loss():
        pick = torch.randint(len(data), (recipe["batch"],), generator=g)
        x = data[pick].float()
        with torch.autocast("cpu", torch.bfloat16):
            z = latents(torch.cat([view(x, g), view(x, g)]))
            u, v = head(z).float().chunk(2)
            named = tagger(z).float()
        value = symmetric_infonce(F.normalize(u, dim=-1), F.normalize(v, dim=-1), torch.tensor(0.1))
        if recipe["tags"]:
            wrong = F.binary_cross_entropy_with_logits(named, tags[pick].repeat(2, 1), reduction="none")
            value = value + wrong.sum(1).mean()
        return value

    _descend(nn.ModuleList([model, head, tagger]), loss, recipe, name)


def left_out_words(name: str, model: nn.Module, tokenizer, captions: list[str], recipe: dict, seed: int) -> None:
    """Predict the tokens left out of a caption.

    The bag of words predicts them from the mean of the others (CBOW, Mikolov et al. 2013) and has no places. The
    transformer predicts each at its place (BERT, Devlin et al. 2019, always with the mask token).
    """
    g = torch.Generator().manual_seed(seed)
    bag = name == "lite-text-a"
    if bag:
        nn.init.zeros_(model.embeddings.position_embeddings.weight).requires_grad_(False)
        head = nn.Linear(DIM, len(tokenizer))
    else:
        head = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.LayerNorm(DIM), nn.Linear(DIM, len(tokenizer)))
    batch_of = _token_batches(tokenizer, captions, recipe["batch"], g)

    def loss():
        ids, mask = batch_of()
        hide = torch.rand(ids.shape, generator=g) < (0.4 if bag else 0.2)
        hide &= mask & (ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=not bag):
            hidden = model(ids.masked_fill(hide, tokenizer.mask_token_id), attention_mask=mask).last_hidden_state
            if bag:
                shown = (mask & ~hide)[..., None]
                rows = torch.arange(len(ids))[:, None].expand_as(ids)[hide]
                guess = head((hidden * shown).sum(1) / shown.sum(1))[rows]
            else:
                guess = head(hidden[hide])
        return F.cross_entropy(guess.float(), ids[hide])

    _descend(nn.ModuleList([model, head]), loss, recipe, name)


def _token_batches(tokenizer, captions: list[str], batch: int, g: torch.Generator):
    coded = tokenizer(captions, padding=True, return_tensors="pt")
    ids, mask = coded["input_ids"], coded["attention_mask"].bool()

    def draw():
        pick = torch.randint(len(ids), (batch,), generator=g)
        longest = int(mask[pick].sum(1).max())
        return ids[pick, :longest], mask[pick, :longest]

    return draw


def _descend(modules: nn.Module, loss, recipe: dict, name: str) -> None:
    """AdamW with 5 % linear warm-up and a cosine to zero."""
    steps = recipe["steps"]
    modules.train()
    optimiser = torch.optim.AdamW([p for p in modules.parameters() if p.requires_grad], lr=recipe["lr"], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / (0.05 * steps), 0.5 * (1 + math.cos(math.pi * i / steps)))
    )
    with tqdm(total=steps, desc=name, mininterval=5) as bar:
        for step in range(steps):
            value = loss()
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{value.item():.3f}")


def pretrain(name: str, out: Path, seed: int = 0, **overrides) -> Path:
    """Train one lite encoder from nothing and save it as a Hugging Face folder (fp16 safetensors) under ``out``."""
    recipe = {**RECIPES[name], **{key: value for key, value in overrides.items() if value}}
    torch.manual_seed(seed)
    model, processor = build(name)
    start = time.process_time()
    if "text" in name:
        left_out_words(name, model, processor, _captions(recipe["items"]), recipe, seed)
        pooling = "mean"
    else:
        data = (_images if "image" in name else _log_mels)(recipe["items"], processor)
        contrastive(name, model, data, recipe, seed)
        pooling = {"lite-image-b": "cls", "lite-audio-b": "mean"}.get(name, "pooler")
    folder = out / name
    model.eval().half().save_pretrained(folder)
    processor.save_pretrained(folder)
    facts = {
        "pooling": pooling,
        "pretraining": {**recipe, "seed": seed, "cpu_minutes": round((time.process_time() - start) / 60, 1)},
    }
    (folder / "fusemix_lite.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return folder


def train_adapters(name: str, out: Path, seed: int = 0, **overrides) -> Path:
    """Fit one set of adapters to two lite encoders, once a dropout, and save the one that is best on validation items.

    The folder under ``out`` is what ``fusemix-lite fit`` writes, in fp16 and without the lists of items and steps: a split
    and a seed of Sounding Scenes say which scenes there were.
    """
    from safetensors.torch import load_file, save_file

    from .datasets import scene_pairs
    from .training import best_mean, fit
    from .workflow import HISTORY, PARTS, check_model_folder, encoder_identity, save_model

    folder = out / name
    check_model_folder(folder, overwrite=True)
    recipe = {**ADAPTERS[name], **{key: value for key, value in overrides.items() if value}}
    options = recipe["options"] | ({"steps": recipe["steps"]} if "steps" in recipe else {})
    sizes = {"train": recipe["items"], "val": min(recipe["val_items"], recipe["items"])}
    worlds = {split: SoundingScenes(recipe["pair"], split, size) for split, size in sizes.items()}
    parts = {split: scene_pairs(world, *recipe["encoders"].values()) for split, world in worlds.items()}
    results = {p: fit(parts["train"], parts["val"], dropout=p, seed=seed, device="cpu", **options) for p in recipe["dropouts"]}

    def score(dropout: float) -> float:
        return best_mean(results[dropout].history)

    best = max(results, key=score)
    facts = {
        "source": ", ".join(world.id for world in worlds.values()),
        "dataset": "",
        "items": {part: pairs.n_items for part, pairs in parts.items()},
        "pairs": {part: len(pairs) for part, pairs in parts.items()},
        "options": options | {"dropout": best},
        "tried": {str(dropout): round(score(dropout), 2) for dropout in results},
        "seed": seed,
    }
    dims = parts["train"].dims
    encoders = {m: encoder_identity(resolve_encoder(e), e, dims[m]) for m, e in recipe["encoders"].items()}
    save_model(folder, results[best], encoders, facts, parts)
    weights = folder / "model.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(weights).items()}, weights)
    weights.chmod(0o644)  # it goes into a package, and the library writes for its user alone
    for file in (PARTS, HISTORY, "README.md"):
        (folder / file).unlink(missing_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = [*RECIPES, *ADAPTERS]
    parser.add_argument("names", nargs="+", choices=known, metavar="NAME", help=f"which to train: {', '.join(known)}")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the folders go (default: into the package)")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--items", type=int, help="items to learn from (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="one thread with bf16 beat two with fp32 on a busy laptop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.names:
        make = train_adapters if name in ADAPTERS else pretrain
        print(make(name, args.out, args.seed, steps=args.steps, items=args.items))


if __name__ == "__main__":
    main()
