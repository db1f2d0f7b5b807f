"""How alike two sets of latents of the same items are, before anything is trained, and how good a choice such a score makes.

Row i of `x` and row i of `y` belong to one item. The scores look at no coordinates, only at how items lie to each other, so
the two sides may have different dimensions, and turning or scaling a side as a whole changes nothing.

    x, y = sides(val)      # one row an item on either side
    cka(x, y), mutual_knn(x, y), cca_recall(x, y)
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .adapters import Standardizer
from .errors import FuseMixLiteError
from .metrics import recall_at_k, tiles
from .pairs import LatentPairs
from .stats import Interval


def sides(pairs: LatentPairs, standardize: bool = True) -> tuple[Tensor, Tensor]:
    """Latents of both sides with one row an item, (N', dx) and (N', dy) float64: what `cka` and `mutual_knn` take.

    An item's captions are averaged: one caption tells some attributes and leaves out others, and what it happens to leave
    out would count as dissimilarity that belongs to neither encoder. Items without a y are left out. `standardize` gives
    every dimension mean 0 and variance 1, as an adapter with ``standardize=True`` sees it, so that of two concatenated
    encoders neither counts for more because its numbers are larger; dimensions that never vary are only centred.
    """
    x, y = pairs.per_item()
    return (_standardized(x), _standardized(y)) if standardize else (x, y)


def cka(x: Tensor, y: Tensor, debiased: bool = True) -> float:
    """Linear centred kernel alignment of x (N, dx) and y (N, dy): 1 for spaces that are the same but for rotation, shift
    and scale.

    It compares all similarities between items in one space with those in the other: HSIC(x, y) over the root of
    HSIC(x, x) HSIC(y, y), from the (dx, dy) products, never an (N, N) matrix: O(N dx dy) time.

    `debiased` (N >= 4) estimates each HSIC without bias, so that unrelated spaces score 0 on average, a little below or
    above. The usual estimate is far above 0 where N is not much larger than the dimensions, which makes wide latents look
    alike.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, equation 4; the estimator
    without bias is HSIC_1 of Song et al., Feature Selection via Dependence Maximization, JMLR 2012, equation 5.

    Raises:
        FuseMixLiteError: shapes that do not match row by row, too few rows, values that are not finite, or a side that
            does not vary.
    """
    x, y = _checked(x, y, least=4 if debiased else 2)
    x, y = x - x.mean(0), y - y.mean(0)  # changes no HSIC, and keeps digits
    hsic = _hsic_debiased if debiased else _hsic
    own = [hsic(z, z) for z in (x, y)]
    if min(own) <= 0:
        raise FuseMixLiteError("cka: one side does not vary over these items, or too little for an estimate: give more items")
    return float(hsic(x, y) / (own[0] * own[1]) ** 0.5)


def mutual_knn(x: Tensor, y: Tensor, k: int = 10) -> float:
    """Share of an item's k nearest neighbours in x (N, dx) that are among its k nearest in y (N, dy), mean over items.

    Near means a large cosine, and nobody is his own neighbour. 1: the same neighbours everywhere; unrelated spaces share
    k / (N - 1) of them, so a score says little without its N. Rows of similarities are looked at tile by tile.

    Source: Huh et al., The Platonic Representation Hypothesis, ICML 2024, section 3 and appendix A.

    Raises:
        FuseMixLiteError: shapes that do not match row by row, values that are not finite, or a k outside [1, N - 1].
    """
    x, y = _checked(x, y, least=2)
    if not 1 <= k < len(x):
        raise FuseMixLiteError(f"mutual_knn: k = {k} neighbours among {len(x) - 1} other items: choose k in [1, {len(x) - 1}]")
    shared = 0
    x, y = (F.normalize(z, dim=1) for z in (x, y))
    for rows in tiles(torch.arange(len(x)), gallery=len(x)):
        near_x, near_y = (_nearest(z, rows, k) for z in (x, y))
        shared += (near_x[:, :, None] == near_y[:, None, :]).sum().item()  # (T, k, k)
    return shared / (k * len(x))


def cca_recall(x: Tensor, y: Tensor, k: int = 10, ridge: float = 0.1, seed: int = 0) -> float:
    """Recall@k in percent, mean of both directions, that canonical correlation analysis reaches on items it has not seen: a
    linear alignment in closed form, as a forecast of one that is trained.

    It is fitted to one half of the items and looks for the other half's partners among that half, and the other way round.
    Every side is projected on all canonical directions, weighted by their correlations. `ridge` times a side's mean variance
    is added to every variance.

    Source: regularised CCA, Vinod 1976; as an alignment of frozen encoders with weighted directions: Li et al., CSA:
    Data-efficient Mapping of Unimodal Features to Multimodal Features, ICLR 2025.

    Raises:
        FuseMixLiteError: as for `cka`; fewer than 2 k items, since a half has to hold more than k of them.
    """
    x, y = _checked(x, y, least=2 * k + 2)
    order = torch.randperm(len(x), generator=Generator().manual_seed(seed))
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    found = []
    for fitted, asked in (halves, halves[::-1]):
        means = x[fitted].mean(0), y[fitted].mean(0)
        to_x, to_y = _canonical(x[fitted] - means[0], y[fitted] - means[1], ridge)
        u, v = F.normalize((x[asked] - means[0]) @ to_x, dim=1), F.normalize((y[asked] - means[1]) @ to_y, dim=1)
        recalls = recall_at_k(u, v, torch.arange(len(asked)), (k,))
        found += [recall[k] for recall in recalls.values()]
    return sum(found) / len(found)


class Regret(NamedTuple):
    """What a choice by a score costs, in the unit of the outcomes. `chosen` is a position in the flattened array."""

    chosen: int
    lost: float  # the best outcome less that of the highest score
    by_lot: float  # the best outcome less the mean one: what choosing at random loses on average


def regret(scores: np.ndarray, outcomes: np.ndarray) -> Regret:
    """Choose the option with the highest score, and say how much less than the best one it brings; arrays of one shape.

    Of options with the same score the first is chosen, so order them by something that says nothing about the outcome.
    """
    scores, outcomes = _alike(scores, outcomes)
    chosen, best = int(scores.argmax()), outcomes.max()
    return Regret(chosen, float(best - outcomes.flat[chosen]), float(best - outcomes.mean()))


def rank_correlation(
    scores: np.ndarray, outcomes: np.ndarray, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Spearman's correlation of two tables (I, T), x encoders by y encoders, with a percentile bootstrap over *encoders*.

    Pairs that share an encoder are not independent, so rows and columns are resampled and not single cells: with few
    encoders the interval is wide, and should be. Resamples in which a table does not vary say nothing and are left out. A
    list of unrelated options is a table of one column.
    """
    from scipy.stats import rankdata, spearmanr

    scores, outcomes = _alike(scores, outcomes)
    if scores.ndim != 2 or min(np.ptp(scores), np.ptp(outcomes)) == 0:
        raise FuseMixLiteError(f"rank_correlation: tables (I, T) that vary are needed, not {scores.shape}")
    rng, (rows, columns) = np.random.default_rng(seed), scores.shape
    drawn = [np.ix_(rng.integers(rows, size=rows), rng.integers(columns, size=columns)) for _ in range(resamples)]
    a, b = (rankdata([table[cells].ravel() for cells in drawn], axis=1) for table in (scores, outcomes))  # (R, I T)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    spread = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    found = (a * b).sum(1)[spread > 0] / spread[spread > 0]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(spearmanr(scores.ravel(), outcomes.ravel()).statistic), float(low), float(high))


def _alike(scores: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, outcomes = np.asarray(scores, float), np.asarray(outcomes, float)
    if scores.shape != outcomes.shape or not scores.size or not (np.isfinite(scores).all() and np.isfinite(outcomes).all()):
        raise FuseMixLiteError(f"scores {scores.shape} and outcomes {outcomes.shape}: finite numbers of one shape are needed")
    return scores, outcomes


def _canonical(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Maps (dx, r) and (dy, r) of centred x and y to their canonical directions, each weighted by its correlation."""
    n = len(x)
    whiten = []
    for z in (x, y):
        covariance = z.T @ z / n
        values, vectors = torch.linalg.eigh(covariance)
        whiten.append(vectors * (values.clamp(min=0) + ridge * values.mean()).rsqrt() @ vectors.T)
    left, correlations, right = torch.linalg.svd(whiten[0] @ (x.T @ y / n) @ whiten[1], full_matrices=False)
    return whiten[0] @ left * correlations, whiten[1] @ right.T * correlations


def _nearest(z: Tensor, rows: Tensor, k: int) -> Tensor:
    """The k nearest other rows (T, k) of some rows of z (N, d)."""
    scores = z[rows] @ z.T  # (T, N)
    scores[torch.arange(len(rows)), rows] = -torch.inf
    return scores.topk(k, dim=1).indices


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """(N - 1)² times the usual estimate, of centred x and y: the squared Frobenius norm of xᵀy."""
    return (x.T @ y).square().sum()


def _hsic_debiased(x: Tensor, y: Tensor) -> Tensor:
    """N (N - 3) times HSIC_1. The diagonals of both Gram matrices count as 0; as rows of centred x sum to nothing, a row of
    the Gram matrix without its diagonal sums to minus the squared norm."""
    n, norms_x, norms_y = len(x), x.square().sum(1), y.square().sum(1)
    together = _hsic(x, y) - (norms_x * norms_y).sum()
    apart = norms_x.sum() * norms_y.sum() / ((n - 1) * (n - 2))
    return together + apart - 2 / (n - 2) * (norms_x * norms_y).sum()


def _standardized(z: Tensor) -> Tensor:
    standardizer = Standardizer(z.shape[1]).to(z)
    standardizer.fit(z)
    return standardizer(z)


def _checked(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both sides in double precision, or one line that says what does not fit."""
    x, y = (torch.as_tensor(z).detach().cpu().double() for z in (x, y))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or 0 in x.shape + y.shape:
        shapes = f"x {tuple(x.shape)} and y {tuple(y.shape)}"
        raise FuseMixLiteError(f"similarity: {shapes} should be (N, dx) and (N, dy), row i of both from one item")
    if len(x) < least:
        raise FuseMixLiteError(f"similarity: {len(x)} items are too few, {least} are the least")
    for name, z in (("x", x), ("y", y)):
        if not z.isfinite().all():
            raise FuseMixLiteError(f"similarity: {name} holds NaN or infinity")
    return x, y
