"""Retrieval recall with many captions to one image, its bootstrap, and the modality gap."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .errors import FuseMixLiteError
from .pairs import LatentPairs
from .stats import Interval

TILE_SCORES = 2**22  # similarities held at once: 16 MB, however large the gallery
HELD_BYTES = 2**29  # similarities up to here are held for both directions: one product in place of two
COUNTED_SCORES = 2**20  # compared at once, in a buffer that stays in the cache
FP32_COUNTS = 2**24  # so far fp32 holds every whole number
EMBED_ROWS = 4096


def ranks(u: Tensor, v: Tensor, owner: Tensor) -> dict[str, Tensor]:
    """Rank of each query's best match: 1 + the number of non-matching scores >= its score (ties against the model).

    Args:
        u: (N, D) embeddings of the items x.
        v: (M, D) embeddings of the rows y.
        owner: (M,) int64, the row of x that each y belongs to.

    Returns:
        ``{"x_to_y": (N',), "y_to_x": (M,)}``, int64. N' counts the x rows that own a y, in ascending order; the others
        stay in the gallery of y_to_x and ask nothing.

    Raises:
        FuseMixLiteError: shapes that do not fit, an owner out of range, or embeddings that are not finite.
    """
    fit = u.ndim == v.ndim == 2 and u.shape[1] == v.shape[1] and owner.shape == v.shape[:1]
    if not fit or 0 in u.shape + v.shape:
        shapes = ", ".join(f"{name} {tuple(z.shape)}" for name, z in (("u", u), ("v", v), ("owner", owner)))
        raise FuseMixLiteError(f"recall: the shapes {shapes} should be (N, D), (M, D), (M,)")
    if owner.min() < 0 or owner.max() >= len(u):
        raise FuseMixLiteError(f"recall: owner spans {owner.min()}..{owner.max()}, the rows of u are 0..{len(u) - 1}")
    for name, z in (("u", u), ("v", v)):
        if not z.isfinite().all():  # a NaN would lose every comparison and so pass for rank 1
            raise FuseMixLiteError(f"recall: embeddings {name} hold NaN or infinity")
    u, v = u.detach(), v.detach()
    if len(u) * len(v) * u.element_size() <= HELD_BYTES:
        return _score_ranks(u @ v.T, owner)
    return {"x_to_y": _item_ranks(u, v, owner), "y_to_x": _row_ranks(u, v, owner)}


def ranks_from_scores(scores: Tensor, owner: Tensor) -> dict[str, Tensor]:
    """`ranks` from similarities that are there already, of any kind: the larger, the more alike.

    Nothing is sorted: a rank is a number of comparisons with one score, that of the match.

    Args:
        scores: (N, M), items x against rows y.
        owner: (M,) int64, the row of x that each y belongs to.

    Raises:
        FuseMixLiteError: shapes that do not fit, an owner out of range, or scores that are not finite.
    """
    if scores.ndim != 2 or owner.shape != scores.shape[1:] or 0 in scores.shape or not scores.is_floating_point():
        given = f"scores {tuple(scores.shape)} {scores.dtype}, owner {tuple(owner.shape)}"
        raise FuseMixLiteError(f"recall: {given} should be (N, M), floating point, and (M,)")
    if owner.min() < 0 or owner.max() >= len(scores):
        raise FuseMixLiteError(f"recall: owner spans {owner.min()}..{owner.max()}, the rows of scores are 0..{len(scores) - 1}")
    if not all(torch.stack(scores[tile].aminmax()).isfinite().all() for tile in _counted_tiles(*scores.shape)):
        raise FuseMixLiteError("recall: scores hold NaN or infinity")  # a NaN would lose every comparison
    return _score_ranks(scores.detach(), owner)


def recall_at_k(u: Tensor, v: Tensor, owner: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, dict[int, float]]:
    """Recall@k in percent: the share of queries whose best match ranks among the first k.

    An x row is right if any of its y rows is. Arguments and errors as in `ranks`; memory is bounded.

    Returns:
        ``{"x_to_y": {k: percent}, "y_to_x": {k: percent}}``
    """
    _check_ks(ks)
    return _recalls(ranks(u, v, owner), ks)


def recall_from_scores(scores: Tensor, owner: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, dict[int, float]]:
    """`recall_at_k` from an (N, M) matrix of similarities; arguments and errors as in `ranks_from_scores`."""
    _check_ks(ks)
    return _recalls(ranks_from_scores(scores, owner), ks)


def guessing(owner: Tensor, n_items: int, k: int) -> dict[str, float]:
    """Recall@k in percent of a ranking drawn by lot, exact, for queries as in `ranks`: ``{"x_to_y": %, "y_to_x": %}``.

    A row of y has one right item among `n_items`. An item with c right rows among M misses where the first k are all
    rows of others, so several right rows do not simply multiply its chance.
    """
    counts = owner.unique(return_counts=True)[1].double()  # rows of each item that has any
    rows, missed = len(owner), counts.new_ones(len(counts))
    for drawn in range(min(k, rows)):
        missed *= ((rows - drawn - counts) / (rows - drawn)).clamp(min=0)
    return {"x_to_y": 100 * (1 - missed.mean().item()), "y_to_x": 100 * min(k, n_items) / n_items}


@torch.inference_mode()
def retrieval(model, pairs: LatentPairs, ks: Sequence[int] = (1, 5, 10)) -> dict[str, dict[int, float]]:
    """`recall_at_k` of a `FusionModel` on pairs: ``{"image_to_text": {k: percent}, "text_to_image": {...}}``."""
    if not isinstance(pairs, LatentPairs):
        raise FuseMixLiteError(f"retrieval(model, pairs): pairs is a {type(pairs).__name__}: give a model, then LatentPairs")
    a, b = pairs.names
    u, v = embed_rows(model, a, pairs.x), embed_rows(model, b, pairs.y)
    recalls = recall_at_k(u, v, pairs.owner.to(u.device), ks)
    return {f"{a}_to_{b}": recalls["x_to_y"], f"{b}_to_{a}": recalls["y_to_x"]}


@torch.inference_mode()
def embed_rows(model, modality: str, z: Tensor) -> Tensor:
    """Embed latents z (N, d) tile by tile on the model's device, without dropout: (N, shared_dim), unit rows."""
    training, device = model.training, model.temperature.device
    model.eval()
    try:
        rows = torch.cat([model.embed(modality, tile.to(device)) for tile in z.split(EMBED_ROWS)])
        if not rows.isfinite().all():  # of latents on disk nobody has looked at every one
            row = int((~rows.isfinite().all(1)).int().argmax())
            raise FuseMixLiteError(f"{modality} latents: row {row} has no finite embedding: extract it again, or fit again")
        return rows
    finally:
        model.train(training)


def cluster_bootstrap(
    values: Tensor, cluster: Tensor, level: float = 0.95, resamples: int = 1000, generator: Generator | None = None
) -> Interval:
    """Percentile bootstrap of the mean of `values` that resamples whole clusters: test images with all their captions.

    The gallery stays as it is. For recall, values are ``100.0 * (rank <= k)``; for two models on one test set, the
    difference of theirs, which keeps the comparison paired.

    Args:
        values: (n,) numbers, one a query.
        cluster: (n,) int64, which item each belongs to: `owner` for y_to_x, a range for x_to_y.
        generator: on the CPU; None means torch's global one.
    """
    if values.ndim != 1 or values.shape != cluster.shape or len(values) == 0:
        raise FuseMixLiteError(
            f"bootstrap: values {tuple(values.shape)}, cluster {tuple(cluster.shape)}: give one each"
        )
    _, cluster, size = cluster.cpu().unique(return_inverse=True, return_counts=True)  # clusters are now 0..C-1
    total = torch.zeros(len(size), dtype=torch.float64).index_add_(0, cluster, values.cpu().double())
    draws = (torch.randint(len(size), (len(size),), generator=generator) for _ in range(resamples))
    means = torch.stack([total[draw].sum() / size[draw].sum() for draw in draws])
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return Interval(values.double().mean().item(), low, high)


def mean_recall(recalls: dict[str, dict[int, float]]) -> float:
    """The mean over both directions and every k of what `retrieval` returns: the score that selection goes by."""
    return sum(sum(at.values()) for at in recalls.values()) / sum(len(at) for at in recalls.values())


def modality_gap(u: Tensor, v: Tensor) -> float:
    """Euclidean distance between the centroids of two sets of unit embeddings, (N, D) and (M, D): 0 to 2.

    Source: Liang et al., "Mind the Gap" (NeurIPS 2022).
    """
    return (u.mean(0) - v.mean(0)).norm().item()


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise FuseMixLiteError(f"ks = {ks}: give positive ranks, such as (1, 5, 10)")


def _recalls(found: dict[str, Tensor], ks: Sequence[int]) -> dict[str, dict[int, float]]:
    return {way: {k: 100 * (rank <= k).sum().item() / len(rank) for k in ks} for way, rank in found.items()}


def _score_ranks(scores: Tensor, owner: Tensor) -> dict[str, Tensor]:
    """Both directions from one matrix (N, M), each tile of which is read once."""
    N, M = scores.shape
    match = scores[owner, torch.arange(M, device=owner.device)]  # (M,)
    best, own = _best(match, owner, N)
    at_least_best, at_least_match = owner.new_zeros(N), owner.new_zeros(M)
    for tile in _counted_tiles(N, M):
        at_least_best[tile] = _count(scores[tile], best[tile, None], 1)
        at_least_match += _count(scores[tile], match, 0)
    queries = owner.unique()  # x rows that own a y, ascending
    return {"x_to_y": (1 + at_least_best - own)[queries], "y_to_x": at_least_match}  # the match itself supplies that 1


def _item_ranks(u: Tensor, v: Tensor, owner: Tensor) -> Tensor:
    """x to y: the best of an item's own rows against all the rows of others."""
    queries = owner.unique()
    by_item = owner.argsort()  # rows of y, item after item
    sorted_owner = owner[by_item]
    result = []
    for tile in tiles(queries, gallery=len(v)):
        scores = u[tile] @ v.T  # (T, M)
        first, last = (torch.searchsorted(sorted_owner, tile[end], right=end == -1) for end in (0, -1))
        rows = by_item[first:last]  # all that the tile's items own
        item = torch.searchsorted(tile, owner[rows])  # whose: the row of `scores`
        best, own = _best(scores[item, rows], item, len(tile))
        result.append(1 + _count(scores, best[:, None], 1) - own)
    return torch.cat(result)


def _row_ranks(u: Tensor, v: Tensor, owner: Tensor) -> Tensor:
    """y to x: the one match against all the other items."""
    result = []
    for tile in tiles(torch.arange(len(v), device=v.device), gallery=len(u)):
        scores = v[tile] @ u.T  # (T, N)
        match = scores.gather(1, owner[tile, None])
        result.append(_count(scores, match, 1))  # the match itself supplies the 1
    return torch.cat(result)


def _best(match: Tensor, item: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """The best score of each item among its own rows, and how many of these reach it. Without rows: -inf and 0."""
    best = match.new_full((items,), -torch.inf).scatter_reduce(0, item, match, "amax")
    return best, torch.bincount(item[match >= best[item]], minlength=items)


def _count(scores: Tensor, least: Tensor, dim: int) -> Tensor:
    """How many of `scores` (T, G) reach `least`, along a dimension: int64."""
    if scores.shape[dim] > FP32_COUNTS:
        return (scores >= least).sum(dim)
    reach = torch.ge(scores, least, out=torch.empty(scores.shape, device=scores.device))  # 0.0 and 1.0
    ones = reach.new_ones(reach.shape[dim])
    return (reach @ ones if dim == 1 else ones @ reach).long()  # exact, and much faster than a sum of bools


def _counted_tiles(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, COUNTED_SCORES // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def tiles(queries: Tensor, gallery: int) -> Sequence[Tensor]:
    """Cut queries (rows or row numbers) so that a tile's scores against the gallery fit the budget."""
    return queries.split(max(1, TILE_SCORES // gallery))


class Linearity(NamedTuple):
    """Shares of the variance of one modality that maps of the other explain, on items held out; at most 1."""

    linear: float
    curved: float


def linearity(train: LatentPairs, val: LatentPairs, items: int = 1000, seed: int = 0) -> dict[str, Linearity]:
    """How straight the relation of two modalities is: what a linear map (ridge regression) explains, and what a curved
    one (kernel ridge regression, Gaussian kernel) does. A relation that is linear leaves nothing to the second.

    Captions of an item are averaged. Both maps learn from `items` items of `train`; their strengths are chosen on every
    other item of `val`, and the shares are measured on the rest.

    Returns:
        ``{"x_to_y": Linearity, "y_to_x": Linearity}``
    """
    few = train.subset(min(items, train.n_items), seed)
    (x, y), (x_val, y_val) = few.per_item(), val.per_item()
    return {"x_to_y": _linearity(x, y, x_val, y_val), "y_to_x": _linearity(y, x, y_val, x_val)}


def _linearity(a: Tensor, b: Tensor, a_val: Tensor, b_val: Tensor) -> Linearity:
    centre, scale = a.mean(0), a.var(0).sum().sqrt()
    a, a_val = (a - centre) / scale, (a_val - centre) / scale
    b, b_val = b - b.mean(0), b_val - b.mean(0)
    gaussian = [
        (torch.exp(-width * torch.cdist(a, a) ** 2), torch.exp(-width * torch.cdist(a_val, a) ** 2))
        for width in (0.1, 0.3, 1.0, 3.0)
    ]
    return Linearity(_explained([(a @ a.T, a_val @ a.T)], b, b_val), _explained(gaussian, b, b_val))


def _explained(kernels: list[tuple[Tensor, Tensor]], b: Tensor, b_val: Tensor) -> float:
    """Share of b_val explained by the best of some kernels (n, n), (m, n) and ridge strengths, best on the even rows."""
    found = []
    for kernel, to_val in kernels:
        values, vectors = torch.linalg.eigh(kernel)
        left, right = to_val @ vectors, vectors.T @ b
        for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
            error = (left @ (right / (values.clamp(min=0) + strength)[:, None]) - b_val) ** 2
            chosen, held_out = ((1 - error[i::2].sum() / (b_val[i::2] ** 2).sum()).item() for i in (0, 1))
            found.append((chosen, held_out))
    return max(found)[1]
