"""What fusion costs, and what comes before it: parameters, operations, bytes, time. Counted for any configuration.

Three stages, and a switch for each (`STAGES`): a factor between two methods depends on which of them are counted.

    pretraining   of the unimodal encoders, by whoever made them
    extraction    one pass of each encoder over its items: latents on disk
    fusion        training the adapters on latents

Operations are floating-point operations (FLOPs) of matrix products and convolutions, a multiplication and an addition each,
as `torch.utils.flop_counter` counts them; the optimiser's, element by element, stand apart. `counted` counts what a call
really does, and every formula here is held against it in the tests. Time is operations over a rate: measured on this machine
(`measured_rate`) or from a data sheet (`DEVICES`), of which real programs reach a part.
"""

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .errors import FuseMixLiteError

STAGES = ("fusion", "extraction", "pretraining")
ITEM_SIZE = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes a number
DAY = 86_400  # seconds
ADAMW = 14  # operations a weight and step: two moments, their corrections, decay, the step itself


class Device(NamedTuple):
    """Peak rates of a device in operations a second, and its memory in bytes, from its maker's data sheet (dense; SXM variants
    where there are others)."""

    fp32: float
    fp16: float  # on its tensor cores, as bf16 where it has that
    memory: float
    source: str


DEVICES = {
    "T4": Device(8.1e12, 65e12, 16e9, "NVIDIA T4 data sheet"),  # what Colab lends for nothing; no bf16
    "V100": Device(15.7e12, 125e12, 32e9, "NVIDIA V100 data sheet, SXM2"),
    "A100": Device(19.5e12, 312e12, 80e9, "NVIDIA A100 data sheet, SXM4"),
    "H100": Device(67e12, 989e12, 80e9, "NVIDIA H100 data sheet, SXM5"),
    "H200": Device(67e12, 989e12, 141e9, "NVIDIA H200 data sheet, SXM"),
}


@dataclass(frozen=True)
class Cost:
    """What one stage takes.

    Attributes:
        stage: one of `STAGES`.
        parameters: weights that are trained.
        flops: operations by what they are spent on.
        bytes: by what they hold: in memory at once while fusing, on disk after extraction.
        rate: operations a second, None where time is not asked for.
    """

    stage: str
    parameters: int = 0
    flops: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    rate: float | None = None

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())

    @property
    def total_bytes(self) -> float:
        return sum(self.bytes.values())

    @property
    def seconds(self) -> float | None:
        """At the rate; None without one."""
        return None if self.rate is None else self.total_flops / self.rate

    @property
    def gpu_days(self) -> float | None:
        """Days of one device that works at the rate; None without one."""
        return None if self.seconds is None else self.seconds / DAY

    def at(self, rate: float) -> "Cost":
        """The same at another rate, in operations a second."""
        if not rate > 0:
            raise FuseMixLiteError(f"rate = {rate}: give operations a second, above 0")
        return replace(self, rate=rate)


def total_flops(costs: Iterable[Cost], include: Sequence[str] = STAGES) -> float:
    """Operations of the stages in ``include``, one or more of `STAGES`."""
    if not include or set(include) - set(STAGES):
        raise FuseMixLiteError(f"include = {include}: give one or more of {', '.join(STAGES)}")
    return sum(cost.total_flops for cost in costs if cost.stage in include)


# --- fusion ---------------------------------------------------------------------------------------------------------------


def adapter_parameters(dim: int, shared_dim: int, depth: int, expansion: int = 4) -> int:
    """Weights of one `FusionAdapter`: ``depth`` blocks (LayerNorm, two linear maps), LayerNorm, projection."""
    hidden = expansion * dim
    block = 2 * dim + (dim * hidden + hidden) + (hidden * dim + dim)
    return depth * block + 2 * dim + dim * shared_dim + shared_dim


def adapter_flops(dim: int, shared_dim: int, depth: int, expansion: int = 4) -> float:
    """Operations of one latent through one adapter, forwards. Training takes three times as many: each matrix product comes
    back twice, once for its weights and once for its input (the first one too, for the LayerNorm in front of it)."""
    return 2.0 * (depth * 2 * expansion * dim * dim + dim * shared_dim)


def steps_of(pairs: int, batch_size: int, epochs: int, rows_per_pair: int = 2) -> int:
    """Optimiser steps of some epochs whose last, incomplete batch is dropped. Mixing loads two rows a pair in the loss."""
    return epochs * (pairs // (batch_size * rows_per_pair))


def fusion_cost(
    pairs: int,
    dims: dict[str, int],
    *,
    shared_dim: int = 512,
    depth: int = 4,
    expansion: int = 4,
    batch_size: int = 20_480,
    steps: int | None = None,
    epochs: int | None = None,
    items: int | None = None,
    rows_per_pair: int = 2,
    logit_matrices: int = 1,
    tile: int | None = None,
    precision: str = "fp32",
    rate: float | None = None,
) -> Cost:
    """What training two adapters on latents takes, all of which lie in memory.

    Args:
        pairs: rows of y, each with the x that it belongs to.
        dims: latent dimension by modality, x first, as ``{"image": 1536, "text": 1024}``.
        shared_dim, depth, expansion: of the adapters. batch_size: pairs in the loss.
        steps, epochs: how long; one of the two.
        items: rows of x kept; None means one a pair, as the official code keeps them.
        rows_per_pair: latents loaded for a pair in the loss (2 where pairs are mixed).
        logit_matrices: how often the batch's similarities are computed; `symmetric_infonce` needs 1, the official code 2.
        tile: rows and columns of the tiles that the similarities are worked off in (`losses.TILE`, where a batch is above
            `losses.DENSE_BYTES`): two tiles in place of two matrices, and four products in place of three. None: one matrix.
        precision: of the latents and of what is computed: "fp32", "bf16" or "fp16"; weights and optimiser are fp32.
        rate: operations a second, for the time.

    Returns:
        A `Cost`. Its flops are of all steps, for "adapters", "similarity" and "optimiser"; its bytes are held by "latents",
        "weights" (with gradients and AdamW's two moments), "activations" (kept for the backward pass) and "similarity".

    Raises:
        FuseMixLiteError: neither or both of steps and epochs, an unknown precision, or a number below 1.
    """
    if (steps is None) == (epochs is None):
        raise FuseMixLiteError(f"fusion_cost: steps = {steps}, epochs = {epochs}: give one of the two")
    size = _item_size(precision)
    _positive(pairs=pairs, batch_size=batch_size, shared_dim=shared_dim, expansion=expansion, **dims)
    _positive(**({} if tile is None else {"tile": tile}))
    steps = steps if epochs is None else steps_of(pairs, batch_size, epochs, rows_per_pair)
    x, y = dims.values()
    parameters = 1 + sum(adapter_parameters(d, shared_dim, depth, expansion) for d in (x, y))  # 1: the temperature
    forward = batch_size * sum(adapter_flops(d, shared_dim, depth, expansion) for d in (x, y))
    similarity = 2.0 * batch_size**2 * shared_dim * logit_matrices
    products = 3 if tile is None else 4  # in tiles the similarities are computed again on the way back
    side = batch_size if tile is None else min(tile, batch_size)
    # A block keeps its input, the normed input, the widened one before and after GELU and dropout, and dropout's mask.
    kept = sum(depth * d * (2 + 3 * expansion) + 2 * d + 2 * shared_dim for d in (x, y))
    return Cost(
        stage="fusion",
        parameters=parameters,
        flops={
            "adapters": 3 * forward * steps,
            "similarity": products * similarity * steps,
            "optimiser": float(ADAMW * parameters * steps),
        },
        bytes={
            "latents": float(size * ((items or pairs) * x + pairs * y)),
            "weights": 4.0 * 4 * parameters,
            "activations": float(size * batch_size * kept),
            "similarity": float(size * side**2 * 2 * logit_matrices),  # the logits and their gradient
        },
        rate=rate,
    )


# --- extraction -----------------------------------------------------------------------------------------------------------


def transformer_flops(tokens: int, dim: int, depth: int, hidden: int | None = None, gated: bool = False) -> float:
    """Operations of ``tokens`` tokens through ``depth`` transformer layers: four projections, attention, and an MLP of
    ``hidden`` units (4 dim unless given) with two matrices, or three where it is ``gated`` (SwiGLU)."""
    hidden = hidden or 4 * dim
    projections = 4 * tokens * dim * dim
    attention = 2 * tokens * tokens * dim
    mlp = (3 if gated else 2) * tokens * dim * hidden
    return 2.0 * depth * (projections + attention + mlp)


def vit_flops(size: int, patch: int, dim: int, depth: int, hidden: int | None = None, gated: bool = False) -> float:
    """Operations of one ``size`` x ``size`` RGB image through a vision transformer with a class token. DINOv2 ViT-g/14:
    ``vit_flops(224, 14, 1536, 40, hidden=4096, gated=True)``."""
    patches = (size // patch) ** 2
    embed = 2.0 * patches * 3 * patch * patch * dim
    return embed + transformer_flops(patches + 1, dim, depth, hidden, gated)


def encoder_flops(encoder: Any, items: Sequence[Any]) -> float:
    """Operations a frozen encoder (`load_encoder`) spends on an item, counted on these, one at a time."""
    if not len(items):
        raise FuseMixLiteError("encoder_flops: no items: give a few images, captions or sounds")
    prepared = [encoder.prepare(item) for item in items]
    return sum(counted(lambda item=item: encoder.encode_prepared([item])) for item in prepared) / len(prepared)


def extraction_cost(items: int, flops_an_item: float, dim: int, *, precision: str = "fp16", rate: float | None = None) -> Cost:
    """One pass over ``items`` items (captions count each), and their latents of ``dim`` numbers on disk."""
    _positive(items=items, dim=dim)
    return Cost(
        stage="extraction",
        flops={"encoder": float(items * flops_an_item)},
        bytes={"latents": float(items * dim * _item_size(precision))},
        rate=rate,
    )


# --- pre-training ---------------------------------------------------------------------------------------------------------


def pretraining_cost(name: str, rate: float | None = None) -> Cost:
    """What pre-training a lite encoder took, by its recipe (`pretrain.RECIPES`): one step of it, counted, times its steps.

    Of pictures and sounds eight items are counted and the rest is multiplied; what grows with the square of the batch, the
    similarities, is reckoned apart.
    """
    from . import pretrain

    if name not in pretrain.RECIPES:
        raise FuseMixLiteError(f"no recipe for {name!r}; there are {', '.join(pretrain.RECIPES)}")
    recipe = pretrain.RECIPES[name]
    few = recipe["batch"] if "text" in name else 8
    model, step = _pretraining_step(name, {**recipe, "items": few, "batch": few, "steps": 1})
    with contextlib.redirect_stderr(io.StringIO()):  # the recipe shows a bar
        operations = counted(step)
    similarity = 0.0 if "text" in name else 3 * 2.0 * pretrain.DIM  # of a pair of items, forwards and backwards
    network = (operations - similarity * few**2) * recipe["batch"] / few
    return Cost(
        stage="pretraining",
        parameters=sum(p.numel() for p in model.parameters()),
        flops={"network": network * recipe["steps"], "similarity": similarity * recipe["batch"] ** 2 * recipe["steps"]},
        rate=rate,
    )


def _pretraining_step(name: str, recipe: dict) -> tuple[nn.Module, Callable[[], None]]:
    """A lite encoder with new weights, and a call that trains it by a recipe."""
    from . import pretrain
    from .encoders import load_encoder

    encoder = load_encoder(name, "cpu")
    model = type(encoder.model)(encoder.model.config)
    if "text" in name:
        model.pooler = None
        captions = pretrain._captions(recipe["items"])
        return model, lambda: pretrain.left_out_words(name, model, encoder.processor, captions, recipe, 0)
    shape = (3, 64, 64) if "image" in name else (pretrain.MELS, 150)
    if name == "lite-audio-b":
        model = _Holder(model)  # the recipe expects a model that has a decoder too
    data = torch.zeros(recipe["items"], *shape, dtype=torch.float16)
    return model, lambda: pretrain.contrastive(name, model, data, recipe, 0)


class _Holder(nn.Module):
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder


# --- before a run ---------------------------------------------------------------------------------------------------------


def before_run(profile: Any, arms: Sequence[dict], *args: Any, **options: Any) -> Any:
    """What runs of some arms will take and whether this machine has it: see `fusemix_lite.budget.before_run`."""
    from . import budget

    return budget.before_run(profile, arms, *args, **options)


# --- counting and measuring -----------------------------------------------------------------------------------------------


def counted(call: Callable[[], Any]) -> float:
    """Operations that a call spends on matrix products and convolutions, backward passes among them.

    Fused attention is unfolded for it: on a CPU the counter does not see into it.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def measured_rate(seconds: float = 1.0, size: int = 512, device: str | torch.device = "cpu") -> float:
    """Operations a second of this machine, as torch is set up now: the best of many fp32 products of size x size matrices.

    Other programs that run meanwhile lower it; the best of many is the least disturbed one.
    """
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end or best == math.inf:
        started = time.perf_counter()
        product = a @ b
        product[0, 0].item()  # wait for a device that computes on its own
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _item_size(precision: str) -> int:
    if precision not in ITEM_SIZE:
        raise FuseMixLiteError(f"precision = {precision!r}: choose one of {', '.join(ITEM_SIZE)}")
    return ITEM_SIZE[precision]


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise FuseMixLiteError(f"{name} = {value}: give a number of at least 1")
