"""Train fusion adapters on paired latents."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from . import __version__
from .adapters import TEMPERATURE_RANGE, FusionModel
from .checkpoints import Checkpoints
from .device import index_of, pick_device, seed_generators
from .distributed import joined
from .errors import FuseMixLiteError
from .launched import own_device
from .losses import symmetric_infonce
from .metrics import mean_recall, retrieval
from .mixing import SCHEMES, no_mixing
from .pairs import LatentPairs
from .resuming import Run, stamp
from .taking import taking

REMEDY = "lower lr, or set standardize=True"


@dataclass
class FitResult:
    """What `fit` returns.

    Attributes:
        model: in evaluation mode, on the device it was trained on.
        history: a dict a step: step (from 1), loss (nats), temperature, lr; where `val` was looked at also val (in
            percent, as `retrieval` gives it) and val_mean (mean of both directions' R@1, 5, 10).
        best_step: the step whose weights `model` holds.
        seconds: wall time of the whole call, and of those before it that were stopped.
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
    precision: str = "fp32",
    compile: bool = False,
    evals: int = 10,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = True,
    checkpoint: str | Path | Checkpoints | None = None,
) -> FitResult:
    """Align two modalities: AdamW on symmetric InfoNCE between augmented latents.

    Every row of a batch is a pair: a row of y with its owner's x. Epochs are shuffled and their incomplete last batch
    is dropped. Weight decay touches matrices only. Latents in memory are moved to `device` at once, those on disk
    (`LatentPairs.from_stores(..., in_memory=False)`) batch by batch, one ahead; the numbers are the same.

    Processes that were launched together (RANK, WORLD_SIZE; torchrun, accelerate) fit one model: each embeds its share of a
    batch, and every pair is a negative of every other, wherever it is. `batch_size` is that of all of them together. Without
    dropout the result is that of one process up to rounding; dropout draws other masks.

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
        precision: of matrix products, in adapters and loss: "fp32" or "bf16" (autocast; weights, sums and looks at `val` stay
            fp32). For GPUs and CPUs with matrix units; others are slower in bf16.
        compile: let `torch.compile` make one program of each adapter, half a minute before the first step. For long runs on
            a GPU; on a CPU it takes a C++ compiler, and is hardly ever worth it. Dropout draws other masks.
        evals: looks at `val`, evenly spread over the steps.
        seed: sets initialisation, batch order, mixing and dropout. The caller's random state is left untouched.
        device: "auto" is CUDA where there is one (of several, the one the launcher means), otherwise the CPU.
        progress: show a bar; of several processes, the first does.
        checkpoint: a folder in which the run leaves its state every half minute, or `Checkpoints` with another rhythm. The
            same call goes on from there, whatever stopped the one before, and on a CPU gives the same result bit for bit.
            Nothing is deleted at the end: `Checkpoints.remove` does it once the result is saved. Of several processes the
            first one writes and reads them.

    Raises:
        FuseMixLiteError: an argument of the wrong kind or out of range, an unknown scheme, `val` that does not fit `train`,
            checkpoints of another run, or a loss or weights that are not finite. The error then names the step, has the rows
            of the batch as its attribute `rows`, and says which latents were not finite, if any, and the last good checkpoint.

    Source: official code (AdamW, decay, schedule, temperature), with selection on validation instead of test data.
    """
    # First, while nothing else has a name: an option that is added is part of what determines a run, unless it is named here.
    options = {key: value for key, value in locals().items() if key not in ("train", "val", "device", "progress", "checkpoint")}
    started = time.perf_counter()
    _check(train, val, options)
    scheme, checkpoints = SCHEMES[augment], Checkpoints.of(checkpoint)
    batch_size = _fitting_batch(batch_size, scheme.rows_per_pair, len(train))
    device = pick_device(own_device(device))
    (a, b), x, y, owner = train.names, train.x.to(device), train.y.to(device), train.owner.to(device)
    generator = Generator(device).manual_seed(seed)  # batch order and mixing
    look_at = {round(steps * (i + 1) / evals) for i in range(evals)} if val is not None else set()

    with (
        joined(device) as processes,
        seeded(seed, device),  # initialisation and dropout, which take no generator
        ExitStack() as stack,
    ):
        model = FusionModel(train.dims, shared_dim, depth, expansion, dropout, standardize).to(device)
        model.fit_standardizers({a: x, b: y})
        if temperature is not None:
            model.temperature.requires_grad_(False).fill_(temperature)
        optimizer = adamw(model, weight_decay)
        embed = _compiled(model.embed) if compile else model.embed
        batches = ShuffledBatches(len(train), batch_size * scheme.rows_per_pair, generator)
        take_x, take_y = taking(x), taking(y)
        run = Run(model, optimizer, batches, steps, started)
        share, identity = processes.share, {}
        if checkpoints.folder or share.world > 1:
            identity = _identity(options, share.world, device, train, val)
            processes.check_alike(identity)
        checkpoints = checkpoints if processes.first else checkpoints.of_another()

        def begin() -> int:
            stack.enter_context(checkpoints)
            return checkpoints.resume(identity, run.restore)

        done = processes.start_alike(run, begin)
        bar = {"desc": f"fit ({augment})", "initial": done, "total": steps, "disable": not (progress and processes.first)}
        for step in tqdm(range(done + 1, steps + 1), **bar):
            for group in optimizer.param_groups:
                group["lr"] = lr * lr_factor(step, steps, warmup)
            rows, augmented = next(batches), scheme
            if mix_probability < 1 and torch.rand((), generator=generator, device=device) >= mix_probability:
                rows, augmented = rows[:batch_size], no_mixing
            items = owner.index_select(0, rows)
            zx, zy = augmented(take_x(items), take_y(rows), alpha, generator, per)
            upcoming = batches.upcoming if step < steps else None
            if upcoming is not None:
                take_x.ahead(owner.index_select(0, upcoming))
                take_y.ahead(upcoming)
            # (1, pairs) items, or (2, pairs) where rows are mixed two by two: labels, so that no matrix is needed for it
            same = items.view(-1, len(zx)) if mask_negatives else None
            processes.seed_dropout(seed, step)
            pairs, own = len(zx), share.rows(len(zx))
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                u, v = embed(a, zx[own]), embed(b, zy[own])
                if share.world == 1:
                    loss = symmetric_infonce(u, v, model.temperature, same)
                else:
                    loss = processes.loss(u, v, model.temperature, pairs, same)
            entry = {"step": step, "loss": loss.item(), "temperature": model.temperature.item(), "lr": group["lr"]}
            if not math.isfinite(entry["loss"]):
                raise _breakdown(entry, model, train, rows, checkpoints)
            optimizer.zero_grad()
            loss.backward()
            stop = processes.add_gradients(model, checkpoints.stopping)
            optimizer.step()
            model.clamp_temperature()
            if step in look_at or step == steps:
                _check_weights(model, step, checkpoints)
            if step in look_at:
                entry["val"] = retrieval(model, val)
                entry["val_mean"] = mean_recall(entry["val"])
            run.add(entry)
            checkpoints.keep(step, run.state, last=step == steps, stop=stop)
    return FitResult(*run.finished(), run.seconds)


def best_mean(history: Iterable[dict]) -> float:
    """The best mean of validation recalls in the history of a run, in percent; 0 where nobody looked."""
    return max(entry.get("val_mean", 0.0) for entry in history)


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """The learning rate of step 1..steps as a share of its peak: linear up over `warmup`, then a cosine down to 0."""
    ramp = warmup * steps
    if step <= ramp:
        return step / ramp
    return 0.5 * (1 + math.cos(math.pi * (step - ramp) / (steps + 1 - ramp)))


class ShuffledBatches(Iterator[Tensor]):
    """Row numbers of one batch after another, (rows,) each, from endless shuffled epochs. ``len`` is the batches of an epoch.

    Attributes:
        epoch: state of the generator from which the order of this epoch was drawn; None before the first.
        taken: batches taken of this epoch. The two say where it stands, and `go_to` goes there.
    """

    def __init__(self, pairs: int, rows: int, generator: Generator):
        self.pairs, self.rows, self.generator = pairs, rows, generator
        self.epoch, self.taken, self._batches = None, 0, ()

    def __len__(self) -> int:
        return self.pairs // self.rows

    def __next__(self) -> Tensor:
        if self.taken == len(self._batches):
            self._shuffle()
        self.taken += 1
        return self._batches[self.taken - 1]

    @property
    def upcoming(self) -> Tensor | None:
        """The next batch; None where that is of another epoch, whose order is not drawn before its time."""
        return self._batches[self.taken] if self.taken < len(self._batches) else None

    def go_to(self, epoch: Tensor, taken: int) -> None:
        """Stand where `taken` batches of the epoch have been taken; the generator stands behind the order of the epoch."""
        self.generator.set_state(epoch.clone())
        self._shuffle()
        self.taken = taken

    def _shuffle(self) -> None:
        self.epoch, self.taken = self.generator.get_state(), 0
        order = torch.randperm(self.pairs, generator=self.generator, device=self.generator.device)
        self._batches = order[: self.pairs - self.pairs % self.rows].split(self.rows)


def adamw(model: FusionModel, weight_decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]  # biases, LayerNorm, temperature
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=True)


def _compiled(embed: Callable[[str, Tensor], Tensor]) -> Callable[[str, Tensor], Tensor]:
    """`embed` by torch.compile. Raises FuseMixLiteError where that cannot be done, at the first call."""
    torch.compiler.reset()  # a few programs of one function are kept: from some fit on there would be no new ones, silently
    compiled = torch.compile(embed)

    def call(modality: str, z: Tensor) -> Tensor:
        try:
            return compiled(modality, z)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            why = " ".join(str(error).split())[:200]
            raise FuseMixLiteError(f"torch.compile failed ({why}): install a C++ compiler, or leave compile out") from error

    return call


@contextmanager
def seeded(seed: int, device: torch.device):
    """Seed torch's global state inside, give it back as it was after."""
    with torch.random.fork_rng([index_of(device)] if device.type == "cuda" else []):
        seed_generators(seed, device)
        yield


def _fitting_batch(batch_size: int, rows_per_pair: int, pairs: int) -> int:
    if batch_size * rows_per_pair <= pairs:
        return batch_size
    smaller = pairs // rows_per_pair
    if smaller < 2:
        raise FuseMixLiteError(f"{pairs} training pairs are too few: the smallest batch takes {2 * rows_per_pair}")
    warnings.warn(f"batch_size {batch_size} takes {batch_size * rows_per_pair} rows of {pairs}: using {smaller}", stacklevel=3)
    return smaller


def _identity(options: dict, processes: int, device: torch.device, train: LatentPairs, val: LatentPairs | None) -> dict:
    """Everything that determines a run: with the same, the same machine gives the same bits."""
    made_of = {"train": stamp(train), "val": None if val is None else stamp(val), "device": device.type, "processes": processes}
    return {**options, **made_of, "torch": torch.__version__, "fusemix_lite": __version__}


def _not_finite(tensors: dict[str, Tensor]) -> str | None:
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def _check_weights(model: FusionModel, step: int, checkpoints: Checkpoints) -> None:
    broken = _not_finite(model.state_dict())
    if broken:
        raise FuseMixLiteError(f"{broken} is not finite after step {step}: {REMEDY}; {checkpoints.told}")


def _breakdown(entry: dict, model: FusionModel, train: LatentPairs, rows: Tensor, checkpoints: Checkpoints) -> FuseMixLiteError:
    """The error for a loss that is not finite: where it comes from, as far as can be seen, and where to look."""
    rows, latents = rows.cpu(), {}
    for name, z, index in zip(train.names, (train.x, train.y), (train.owner[rows], rows), strict=True):
        latents[name] = index[~z.index_select(0, index).isfinite().all(1)].unique().tolist()
    told = [f"{name} latents {_first(found)}" for name, found in latents.items() if found]
    weights = _not_finite(model.state_dict())
    if told:
        cause = f"{' and '.join(told)} are not finite: extract them again"
    elif weights:
        cause = f"{weights} is not finite since the step before: {REMEDY}"
    else:
        cause = f"latents and weights are finite: {REMEDY}"
    facts = {"step": entry["step"], "loss": str(entry["loss"]), "rows": rows.tolist(), "latents": latents, "weights": weights}
    where = f"its batch is {train.names[1]} {_first(facts['rows'])}; {checkpoints.fail(facts)}"
    error = FuseMixLiteError(f"the loss is {entry['loss']} at step {entry['step']}: {cause} ({where})")
    error.rows = facts["rows"]
    return error


def _first(rows: list[int]) -> str:
    many = f", … ({len(rows)} in all)" if len(rows) > 5 else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:5]))}{many}"


#: The least that an option can be, a whole number. Those of the `FusionModel` are checked there.
_LEAST = {"batch_size": 2, "steps": 1, "evals": 1, "seed": 0}


def _check(train, val, options: dict) -> None:
    for name, pairs in (("train", train), ("val", val)):
        if not isinstance(pairs, LatentPairs) and (name, pairs) != ("val", None):
            what = f"fit: {name} is a {type(pairs).__name__}"
            raise FuseMixLiteError(f"{what}: give LatentPairs (workflow.open_latents reads a folder)")
    if options["augment"] not in [*SCHEMES]:
        raise FuseMixLiteError(f"unknown scheme {options['augment']!r}: choose one of {', '.join(SCHEMES)}")
    low, high = TEMPERATURE_RANGE
    for name, least in _LEAST.items():
        if not _is(Integral, options[name]) or not least <= options[name] < 2**63:
            raise FuseMixLiteError(f"fit: {name} = {options[name]!r} is out of range: give a whole number, {least} or more")
    between = {
        "lr": (lambda value: 0 < value < math.inf, "a number above 0"),
        "alpha": (lambda value: 0 <= value < math.inf, "a number, 0 or more"),
        "weight_decay": (lambda value: 0 <= value < math.inf, "a number, 0 or more"),
        "warmup": (lambda value: 0 <= value < 1, "a share below 1"),
        "mix_probability": (lambda value: 0 <= value <= 1, "a share, 0 to 1"),
        "temperature": (lambda value: low <= value <= high, f"None, or {low} to {high}"),
    }
    for name, (fine, remedy) in between.items():
        value = options[name]
        if (name, value) != ("temperature", None) and not (_is(Real, value) and fine(value)):
            raise FuseMixLiteError(f"fit: {name} = {value!r} is out of range: give {remedy}")
    if options["precision"] not in ("fp32", "bf16"):
        raise FuseMixLiteError(f"fit: precision = {options['precision']!r}: give fp32 or bf16")
    for name in ("mask_negatives", "compile"):
        if options[name] not in (True, False):  # NumPy's, too
            raise FuseMixLiteError(f"fit: {name} = {options[name]!r}: give True or False")
    if val is not None and val.dims != train.dims:
        raise FuseMixLiteError(f"val has latents {val.dims}, train {train.dims}: use the same encoders")


def _is(kind: type, value) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
