"""How fast it is: each thing against the plain way of doing it, and against what its arithmetic alone takes here.

A row of the table is a small function that makes its input from a seed and returns a `Case`: ours, the plain way, and the
limit. `measure` runs rows; ``fusemix-lite bench`` prints them, and the page *How fast is it* shows a record of them.

Machines differ and are rarely idle, so that what counts are ratios. Ours and the plain way take turns, and a ratio is the
median over such pairs. With one thread it is the processor's own time that is taken, which other programs do not lengthen. The
limit is the number of operations over the rate at which this machine multiplies matrices, measured in the same turn, or the
bytes that have to be read once. Both ways have to give the same, and a row says how much so. Memory is the peak of a process
of its own, beyond what it held when the input was there. What several processes do is timed by the clock on the wall.
"""

import copy
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import DataLoader, default_collate

from .adapters import FusionModel
from .costs import Cost, fusion_cost
from .disk import read_json
from .errors import FuseMixLiteError
from .losses import DENSE_BYTES, TILE, dense_infonce, symmetric_infonce, tiled_infonce
from .metrics import ranks, ranks_from_scores
from .mixing import fusemix
from .pairs import LatentPairs
from .rows import StoredRows
from .subsets import greedy_kdpp, squared_kernel
from .taking import taking
from .training import ShuffledBatches, adamw, fit, lr_factor, seeded

ROUNDS = 5
KS = (1, 5, 10)


class Case(NamedTuple):
    """What a row measures, its input being there.

    Attributes:
        ours, plain: calls without arguments; plain may be None, where nobody could wait for it or hold it.
        limit: the limit: a call that returns seconds, or bytes in a row on memory.
        agree: takes what ours and plain returned; says in words how far they are the same, or fails.
        times: what plain's memory has to be multiplied by, where it was measured on a smaller input.
    """

    ours: Callable[[], Any]
    plain: Callable[[], Any] | None
    limit: Callable[[], float]
    agree: Callable[[Any, Any], str] | None = None
    times: int = 1


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        about, plain, limit: what is measured, against what, and what the limit counts.
        goal: the largest ratio, the most bytes, or the least share, that we want; None: just to know.
        unit: "seconds" in turns; "share": the same, and the goal is about the limit's share of ours; "wall": the same, as they
            pass, for what takes several processes. "bytes" at the peak; "once": seconds of one run in a process of its own,
            with its peak; "growth": likewise, of several sizes.
        make: seed, and whether small sizes are enough to see that it runs -> `Case`.
    """

    about: str
    plain: str
    limit: str
    goal: float | None
    unit: str
    make: Callable[[int, bool], Case]


ROWS: dict[str, Row] = {}
TURNS = ("seconds", "share", "wall")  # units of what is measured in turns


def row(name: str, about: str, plain: str, limit: str, goal: float | None, unit: str = "seconds") -> Callable:
    """Put a function into the table."""

    def add(make: Callable[[int, bool], Case]) -> Callable:
        ROWS[name] = Row(about, plain, limit, goal, unit, make)
        return make

    return add


# --- the rows -------------------------------------------------------------------------------------------------------------

PRODUCTS = "3 products of the batch with itself: forwards, and backwards to either side"


@row("loss", "contrastive loss, forwards and backwards: B = 4,096, d = 512, fp32", "one B x B matrix", PRODUCTS, goal=1.0)
def loss(seed: int, smoke: bool) -> Case:
    B, d = (96, 8) if smoke else (4096, 512)
    inputs = _embeddings(B, B, d, seed)

    return Case(
        ours=lambda: _with_gradients(lambda *z: tiled_infonce(*z, tile=40 if smoke else 1024), *inputs),
        plain=lambda: _with_gradients(dense_infonce, *inputs),
        limit=lambda: 3 * 2 * B * B * d / rate(),
        agree=lambda ours, plain: _close(ours, plain, 1e-5),
    )


@row(
    "loss-memory",
    "the same at B = 32,768: memory beyond the embeddings, their gradients included",
    "one B x B matrix, measured at B = 8,192, times 16",
    "the gradients",
    goal=0.5e9,
    unit="bytes",
)
def loss_memory(seed: int, smoke: bool) -> Case:
    B, d = (2048, 8) if smoke else (32_768, 512)
    inputs = _embeddings(B, B, d, seed)
    return Case(
        ours=lambda: _with_gradients(tiled_infonce, *inputs),
        plain=lambda: _with_gradients(dense_infonce, *(z[: B // 4] for z in inputs)),
        times=16,
        limit=lambda: 2.0 * B * d * 4,
    )


@row(
    "recall",
    "R@1, 5, 10 of 5,000 items and 25,010 captions, both ways, from embeddings: d = 512, fp32",
    "every row sorted",
    "1 product",
    goal=1 / 4,
)
def recall(seed: int, smoke: bool) -> Case:
    u, v, owner = _gallery(seed, smoke)
    return Case(
        ours=lambda: ranks(u, v, owner),
        plain=lambda: sorted_ranks(u @ v.T, owner),
        limit=lambda: 2 * len(u) * len(v) * u.shape[1] / rate(),
        agree=_same_ranks,
    )


@row("recall-scores", "the same from a matrix of similarities", "every row sorted", "the matrix read once", goal=1 / 15)
def recall_scores(seed: int, smoke: bool) -> Case:
    u, v, owner = _gallery(seed, smoke)
    scores = u @ v.T
    flat = scores.flatten()
    return Case(
        ours=lambda: ranks_from_scores(scores, owner),
        plain=lambda: sorted_ranks(scores, owner),
        limit=lambda: _seconds(lambda: flat.dot(flat))[0],
        agree=_same_ranks,
    )


@row(
    "recall-memory",
    "the same from embeddings: memory beyond them",
    "every row sorted",
    "the ranks; a matrix that fits is held all the same, as it saves a product",
    goal=1e9,
    unit="bytes",
)
def recall_memory(seed: int, smoke: bool) -> Case:
    u, v, owner = _gallery(seed, smoke)
    return Case(
        ours=lambda: ranks(u, v, owner),
        plain=lambda: sorted_ranks(u @ v.T, owner),
        limit=lambda: 8.0 * (len(u) + len(v)),
    )


@row(
    "kdpp-dense",
    "greedy k-DPP: N = 2,000, d = 384, k = 1,000, fp64",
    "the dense kernel, a row and column eliminated a pick",
    "N k (2 d + k) operations",
    goal=None,
)
def kdpp_dense(seed: int, smoke: bool) -> Case:
    N, d, k = (150, 12, 40) if smoke else (2000, 384, 1000)
    return _kdpp(latents(N, d, seed), k, eliminated)


@row(
    "kdpp",
    "greedy k-DPP: N = 20,000, d = 384, k = 1,000, fp64",
    "all items caught up a pick at a time",
    "N k (2 d + k) operations",
    goal=None,
)
def kdpp(seed: int, smoke: bool) -> Case:
    N, d, k = (300, 12, 40) if smoke else (20_000, 384, 1000)
    return _kdpp(latents(N, d, seed), k, one_by_one)


@row(
    "kdpp-large",
    "greedy k-DPP: N = 100,000, d = 384, k = 10,000, fp32, run once",
    "not run: the dense kernel alone is 40 GB, 80 in fp64",
    "N k (2 d + k) operations",
    goal=8e9,
    unit="once",
)
def kdpp_large(seed: int, smoke: bool) -> Case:
    N, d, k = (300, 12, 40) if smoke else (100_000, 384, 10_000)
    z = latents(N, d, seed)

    def ours():
        started, curve = clock(), []
        greedy_kdpp(z, k, single=True, watch=lambda picks: curve.append((picks, round(clock() - started, 2))))
        return curve

    return Case(ours=ours, plain=None, limit=lambda: N * k * (2 * d + k) / rate())


LITE = {"image": 192, "text": 128}
PAPER = {"image": 1536, "text": 1024}
OFFICIAL = "the official structure: a loader of dictionaries in the same process, two products, AdamW weight by weight"


@row(
    "batches",
    "a batch of the paper, 40,960 rows of 1,536 + 1,024 in fp32, from latents in memory",
    "single tensors collated from dictionaries",
    "the rows copied once, as they lie",
    goal=1 / 6,
)
def batches(seed: int, smoke: bool) -> Case:
    N, B, dims = (300, 64, (6, 4)) if smoke else (45_000, 40_960, PAPER.values())
    x, y = (torch.rand(N, d, generator=Generator().manual_seed(seed)) for d in dims)
    rows = torch.randperm(N, generator=Generator().manual_seed(seed))[:B]
    take_x, take_y = taking(x), taking(y)
    kept = take_x(rows), take_y(rows)  # the first batch finds the memory, the many after it use it

    def limit() -> float:
        return _seconds(lambda: [into.copy_(z[:B]) for into, z in zip(kept, (x, y), strict=True)])[0]

    def plain() -> list[Tensor]:
        return list(default_collate([{"image": x[i], "text": y[i]} for i in rows.tolist()]).values())

    return Case(lambda: [take_x(rows), take_y(rows)], plain, limit, _same_rows)


@row(
    "batches-disk",
    "the same from stores on disk, fp16 there and fp32 in the batch",
    "single rows of memory maps collated from dictionaries",
    "the rows read once, as they lie (from the system's cache), and made fp32",
    goal=1 / 6,
)
def batches_disk(seed: int, smoke: bool) -> Case:
    N, B, dims = (300, 64, (6, 4)) if smoke else (45_000, 40_960, PAPER.values())
    folder = tempfile.TemporaryDirectory()
    paths = [Path(folder.name) / name for name in "xy"]
    for path, d in zip(paths, dims, strict=True):
        np.random.default_rng(seed).random((N, d), np.float32).astype(np.float16).tofile(path)
    x, y = (np.memmap(path, np.float16, "r", shape=(N, d)) for path, d in zip(paths, dims, strict=True))
    stored = [StoredRows([z]) for z in (x, y)]
    rows = torch.randperm(N, generator=Generator().manual_seed(seed))[:B]

    def plain() -> list[Tensor]:
        items = [{"image": torch.tensor(x[i]).float(), "text": torch.tensor(y[i]).float()} for i in rows.tolist()]
        return list(default_collate(items).values())

    def once(folder=folder) -> list[np.ndarray]:  # which is there as long as somebody can call this
        return [np.fromfile(path, np.float16, B * d).astype(np.float32) for path, d in zip(paths, dims, strict=True)]

    return Case(lambda: [z.index_select(0, rows) for z in stored], plain, lambda: _seconds(once)[0], _same_rows)


@row(
    "epoch-lite",
    "an epoch of fit, loading included: 8,000 items x 5 captions, 192 + 128 d, batch 256, depth 1",
    OFFICIAL,
    "the operations that fl.costs counts",
    goal=1 / 2.5,
)
def epoch_lite(seed: int, smoke: bool) -> Case:
    pairs, options, limit = _lite_epoch(seed, smoke)

    def agree(ours: Tensor, plain: Tensor) -> str:
        return _within(float((ours - plain).abs().max()), 1e-3, "losses of all steps within")

    return Case(
        ours=lambda: _losses(fit(pairs, **options, device="cpu", progress=False)),
        plain=lambda: official_epoch(pairs, **options),
        limit=limit,
        agree=agree,
    )


@row(
    "epoch-disk",
    "the same from stores on disk, the next batch read while one is worked on",
    "latents in memory: ours cannot be below 1",
    "the operations that fl.costs counts",
    goal=None,
    unit="wall",
)
def epoch_disk(seed: int, smoke: bool) -> Case:
    (pairs, options, limit), folder = _lite_epoch(seed, smoke), tempfile.TemporaryDirectory()
    stored = []
    for z, name in ((pairs.x, "x"), (pairs.y, "y")):
        path = Path(folder.name) / name
        z.numpy().tofile(path)
        stored.append(StoredRows([np.memmap(path, np.float32, "r", shape=tuple(z.shape))]))
    ways = {"ours": LatentPairs(*stored, pairs.owner), "plain": pairs}

    def epoch(way: str, folder=folder) -> Tensor:  # which is there as long as somebody can call this
        return _losses(fit(ways[way], **options, device="cpu", progress=False))

    return Case(
        ours=lambda: epoch("ours"),
        plain=lambda: epoch("plain"),
        limit=limit,
        agree=lambda ours, plain: _within(float((ours - plain).abs().max()), 0, "", "losses identical"),
    )


@row(
    "step-paper",
    "a step at the paper's dimensions: 2,048 pairs in the loss, 1,536 + 1,024 d, depth 1, fp32",
    "two products, and AdamW weight by weight",
    "the operations that fl.costs counts",
    goal=0.6,
    unit="share",
)
def step_paper(seed: int, smoke: bool) -> Case:
    return _paper_step(seed, smoke, torch.float32)._replace(agree=lambda ours, plain: _close(ours, plain, 1e-3))


@row(
    "step-bf16",
    "the same with products in bf16",
    "two products, and AdamW weight by weight, in fp32",
    "the operations that fl.costs counts, at the rate of products in bf16",
    goal=1 / 1.8,
)
def step_bf16(seed: int, smoke: bool) -> Case:
    def agree(ours: list[Tensor], plain: list[Tensor]) -> str:
        half = rate(torch.bfloat16) / rate()
        same = _within(float((ours[0] - plain[0]).abs() / plain[0]), 0.02, "loss within a share of", "loss identical")
        return f"{same}; products in bf16 run at {half:.2g} times the rate of fp32 on this CPU"

    return _paper_step(seed, smoke, torch.bfloat16)._replace(agree=agree)


def _paper_step(seed: int, smoke: bool, dtype: torch.dtype) -> Case:
    """A step of ours with products in a type of number, and one of the official structure in fp32: losses and gradients."""
    B, D, dims = (32, 8, {"image": 12, "text": 8}) if smoke else (2048, 512, PAPER)
    z = {name: latents(B, d, seed) for name, d in dims.items()}
    with seeded(seed, torch.device("cpu")):
        models = {"ours": FusionModel(dims, D, 1)}
    models["plain"] = copy.deepcopy(models["ours"])
    optimizers = {"ours": adamw(models["ours"], 0.1), "plain": official_adamw(models["plain"], 0.1)}
    losses = {"ours": symmetric_infonce, "plain": two_products}

    def step(way: str) -> list[Tensor]:
        model = models[way]
        half = way == "ours" and dtype == torch.bfloat16
        with seeded(seed, torch.device("cpu")), torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = losses[way](*(model.embed(name, z[name]) for name in dims), model.temperature)
        optimizers[way].zero_grad()
        loss.backward()
        optimizers[way].step()
        model.clamp_temperature()
        return [loss.detach(), *(p.grad for p in model.parameters())]

    return Case(
        ours=lambda: step("ours"),
        plain=lambda: step("plain"),
        limit=lambda: _operations(B, dims, shared_dim=D, depth=1, batch_size=B, steps=1) / rate(dtype),
    )


@row(
    "compile",
    "steps of adapters and loss at lite dimensions with torch.compile, compiled before; without dropout",
    "without torch.compile",
    "the operations that fl.costs counts",
    goal=None,
)
def compile_(seed: int, smoke: bool) -> Case:
    pairs, B = _lite_pairs(20 if smoke else 2000, seed), 8 if smoke else 256
    steps = len(pairs) // (2 * B)
    z = [z[rows] for z, rows in ((pairs.x, pairs.owner[:B]), (pairs.y, slice(B)))]
    with seeded(seed, torch.device("cpu")):
        models = {"plain": FusionModel(pairs.dims, 128, 1, dropout=0.0)}
    models["ours"] = copy.deepcopy(models["plain"])
    optimizers = {way: adamw(model, 0.1) for way, model in models.items()}
    embeds = {way: model.embed for way, model in models.items()}
    embeds["ours"] = torch.compile(embeds["ours"], backend="eager" if smoke else "inductor")

    def some_steps(way: str) -> list[Tensor]:
        for _ in range(steps):
            u, v = (embeds[way](name, rows) for name, rows in zip(pairs.names, z, strict=True))
            loss = symmetric_infonce(u, v, models[way].temperature)
            optimizers[way].zero_grad()
            loss.backward()
            optimizers[way].step()
        return [loss.detach(), *(p.grad.clone() for p in models[way].parameters())]

    for way in models:
        some_steps(way)
    return Case(
        ours=lambda: some_steps("ours"),
        plain=lambda: some_steps("plain"),
        limit=lambda: _operations(len(pairs), LITE, shared_dim=128, depth=1, batch_size=B, steps=steps) / rate(),
        agree=lambda ours, plain: _close(ours, plain, 0.05),
    )


@row(
    "processes",
    "20 steps at the paper's dimensions, 512 pairs in the loss: two processes of one thread, started for it, share each batch",
    "one process with two threads, started for it",
    "the operations that fl.costs counts, on two cores",
    goal=None,
    unit="wall",
)
def processes(seed: int, smoke: bool) -> Case:
    B, steps, dims = (8, 2, {"image": 12, "text": 8}) if smoke else (512, 20, PAPER)
    job = (B, steps, dims, seed)
    return Case(
        ours=lambda: _fitted_together(2, 1, job),
        plain=lambda: _fitted_together(1, 2, job),
        limit=lambda: _operations(2 * B, dims, shared_dim=512, depth=1, batch_size=B, steps=steps) / on_two_cores(),
        agree=lambda ours, plain: _within(float((ours - plain).abs().max()), 1e-3, "losses of all steps within"),
    )


@row(
    "sweep",
    "16 lite runs of 200 steps: two processes of one thread, started for it, as every sweep here does",
    "one after the other in a process with two threads",
    "the operations that fl.costs counts, on two cores",
    goal=0.6,
    unit="wall",
)
def sweep(seed: int, smoke: bool) -> Case:
    items, B, steps, runs = (20, 8, 2, 4) if smoke else (2000, 256, 200, 16)
    jobs = [(items, B, steps, seed + i) for i in range(runs)]
    operations = runs * _operations(5 * items, LITE, shared_dim=128, depth=1, batch_size=B, steps=steps)
    others = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")

    def agree(ours: Tensor, plain: Tensor) -> str:
        same = _within(float((ours - plain).abs().max()), 1e-2, "last losses within")
        return f"{same}; load average of the machine before it began: {others:.1f}"

    return Case(
        ours=lambda: _in_processes(jobs, workers=2, threads=1),
        plain=lambda: _in_processes(jobs, workers=1, threads=2),
        limit=lambda: operations / on_two_cores(),
        agree=agree,
    )


@row(
    "growth",
    "nine steps and three epochs of fit: time and memory as batch, dimensions, depth and pairs grow, and their prediction",
    "not run",
    "the operations that fl.costs counts, of all sizes",
    goal=None,
    unit="growth",
)
def growth(seed: int, smoke: bool) -> Case:
    base = {"batch": 64, "dims": 6, "depth": 1} if smoke else {"batch": 1024, "dims": 384, "depth": 1}
    sizes = [(what, base | {what: base[what] * factor}) for what in base for factor in (1, 2, 4)]
    many = [base["batch"] * factor for factor in (8, 16, 32)]

    def ours() -> list[dict]:
        _grown(64, 6, 1, seed)  # what is loaded once, at the first step of all, is no step's
        steps = [{"what": what, "size": at[what], **_grown(**at, seed=seed)} for what, at in sizes]
        _epoch_grown(many[0], **base, seed=seed)
        return [*steps, *({"what": "pairs", "size": n, **_epoch_grown(n, **base, seed=seed)} for n in many)]

    costs = [*(_predicted(**at) for _, at in sizes), *(_predicted(**base, pairs=n) for n in many)]
    return Case(ours=ours, plain=None, limit=lambda: sum(cost.total_flops for cost in costs) / rate())


# --- their input ----------------------------------------------------------------------------------------------------------


def _embeddings(N: int, M: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit rows (N, d) and (M, d); row j of the second is near row j mod N of the first."""
    generator = Generator().manual_seed(seed)
    u = torch.randn(N, d, generator=generator)
    v = u[torch.arange(M) % N] + 2 * torch.randn(M, d, generator=generator)
    return F.normalize(u, dim=1), F.normalize(v, dim=1)


def _gallery(seed: int, smoke: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The size of COCO's test set of Karpathy: items, captions, and whose they are."""
    N, M, d = (50, 260, 8) if smoke else (5000, 25_010, 512)
    return *_embeddings(N, M, d, seed), torch.arange(M) % N


def latents(N: int, d: int, seed: int) -> Tensor:
    """Latents (N, d) as encoders make them, roughly: clusters, and a spectrum that falls."""
    generator = Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1) ** -0.5
    centres = torch.randn(max(2, N // 100), d, generator=generator)
    which = torch.randint(len(centres), (N,), generator=generator)
    return (centres[which] + 0.7 * torch.randn(N, d, generator=generator)) * spectrum


@cache
def _lite_pairs(items: int, seed: int) -> LatentPairs:
    """Five captions an item, near a fixed linear map of it."""
    owner = torch.arange(5 * items) // 5
    x = latents(items, LITE["image"], seed)
    y = latents(5 * items, LITE["text"], seed + 1) + x[owner, : LITE["text"]]
    return LatentPairs(x, y, owner)


def _lite_epoch(seed: int, smoke: bool) -> tuple[LatentPairs, dict, Callable[[], float]]:
    """Pairs, options of `fit` for an epoch of them, and the seconds that its operations take here."""
    items, B = (20, 8) if smoke else (8000, 256)
    pairs = _lite_pairs(items, seed)
    options = {"steps": len(pairs) // (2 * B), "batch_size": B, "shared_dim": 128, "seed": seed}
    shape = {"shared_dim": 128, "depth": 1, "batch_size": B, "steps": options["steps"]}
    return pairs, options, lambda: _operations(len(pairs), LITE, **shape) / rate()


def _operations(pairs: int, dims: dict[str, int], **shape: Any) -> float:
    """Operations of matrix products; the optimiser's are not among them."""
    cost = fusion_cost(pairs, dims, **shape)
    return cost.flops["adapters"] + cost.flops["similarity"]


# --- the plain ways -------------------------------------------------------------------------------------------------------


def sorted_ranks(scores: Tensor, owner: Tensor) -> dict[str, Tensor]:
    """`metrics.ranks` by sorting all of a query's gallery, as evaluations commonly do: (N, M) -> ranks of both directions.

    Captions of an item do not compete, so the rank of its best one is that one's place. Ties fall as the sort lets them.
    """
    x_to_y, y_to_x = [], []
    for items in torch.arange(len(scores)).split(100):
        place = scores[items].argsort(1, descending=True)  # (T, M), rows of y from the best to the worst
        x_to_y.append((owner[place] == items[:, None]).int().argmax(1))
    for rows in torch.arange(len(owner)).split(500):
        place = scores[:, rows].T.contiguous().argsort(1, descending=True)  # (T, N)
        y_to_x.append((place == owner[rows, None]).int().argmax(1))
    return {"x_to_y": 1 + torch.cat(x_to_y), "y_to_x": 1 + torch.cat(y_to_x)}


def one_by_one(z: Tensor, k: int) -> Tensor:
    """`subsets.greedy_kdpp` as it is written down: one row of the factor, and every item's gain, a pick."""
    z = F.normalize(z.double(), dim=1)
    factor = z.new_empty(k, len(z))
    gain, picks, best = squared_kernel(z.new_ones(1)).repeat(len(z)), [], 0
    for t in range(k):
        row = squared_kernel(z @ z[best])
        row -= factor[:t].T @ factor[:t, best]
        row /= gain[best].sqrt()
        factor[t] = row
        gain -= row**2
        picks.append(best)
        gain[best] = -torch.inf
        best = int(gain.argmax())
    return torch.tensor(picks)


def eliminated(z: Tensor, k: int) -> Tensor:
    """The same on the dense kernel (N, N): a pick's row and column are eliminated from it, as Gauss does."""
    z = F.normalize(z.double(), dim=1)
    kernel, picks = squared_kernel(z @ z.T), [0]
    while len(picks) < k:
        row = kernel[picks[-1]].clone()
        kernel.addr_(row, row / row[picks[-1]], alpha=-1)
        gain = kernel.diagonal().clone()
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
    return torch.tensor(picks)


def two_products(u: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """The contrastive loss as it is commonly written: a matrix for each direction, each with its cross-entropy."""
    targets = torch.arange(len(u))
    return (F.cross_entropy(u @ v.T / temperature, targets) + F.cross_entropy(v @ u.T / temperature, targets)) / 2


def official_adamw(model: FusionModel, weight_decay: float) -> torch.optim.AdamW:
    """`training.adamw` as torch does it on a CPU unless told otherwise: one weight matrix after another."""
    return torch.optim.AdamW(adamw(model, weight_decay).param_groups, fused=False, foreach=False)


def official_epoch(pairs: LatentPairs, *, steps: int, batch_size: int, shared_dim: int, seed: int) -> Tensor:
    """What `fit` does in an epoch, by a loader of dictionaries of single latents: the losses of all steps."""
    generator, cpu, losses = Generator().manual_seed(seed), torch.device("cpu"), []
    items = pairs.owner.tolist()

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            return {"image": pairs.x[items[i]], "text": pairs.y[i]}

    order = (rows.tolist() for rows in ShuffledBatches(len(pairs), 2 * batch_size, generator))
    loader = DataLoader(Items(), batch_sampler=order, generator=Generator())
    with seeded(seed, cpu):
        model = FusionModel(pairs.dims, shared_dim, 1, 4, 0.3).train()
        optimizer = official_adamw(model, 0.1)
        for step, batch in zip(range(1, steps + 1), loader, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * lr_factor(step, steps, 0.1)
            zx, zy = fusemix(batch["image"], batch["text"], 1.0, generator)
            loss = two_products(model.embed("image", zx), model.embed("text", zy), model.temperature)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.clamp_temperature()
    return torch.tensor(losses)


# --- measuring ------------------------------------------------------------------------------------------------------------


def measure(
    names: Iterable[str] | None = None,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    smoke: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Iterable[tuple[str, dict]]:
    """Measure rows, one after another.

    Args:
        names: of `ROWS`; None: all but those that are run once, which take minutes.
        rounds: pairs of ours and plain.
        seed: of the input.
        smoke: small sizes, to see that it runs; the numbers mean nothing.
        note: told what is going on.

    Returns:
        Pairs of a name and a dict: ours, plain, limit (in ``unit``; None where there is none), ratio (ours : plain),
        of_limit (limit : ours), agreement, judged (what the goal is about), goal, met (None at small sizes), and what they
        were measured with; where a row has more to tell, its curve or growth.

    Raises:
        FuseMixLiteError: an unknown row, fewer than one round, or two ways that do not give the same.
    """
    names = [name for name, found in ROWS.items() if found.unit != "once"] if names is None else list(names)
    for name in names:
        if name not in ROWS:
            raise FuseMixLiteError(f"bench: no row {name!r}; there are {', '.join(ROWS)}")
    if rounds < 1:
        raise FuseMixLiteError(f"bench: rounds = {rounds}: give at least 1")
    return _measured(names, rounds, seed, smoke, note)


def _measured(names: list[str], rounds: int, seed: int, smoke: bool, note: Callable) -> Iterable[tuple[str, dict]]:
    for name in names:
        found = ROWS[name]
        note(f"{name}: {found.about}")
        if found.unit in TURNS:
            values = _in_turns(found.make(seed, smoke), rounds, found.unit)
        elif found.unit == "bytes":
            values = _at_the_peak(name, seed, smoke)
        elif found.unit == "growth":
            values = _growth(name, seed, smoke)
        else:
            values = _once(name, seed, smoke)
        met = None
        if found.goal is not None and not smoke:
            met = bool(values["judged"] >= found.goal if found.unit == "share" else values["judged"] <= found.goal)
        described = {"about": found.about, "against": found.plain, "limit_is": found.limit}
        described |= {"unit": found.unit, "goal": found.goal}
        command = f"OMP_NUM_THREADS={torch.get_num_threads()} fusemix-lite bench --rows {name}"
        command += f" --rounds {rounds}" * (found.unit in TURNS and rounds != ROUNDS) + f" --seed {seed}" * (seed != 0)
        with_what = {"seed": seed, "smoke": smoke, "command": command + " --smoke" * smoke, "machine": setting()}
        yield name, {**described, **values, "met": met, **with_what}


def _in_turns(case: Case, rounds: int, unit: str) -> dict:
    turns, timed = [], _wall_seconds if unit == "wall" else _seconds
    for turn in range(rounds):
        found = {way: timed(getattr(case, way)) for way in (("ours", "plain"), ("plain", "ours"))[turn % 2]}
        if turn == 0:
            agreement = case.agree(found["ours"][1], found["plain"][1])
        turns.append({way: seconds for way, (seconds, _) in found.items()} | {"limit": case.limit()})
    median = {way: statistics.median(turn[way] for turn in turns) for way in turns[0]}
    ratio = statistics.median(turn["ours"] / turn["plain"] for turn in turns)
    of_limit = statistics.median(turn["limit"] / turn["ours"] for turn in turns)
    told = {"ratio": ratio, "of_limit": of_limit, "rounds": rounds, "agreement": agreement}
    return {**median, **told, "judged": of_limit if unit == "share" else ratio}


def _at_the_peak(name: str, seed: int, smoke: bool) -> dict:
    ours, plain = (_own_process(name, way, seed, smoke) for way in ("ours", "plain"))
    values = {"ours": ours["peak"], "plain": plain["peak"], "limit": ours["limit"]}
    of_limit = values["limit"] / max(values["ours"], 1)
    return {**values, "ratio": values["ours"] / max(values["plain"], 1), "of_limit": of_limit, "judged": values["ours"]}


def _once(name: str, seed: int, smoke: bool) -> dict:
    ours = _own_process(name, "ours", seed, smoke)
    curve = ours["result"]  # (how many, after how many seconds)
    values = {"ours": curve[-1][1], "plain": None, "limit": ours["limit"], "peak": ours["peak"], "curve": curve}
    return {**values, "ratio": None, "of_limit": ours["limit"] / max(curve[-1][1], 1e-9), "judged": ours["peak"]}


def _growth(name: str, seed: int, smoke: bool) -> dict:
    ours = _own_process(name, "ours", seed, smoke)
    points, first = ours["result"], {}
    for point in points:  # measured : predicted, and as multiples of that at the first size
        for of in ("seconds", "bytes"):
            ratio = point[of] / point[f"predicted_{of}"]
            point[f"{of}_off"] = ratio / first.setdefault((point["what"], of), ratio)
    seconds = sum(point["seconds"] for point in points)
    values = {"ours": seconds, "plain": None, "limit": ours["limit"], "growth": points, "ratio": None, "judged": None}
    return {**values, "of_limit": ours["limit"] / seconds}


def _sizes(dims: int) -> dict[str, int]:
    return {"image": dims, "text": 2 * dims // 3}  # as 192 + 128 and 1,536 + 1,024 are


def _predicted(batch: int, dims: int, depth: int, pairs: int = 0) -> Cost:
    """What `fl.costs` says of one step, or of an epoch of so many pairs."""
    tile = TILE["cpu"] if 4 * batch**2 > DENSE_BYTES["cpu"] else None  # as the loss takes it
    shape = {"shared_dim": 128, "depth": depth, "batch_size": batch, "tile": tile}
    return fusion_cost(pairs or 2 * batch, _sizes(dims), **shape, epochs=1)


def _grown(batch: int, dims: int, depth: int, seed: int) -> dict:
    """Time of a step, the median of three, and the peak of memory from an empty beginning, beside what is predicted."""
    cost = _predicted(batch, dims, depth)
    z = {name: latents(batch, d, seed) for name, d in _sizes(dims).items()}
    gc.collect()
    _give_back()
    held = _reset_peak()
    model = FusionModel(_sizes(dims), 128, depth)
    optimizer, times = adamw(model, 0.1), []

    def step() -> None:
        loss = symmetric_infonce(model.embed("image", z["image"]), model.embed("text", z["text"]), model.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(4):
        times.append(_seconds(step)[0])
    return {
        "seconds": statistics.median(times[1:]),  # the first one makes the optimiser's moments
        "bytes": _memory("VmHWM") - held,
        "predicted_seconds": cost.total_flops / 1e11,  # at a rate that falls out of every ratio of sizes
        "predicted_bytes": cost.total_bytes - cost.bytes["latents"],
    }


def _epoch_grown(pairs: int, batch: int, dims: int, depth: int, seed: int) -> dict:
    """The same of an epoch of `fit` over so many pairs; here memory is that of the latents too."""
    gc.collect()
    _give_back()
    held, cost = _reset_peak(), _predicted(batch, dims, depth, pairs)
    x, y = (latents(pairs, d, seed) for d in _sizes(dims).values())
    train = LatentPairs(x, y, torch.arange(pairs))
    _give_back()
    _reset_peak()  # what it took to make them up is not the run's
    options = {"steps": pairs // (2 * batch), "batch_size": batch, "shared_dim": 128, "depth": depth, "seed": seed}
    seconds, _ = _seconds(lambda: fit(train, **options, device="cpu", progress=False))
    found = {"seconds": seconds, "bytes": _memory("VmHWM") - held}
    return {**found, "predicted_seconds": cost.total_flops / 1e11, "predicted_bytes": cost.total_bytes}


def _give_back() -> None:
    """Ask the C library for the memory that it keeps for later, so that it is not taken for free."""
    if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def _in_processes(jobs: Sequence[tuple], workers: int, threads: int) -> Tensor:
    """Last losses of lite runs that are shared among processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
        return torch.tensor([future.result() for future in [pool.submit(_short_run, *job) for job in jobs]])


def _fitted_together(world: int, threads: int, job: tuple) -> Tensor:
    """Losses of a run that some processes share, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(world, context, torch.set_num_threads, (threads,)) as pool:
        return [pool.submit(_one_of_them, place | {"RANK": str(rank)}, *job) for rank in range(world)][0].result()


def _one_of_them(place: dict[str, str], batch_size: int, steps: int, dims: dict[str, int], seed: int) -> Tensor:
    os.environ.update(place)
    x, y = (latents(4 * batch_size, d, seed) for d in dims.values())
    options = {"steps": steps, "batch_size": batch_size, "shared_dim": 512, "dropout": 0.0, "seed": seed}
    return _losses(fit(LatentPairs(x, y, torch.arange(len(x))), **options, device="cpu", progress=False))


def _short_run(items: int, batch_size: int, steps: int, seed: int) -> float:
    pairs = _lite_pairs(items, 0)
    options = {"steps": steps, "batch_size": batch_size, "shared_dim": 128, "seed": seed}
    return fit(pairs, **options, device="cpu", progress=False).history[-1]["loss"]


def _losses(result) -> Tensor:
    return torch.tensor([entry["loss"] for entry in result.history])


def clock() -> float:
    """Seconds of the processor where one thread computes, since other programs do not count there; else as they pass."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = clock()
    result = call()
    return clock() - started, result


def _wall_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def rate(dtype: torch.dtype = torch.float32, size: int = 1024, seconds: float = 0.3) -> float:
    """Operations a second of products of size x size matrices: the best of some, which others disturb least."""
    a, b = (torch.rand(size, size, dtype=dtype) for _ in range(2))
    end, best = clock() + seconds, float("inf")
    while clock() < end or best == float("inf"):
        best = min(best, _seconds(lambda: a @ b)[0])
    return 2.0 * size**3 / best


def on_two_cores() -> float:
    """`rate` of two threads that do not wait for each other."""
    return 2 * rate() / torch.get_num_threads()


def _own_process(name: str, way: str, seed: int, smoke: bool) -> dict:
    """Run one way of a row in a process of its own: what `_child` prints."""
    command = [sys.executable, "-m", __name__, json.dumps([name, way, seed, smoke])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}: too little memory?"])[-1]
        raise FuseMixLiteError(f"bench: {name}, {way}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _child(name: str, way: str, seed: int, smoke: bool) -> dict:
    case = ROWS[name].make(seed, smoke)
    call, times = getattr(case, way), case.times if way == "plain" else 1
    held = _reset_peak()
    result = call()
    peak = (_memory("VmHWM") - held) * times
    return {"peak": peak, "limit": case.limit(), "result": result if ROWS[name].unit in ("once", "growth") else None}


def _reset_peak() -> int:
    """Bytes that this process holds now; its peak is counted from here on."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")
    except OSError as error:
        raise FuseMixLiteError("bench: peaks of memory are read from /proc, on Linux: leave these rows out") from error
    return _memory("VmRSS")


def _memory(key: str) -> int:
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))[1])


def setting() -> dict:
    """`machine`, and how many threads torch has here."""
    return machine() | {"threads": torch.get_num_threads()}


def machine() -> dict:
    """The machine and the software that a time was measured with; no name of the machine."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text("utf-8")) if info.exists() else None
    return {
        "processor": found[1].strip() if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def _with_gradients(loss: Callable, u: Tensor, v: Tensor) -> list[Tensor]:
    inputs = [z.requires_grad_() for z in (u.detach(), v.detach(), torch.tensor(0.07))]
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def _kdpp(z: Tensor, k: int, plain: Callable[[Tensor, int], Tensor]) -> Case:
    def agree(ours, plain) -> str:
        if not ours.equal(plain):
            raise FuseMixLiteError(f"bench: only {int((ours == plain).cumprod(0).sum())} of {k} picks are the same")
        return "picks identical"

    operations = len(z) * k * (2 * z.shape[1] + k)
    return Case(lambda: greedy_kdpp(z, k), lambda: plain(z, k), lambda: operations / rate(torch.float64), agree)


def _same_ranks(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> str:
    differ = sum(int((ours[way] != plain[way]).sum()) for way in ours)
    return _within(differ / sum(map(len, ours.values())), 1e-3, "share of ranks that differ, by ties:", "ranks identical")


def _same_rows(ours: list[Tensor], plain: list[Tensor]) -> str:
    return _within(float(sum(int((a != b).sum()) for a, b in zip(ours, plain, strict=True))), 0, "", "rows identical")


def _close(ours: list[Tensor], plain: list[Tensor], most: float) -> str:
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, plain, strict=True))
    return _within(worst, most, "loss and gradients within")


def _within(value: float, most: float, words: str, none: str = "identical") -> str:
    if not value <= most:
        raise FuseMixLiteError(f"bench: the two ways differ by {value:.1e}, more than {most:.0e}")
    return f"{words} {value:.1e}" if value else none


# --- telling --------------------------------------------------------------------------------------------------------------


def amount(value: float | None, unit: str) -> str:
    """Seconds or bytes as people read them."""
    if value is None:
        return "–"
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB" if value >= 1e7 else f"{value / 1e6:.2f} MB"
    if value >= 100:
        return f"{value:.0f} s"
    return f"{value:.2g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def judged(found: dict) -> str:
    """A row's goal, and whether it was met."""
    if found["goal"] is None:
        return "no goal"
    goal = f"ratio at most {found['goal']:.2g}" if found["unit"] in TURNS else f"at most {amount(found['goal'], 'bytes')}"
    goal = f"limit : ours at least {found['goal']:.2g}" if found["unit"] == "share" else goal
    return f"goal: {goal}, {({True: 'met', False: 'MISSED', None: 'not judged'})[found['met']]}"


def line(name: str, found: dict) -> str:
    """A row as a line of text."""
    unit = "bytes" if found["unit"] == "bytes" else "seconds"
    parts = [f"{name:<14}", *(f"{way} {amount(found[way], unit):>8}" for way in ("ours", "plain", "limit"))]
    if found["ratio"] is not None:
        parts.append(f"ours : plain {found['ratio']:.3g}")
    parts.append(f"limit : ours {found['of_limit']:.2g}")
    if "peak" in found:
        parts.append(f"peak {amount(found['peak'], 'bytes')}")
    return "  ".join([*parts, judged(found), *([found["agreement"]] if "agreement" in found else [])])


def keep(path: str | Path, name: str, found: dict) -> None:
    """Put a row into a JSON record, beside the rows that are there. Small sizes are refused: they mean nothing."""
    if found["smoke"]:
        raise FuseMixLiteError("bench: a record takes no smoke rows: leave out --smoke, or --record")
    path = Path(path)
    content = read_json(path, "give another name to --record") if path.exists() else {}
    if not isinstance(content, dict):
        raise FuseMixLiteError(f"{path} is no record: give another name to --record")
    content[name] = found
    ordered = {known: content[known] for known in ROWS if known in content}
    path.write_text(json.dumps(content if len(ordered) < len(content) else ordered, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    print(json.dumps(_child(*json.loads(sys.argv[1]))))
