"""Train fusion adapters on paired latents."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from .adapters import TEMPERATURE_RANGE, FusionModel
from .device import pick_device
from .errors import FuseMixLiteError
from .losses import symmetric_infonce
from .metrics import mean_recall, retrieval
from .mixing import SCHEMES, no_mixing
from .pairs import LatentPairs
from .rows import StoredRows


@dataclass
class FitResult:
    """What `fit` returns.

    Attributes:
        model: in evaluation mode, on the device it was trained on.
        history: a dict a step: step (from 1), loss (nats), temperature, lr; where `val` was looked at also val (in
            percent, as `retrieval` gives it) and val_mean (mean of both directions' R@1, 5, 10).
        best_step: the step whose weights `model` holds.
        seconds: wall time of the whole call.
    """

    model: FusionModel
    history: list[dict]
    best_step: int
    seconds: float


def fit(
    train: LatentPairs,
    val: LatentPairs | None = None,
    *,
    augment: str = "fusemix",
    alpha: float = 1.0,
    per: str = "batch",
    mix_probability: float = 1.0,
    mask_negatives: bool = False,
    temperature: float | None = None,
    batch_size: int = 512,
    steps: int = 1000,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
    shared_dim: int = 256,
    depth: int | str | dict = 1,
    expansion: int = 4,
    dropout: float | dict = 0.3,
    standardize: bool = False,
    evals: int = 10,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> FitResult:
    """Align two modalities: AdamW on symmetric InfoNCE between augmented latents.

    Every row of a batch is a pair: a row of y with its owner's x. Epochs are shuffled and their incomplete last batch
    is dropped. Weight decay touches matrices only. Latents in memory are moved to `device` at once, those on disk
    (`LatentPairs.from_stores(..., in_memory=False)`) batch by batch; the numbers are the same.

    Args:
        train: pairs to learn from.
        val: pairs to select on: the model returned is the best of `evals` looks by the mean of both directions'
            R@1, 5, 10. None: the last. Never the test set.
        augment: a name in `mixing.SCHEMES`.
        alpha: how strong; given to the scheme.
        per: one mixing coefficient a "batch" or a "pair"; given to the scheme.
        mix_probability: share of the steps that are augmented; in the others the loss sees as many pairs as they are.
        mask_negatives: pairs that share an item are no negatives of each other (mixed pairs: the same item at the same
            place). In the official code they are.
        temperature: fixes the temperature of the loss; None: learnt, from 0.07.
        batch_size: pairs *in the loss*; a mixing scheme loads twice as many rows. Where that is more than `train`
            has, the batch is made smaller, with a warning.
        steps: optimiser steps.
        lr: peak learning rate, reached after the fraction `warmup` of the steps; then a cosine down to 0.
        weight_decay: of AdamW.
        warmup: share of the steps in which the learning rate rises.
        shared_dim, depth, expansion, dropout: of the `FusionModel`.
        standardize: standardise the latents first, with the statistics of `train`.
        evals: looks at `val`, evenly spread over the steps.
        seed: sets initialisation, batch order, mixing and dropout. The caller's random state is left untouched.
        device: "auto" is CUDA where there is one, otherwise the CPU.
        progress: show a bar.

    Raises:
        FuseMixLiteError: an argument out of range, an unknown scheme, `val` that does not fit `train`, or a loss that
            is not finite.

    Source: official code (AdamW, decay, schedule, temperature), with selection on validation instead of test data.
    """
    started = time.perf_counter()
    _check(train, val, augment, batch_size, steps, lr, warmup, evals, mix_probability, temperature)
    scheme = SCHEMES[augment]
    batch_size = _fitting_batch(batch_size, scheme.rows_per_pair, len(train))
    device = pick_device(device)
    (a, b), x, y, owner = train.names, train.x.to(device), train.y.to(device), train.owner.to(device)
    generator = Generator(device).manual_seed(seed)  # batch order and mixing
    look_at = {round(steps * (i + 1) / evals) for i in range(evals)} if val is not None else set()
    history, best_mean, best_state, best_step = [], -1.0, None, steps

    with seeded(seed, device):  # initialisation and dropout, which take no generator
        model = FusionModel(train.dims, shared_dim, depth, expansion, dropout, standardize).to(device)
        model.fit_standardizers({a: x, b: y})
        if temperature is not None:
            model.temperature.requires_grad_(False).fill_(temperature)
        optimizer = adamw(model, weight_decay)
        batches = shuffled_batches(len(train), batch_size * scheme.rows_per_pair, generator)
        take_x, take_y = into_kept_memory(x), into_kept_memory(y)
        for step in tqdm(range(1, steps + 1), desc=f"fit ({augment})", disable=not progress):
            for group in optimizer.param_groups:
                group["lr"] = lr * lr_factor(step, steps, warmup)
            rows, augmented = next(batches), scheme
            if mix_probability < 1 and torch.rand((), generator=generator, device=device) >= mix_probability:
                rows, augmented = rows[:batch_size], no_mixing
            items = owner.index_select(0, rows)
            zx, zy = augmented(take_x(items), take_y(rows), alpha, generator, per)
            # (1, pairs) items, or (2, pairs) where rows are mixed two by two: labels, so that no matrix is needed for it
            same = items.view(-1, len(zx)) if mask_negatives else None
            loss = symmetric_infonce(model.embed(a, zx), model.embed(b, zy), model.temperature, same)
            entry = {"step": step, "loss": loss.item(), "temperature": model.temperature.item(), "lr": group["lr"]}
            if not math.isfinite(entry["loss"]):
                raise FuseMixLiteError(f"the loss is {entry['loss']} at step {step}: lower lr, or set standardize=True")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.clamp_temperature()
            if step in look_at:
                entry["val"] = retrieval(model, val)
                entry["val_mean"] = mean_recall(entry["val"])
                if entry["val_mean"] > best_mean:
                    best_mean, best_step = entry["val_mean"], step
                    best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            history.append(entry)
    if best_state is not None:
        model.load_state_dict(best_state)
    return FitResult(model.eval(), history, best_step, time.perf_counter() - started)


def best_mean(history: Iterable[dict]) -> float:
    """The best mean of validation recalls in the history of a run, in percent; 0 where nobody looked."""
    return max(entry.get("val_mean", 0.0) for entry in history)


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate of step 1..steps as a share of its peak: linear up over `warmup`, then a cosine down to 0."""
    ramp = warmup * steps
    if step <= ramp:
        return step / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / (steps + 1 - ramp)))


def shuffled_batches(pairs: int, rows: int, generator: Generator) -> Iterator[Tensor]:
    """Row numbers of one batch after another, (rows,) each, from endless shuffled epochs."""
    while True:
        order = torch.randperm(pairs, generator=generator, device=generator.device)
        yield from order[: pairs - pairs % rows].split(rows)


def into_kept_memory(z: Tensor | StoredRows) -> Callable[[Tensor], Tensor]:
    """A call that takes rows (B,) of z (N, d): (B, d), which the next call overwrites.

    On a CPU a large batch in fresh memory costs more than copying its rows does. A GPU's allocator keeps memory by itself.
    """
    if not isinstance(z, Tensor) or z.device.type != "cpu":
        return lambda rows: z.index_select(0, rows)
    kept = z.new_empty(0, z.shape[1])

    def take(rows: Tensor) -> Tensor:
        nonlocal kept
        if len(kept) < len(rows):
            kept = z.new_empty(len(rows), z.shape[1])
        return torch.index_select(z, 0, rows, out=kept[: len(rows)])

    return take


def adamw(model: FusionModel, weight_decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]  # biases, LayerNorm, temperature
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=True)


@contextmanager
def seeded(seed: int, device: torch.device):
    """Seed torch's global state inside, give it back as it was after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def _fitting_batch(batch_size: int, rows_per_pair: int, pairs: int) -> int:
    if batch_size * rows_per_pair <= pairs:
        return batch_size
    smaller = pairs // rows_per_pair
    if smaller < 2:
        raise FuseMixLiteError(f"{pairs} training pairs are too few: the smallest batch takes {2 * rows_per_pair}")
    warnings.warn(f"batch_size {batch_size} takes {batch_size * rows_per_pair} rows of {pairs}: using {smaller}", stacklevel=3)
    return smaller


def _check(train, val, augment, batch_size, steps, lr, warmup, evals, mix_probability, temperature) -> None:
    for name, pairs in (("train", train), ("val", val)):
        if not isinstance(pairs, LatentPairs) and (name, pairs) != ("val", None):
            what = f"fit: {name} is a {type(pairs).__name__}"
            raise FuseMixLiteError(f"{what}: give LatentPairs (workflow.open_latents reads a folder)")
    if augment not in SCHEMES:
        raise FuseMixLiteError(f"unknown scheme {augment!r}: choose one of {', '.join(SCHEMES)}")
    low, high = TEMPERATURE_RANGE
    ranges = {
        "batch_size": (batch_size, batch_size >= 2),
        "steps": (steps, steps >= 1),
        "lr": (lr, lr > 0),
        "warmup": (warmup, 0 <= warmup < 1),
        "evals": (evals, evals >= 1),
        "mix_probability": (mix_probability, 0 <= mix_probability <= 1),
        "temperature": (temperature, temperature is None or low <= temperature <= high),
    }
    for name, (value, fine) in ranges.items():
        if not fine:
            raise FuseMixLiteError(f"fit: {name} = {value} is out of range")
    if val is not None and val.dims != train.dims:
        raise FuseMixLiteError(f"val has latents {val.dims}, train {train.dims}: use the same encoders")
