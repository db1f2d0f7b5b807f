"""The other way: both encoders and their adapters trained together on the pairs, end to end, as CLIP is.

The network is the one that FuseMix uses, encoder and adapter a modality. What differs is what learns, and from what:

    FuseMix     encoders pre-trained on one modality each, then frozen; adapters learn from latents
    "scratch"   everything starts at random and learns from pictures and captions
    "finetune"  the encoders start where FuseMix's are frozen, and everything learns
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import experiments
from .adapters import FusionModel
from .datasets import SoundingScenes
from .device import pick_device
from .encoders import Encoder, load_encoder, pool
from .errors import FuseMixLiteError
from .losses import symmetric_infonce
from .metrics import mean_recall, retrieval
from .pairs import LatentPairs
from .pretrain import image_view
from .profiles import Profile
from .records import encoders_of
from .training import ShuffledBatches, adamw, lr_factor, seeded

STARTS = ("scratch", "finetune")
TILE = 250  # pictures or captions encoded at once where nothing is learned


@dataclass(frozen=True, eq=False)
class RawPairs:
    """Pictures and captions as the encoders take them: N items with C captions each.

    Attributes:
        images: (N, 3, H, W) uint8. tokens: (N, C, L) int64. mask: (N, C, L) bool, where a token is real.
    """

    images: Tensor
    tokens: Tensor
    mask: Tensor

    @property
    def n_items(self) -> int:
        return len(self.images)

    def shuffled(self) -> "RawPairs":
        """The null control: every item gets all captions of another one."""
        return RawPairs(self.images, self.tokens.roll(1, 0), self.mask.roll(1, 0))


def raw_pairs(dataset: SoundingScenes, items: Tensor, tokenizer, length: int = 48) -> RawPairs:
    """Draw the pictures and write the captions of some items of a data set, in the order of ``items`` ((n,) integers)."""
    items = items.tolist()
    images = np.stack([np.asarray(dataset.image(i)) for i in items])  # (n, H, W, 3) uint8
    captions = [dataset.caption(i, which) for i in items for which in range(dataset.captions)]
    coded = tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    longest = int(coded["attention_mask"].sum(1).max())
    shape = len(items), dataset.captions, longest
    tokens, mask = (coded[key][:, :longest].reshape(shape) for key in ("input_ids", "attention_mask"))
    return RawPairs(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), tokens, mask.bool())


class DualEncoder(nn.Module):
    """An image and a text encoder, each with its adapter: what CLIP is, at the size of the lite encoders.

    Args:
        image, text: frozen encoders whose architecture, and with start="finetune" whose weights, are taken.
        start: "scratch" or "finetune".
        shared_dim, depth, dropout: of the adapters.

    Attributes:
        encoders: the two networks, all of whose weights learn but the places of a bag of words (it has none).
        adapters: the `FusionModel`, which holds the temperature.
    """

    def __init__(self, image: Encoder, text: Encoder, start: str, shared_dim: int, depth: int, dropout: float):
        super().__init__()
        self.encoders, self.pooling, self.normalise = nn.ModuleDict(), {}, _normaliser(image)
        for name, encoder in (("image", image), ("text", text)):
            model = type(encoder.model)(encoder.model.config)
            if start == "finetune":
                model.load_state_dict(encoder.model.state_dict())
            if name == "text":
                model.pooler = None
            self.encoders[name], self.pooling[name] = model, encoder.pooling
        if text.model.config.num_hidden_layers == 0:
            nn.init.zeros_(self.encoders["text"].embeddings.position_embeddings.weight).requires_grad_(False)
        self.encoders["image"].to(memory_format=torch.channels_last)  # a tenth faster on a CPU
        self.adapters = FusionModel({"image": image.dim, "text": text.dim}, shared_dim, depth, dropout=dropout)

    def encode_images(self, images: Tensor, view: Generator | None = None) -> Tensor:
        """Latents (B, dx) of images (B, 3, H, W) uint8; with `view`, of mildly changed views drawn from it."""
        x = self.normalise(images)
        x = x if view is None else image_view(x, view)
        x = x.to(self.adapters.temperature.device, memory_format=torch.channels_last)
        return pool(self.encoders["image"](pixel_values=x), self.pooling["image"])

    def encode_texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Latents (B, dy) of captions, tokens and mask (B, L)."""
        tokens, mask = (t.to(self.adapters.temperature.device) for t in (tokens, mask))
        return pool(self.encoders["text"](tokens, attention_mask=mask), self.pooling["text"], mask)

    @torch.inference_mode()
    def latents(self, pairs: RawPairs) -> LatentPairs:
        """What the encoders make of the pairs as they are now, without dropout."""
        training = self.training
        self.eval()
        x = torch.cat([self.encode_images(tile) for tile in pairs.images.split(TILE)])
        tiles = zip(pairs.tokens.flatten(0, 1).split(TILE), pairs.mask.flatten(0, 1).split(TILE), strict=True)
        y = torch.cat([self.encode_texts(*tile) for tile in tiles])
        self.train(training)
        return LatentPairs(x, y, torch.arange(pairs.n_items).repeat_interleave(pairs.tokens.shape[1]))


@dataclass
class EndToEndResult:
    """What `fit_end_to_end` returns: the model of the best look at validation pairs, and what it took.

    Attributes:
        history: a dict a step: step, loss (nats), lr; where validation was looked at also val and val_mean, as in `fit`.
        flops: of all training steps, forward and backward, counted (`torch.utils.flop_counter`); looks are not in it.
        seconds: wall time of the whole call.
    """

    model: DualEncoder
    history: list[dict]
    best_step: int
    flops: float
    seconds: float


def fit_end_to_end(
    train: RawPairs,
    val: RawPairs,
    model: DualEncoder,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
    views: bool = True,
    evals: int = 5,
    seed: int = 0,
) -> EndToEndResult:
    """Train a `DualEncoder` on pictures and captions: AdamW on symmetric InfoNCE, best look at `val` kept.

    A batch holds different pictures, each with one of its captions, drawn anew every time; a picture is seen through mild
    changes (`pretrain.image_view`) unless ``views`` is False. Schedule, decay and selection are those of `fit`.

    Raises:
        FuseMixLiteError: an argument out of range, or a loss that is not finite.
    """
    started = time.perf_counter()
    batch_size = min(batch_size, train.n_items)
    if batch_size < 2 or steps < 1 or not 1 <= evals or not lr > 0:
        raise FuseMixLiteError(f"fit_end_to_end: batch_size {batch_size}, steps {steps}, evals {evals}, lr {lr}: out of range")
    g = Generator().manual_seed(seed)  # order, captions, views: on the CPU, where the pictures are
    look_at = {round(steps * (i + 1) / evals) for i in range(evals)}
    history, best_mean, best_state, best_step, flops = [], -1.0, None, steps, 0.0
    optimizer, batches = adamw(model, weight_decay), ShuffledBatches(train.n_items, batch_size, g)
    model.train()
    with seeded(seed, model.adapters.temperature.device):  # dropout
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = lr * lr_factor(step, steps, warmup)
            rows = next(batches)
            which = torch.randint(train.tokens.shape[1], (batch_size,), generator=g)
            with FlopCounterMode(display=False) if step == 1 else nullcontext() as counted:
                x = model.encode_images(train.images[rows], g if views else None)
                y = model.encode_texts(train.tokens[rows, which], train.mask[rows, which])
                u, v = model.adapters.embed("image", x), model.adapters.embed("text", y)
                loss = symmetric_infonce(u, v, model.adapters.temperature)
                optimizer.zero_grad()
                loss.backward()
            flops = steps * counted.get_total_flops() if step == 1 else flops  # every step has the same shapes
            entry = {"step": step, "loss": loss.item(), "lr": group["lr"]}
            if not math.isfinite(entry["loss"]):
                raise FuseMixLiteError(f"the loss is {entry['loss']} at step {step}: lower lr")
            optimizer.step()
            model.adapters.clamp_temperature()
            if step in look_at:
                entry["val"] = retrieval(model.adapters, model.latents(val))
                entry["val_mean"] = mean_recall(entry["val"])
                if entry["val_mean"] > best_mean:
                    best_mean, best_step = entry["val_mean"], step
                    best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            history.append(entry)
    model.load_state_dict(best_state)
    return EndToEndResult(model.eval(), history, best_step, flops, time.perf_counter() - started)


def run(p: Profile, arm: dict, dropout: float, steps: int, seed: int, test: bool) -> dict:
    """One end-to-end run of an arm of the record "scratch": numbers named as those of `experiments.run`, and ``flops``.

    An arm is ``{"scheme": "scratch" or "finetune", "items": n}``; it may set "batch_size", "lr" and "views" (False: no
    changes to the pictures), and ask for a null: "again" (other seeds) or "shuffled". A seed's items are those that a
    fusion run with this seed learns from.
    """
    if arm["scheme"] not in STARTS:  # what the record compares with
        return experiments.run(p, arm, dropout, steps, seed, test)
    seed = experiments.seed_of(arm, seed)
    x, y = (load_encoder(name, "cpu") for name in encoders_of(arm, p))
    train = _part("train", p.train_items, p.captions, arm["items"], seed, y.id)
    if arm.get("null") == "shuffled":
        train = train.shuffled()
    val = _part("val", p.val_items, p.captions, p.val_items, 0, y.id)
    device = pick_device(p.device)
    with seeded(seed, torch.device("cpu")):
        model = DualEncoder(x, y, arm["scheme"], p.shared_dim, p.depth, dropout).to(device)
    options = {key: arm[key] for key in ("lr", "views") if key in arm}
    batch_size = arm.get("batch_size", p.batch_size // 4)
    result = fit_end_to_end(train, val, model, steps=steps, batch_size=batch_size, seed=seed, **options)
    fused = result.model.adapters
    numbers = experiments.of_training(seed, result, fused, flops=result.flops)
    if test:
        pairs = result.model.latents(_part("test", p.test_items, p.captions, p.test_items, 0, y.id))
        numbers |= experiments.of_test(fused, pairs)
    return numbers


def _part(split: str, size: int, captions: int, items: int, seed: int, text_encoder: str) -> RawPairs:
    """The items of a split that `LatentPairs.subset` draws with this seed, ascending."""
    if not 1 <= items <= size:
        raise FuseMixLiteError(f"{items} items of {size}: there are not so many")
    return _made(split, size, captions, items, seed if items < size else 0, text_encoder)


@lru_cache(maxsize=4)
def _made(split: str, size: int, captions: int, items: int, seed: int, text_encoder: str) -> RawPairs:
    drawn = torch.randperm(size, generator=Generator().manual_seed(seed))[:items].sort().values
    tokenizer = load_encoder(text_encoder, "cpu").processor
    return raw_pairs(SoundingScenes("image-text", split, size, captions), drawn, tokenizer)


def _normaliser(image: Encoder):
    """What the encoder's image processor does to a picture of the right size, on tensors: uint8 to float."""
    mean, std = (torch.tensor(getattr(image.processor, f"image_{name}")).view(3, 1, 1) for name in ("mean", "std"))

    def normalise(images: Tensor) -> Tensor:
        return (images.float() / 255 - mean) / std

    return normalise
