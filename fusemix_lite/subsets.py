"""Which pairs to keep when only k can be kept: diverse, even, redundant or uniform subsets, from latents alone.

Every method takes (N, d) latents, looks at directions only (a positive scaling of a row changes nothing), and returns the
row numbers of its k picks in the order in which they were picked. For all of them but `cluster_balanced` with another
number of clusters, the picks for a smaller k are the first of those for a larger one.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from .errors import FuseMixLiteError
from .pairs import LatentPairs

MIN_GAIN = 1e-10  # where the official code stops: what is left adds no volume
BLOCK = 256  # picks after which all items catch up, at the latest
ITEMS = 8192  # that catch up at once
SIDES = ("x", "y", "both")


def squared_kernel(cosine: Tensor) -> Tensor:
    """The kernel of the official code, ``(1 + cos)^2``: 4 on the diagonal, 1 at a right angle, 0 for opposites."""
    return (1 + cosine) ** 2


def greedy_kdpp(
    z,
    k: int,
    *,
    start: int = 0,
    centre: bool = False,
    kernel: Callable | None = None,
    single: bool = False,
    watch: Callable | None = None,
) -> Tensor:
    """The k rows of greatest determinant, found greedily: each pick is the row that multiplies det(L_S) most.

    A determinantal point process draws a set S with probability proportional to det(L_S), the squared volume that its
    rows span in the kernel's feature space; near-duplicates span none. What is called k-DPP sampling here and in the
    paper's code is its greedy mode, so nothing is drawn. The determinant grows by the *gain* of a pick, its kernel value
    less what the picks before explain; a row of the incremental Cholesky factor keeps the gains of all items up to date.
    No N x N matrix ever exists: each pick asks for one row of L. Memory N (d + k) numbers, N k (2 d + k) operations.

    Gains never grow, so an old one is an upper bound. While the best of a few candidates gains more than anyone else could,
    picks are made among these candidates alone; then all items catch up, many picks in one matrix product. The picks are those
    of going one by one.

    With the kernel (1 + cos)^2 there is room for d (d + 3) / 2 picks and no more: products of two coordinates, and the
    coordinates themselves.

    Args:
        z: (N, d) latents: tensor, array or what `numpy.asarray` takes.
        k: how many to pick, 1 to N.
        start: the first pick. All items have the same kernel value with themselves, so the determinant does not choose it;
            the official code in effect takes item 0.
        centre: subtract the mean latent first. The official code does not, and then an item far from the mean counts as
            diverse, an odd caption say; centred, only the direction of its deviation counts. The picks differ.
        kernel: cosines, any shape, to similarities; positive semi-definite, the same for all cosines of 1. None: (1 + cos)^2.
        single: calculate in float32 instead of float64: half the memory, and gains that are noise below about 1e-5.
        watch: called now and then with the number of picks so far.

    Returns:
        (k,) int64 row numbers, in the order of picking, with gains that never increase. A shorter prefix of it is what a
        smaller k returns.

    Raises:
        FuseMixLiteError: k or `start` out of range, a latent that is zero or not finite, or no item left whose gain
            reaches 1e-10. (There the official code stops and returns fewer.)

    Source: Chen, Zhang & Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation
    Diversity" (NeurIPS 2018); the kernel is that of the FuseMix code. ``tests/test_subsets.py`` compares the picks with
    those from a dense float64 kernel.
    """
    kernel = kernel or squared_kernel
    z = _directions(z, k, centre, torch.float32 if single else torch.float64)
    N = len(z)
    if not 0 <= start < N:
        raise FuseMixLiteError(f"greedy_kdpp: start = {start}, the rows are 0..{N - 1}")
    factor = z.new_empty(k, N)  # row t: the Cholesky row of pick t, at all items
    gain = kernel(z.new_ones(1)).double().repeat(N)  # what an item would add: its variance given the picks so far
    candidates, others = torch.tensor([start]), torch.inf  # the first pick is given
    picks = []
    while True:
        block, triangle = _picked_among(candidates, others, min(BLOCK, k - len(picks)), z, kernel, factor[: len(picks)], gain)
        done, picks = len(picks), picks + block.tolist()
        if watch:
            watch(len(picks))
        if len(picks) == k:
            return torch.tensor(picks)
        _catch_up(block, triangle, z, kernel, factor, gain, done)
        candidates, others = _candidates(gain, math.isqrt(N * len(block)) // 2)


def _candidates(gain: Tensor, count: int) -> tuple[Tensor, float]:
    """The items of the largest gains, ascending, and the largest gain that anyone else has.

    That many candidates cost up to a quarter of what it takes all N items to catch up, if there are sqrt(N picks) / 2.
    """
    count = max(count, 16)
    if count >= len(gain):
        return torch.arange(len(gain)), -torch.inf
    values, items = gain.topk(count + 1)
    best = gain.argmax()  # of equal gains the first, which topk does not promise to return
    return torch.cat([items[:-1], best[None]]).unique(), float(values[-1])


def _picked_among(candidates, others: float, most: int, z, kernel, factor, gain) -> tuple[Tensor, Tensor]:
    """Up to `most` picks in a row that need no look at any but C candidates, and the triangle that they add to the factor.

    Args:
        candidates: (C,) items, ascending, with the best of all among them. others: no other item gains more.
        z: (N, d). factor: (t, N), of the picks so far. gain: (N,).

    Returns:
        (s,) items in the order of picking, and the upper (s, s) block of the factor at them.
    """
    own, known = z[candidates], factor[:, candidates]  # (C, d), (t, C)
    left = kernel(own @ own.T)  # (C, C), then what the picks so far leave unexplained of it
    left -= known.T @ known
    gain, rows, chosen = gain[candidates], left.new_empty(min(most, len(candidates)), len(candidates)), []
    for s in range(len(rows)):
        best = int(gain.argmax())
        if s and gain[best] <= others:
            break
        if gain[best] < MIN_GAIN:
            made = len(factor) + s
            raise FuseMixLiteError(
                f"greedy_kdpp: after {made} picks the largest gain is {gain[best]:.0e}, below {MIN_GAIN:.0e}: the others "
                f"repeat what is picked; ask for k <= {made}"
            )
        row = left[best] - rows[:s].T @ rows[:s, best]
        rows[s] = row / gain[best].sqrt()
        gain -= rows[s].double() ** 2
        gain[best] = -torch.inf  # never again
        chosen.append(best)
    return candidates[chosen], rows[: len(chosen), chosen]


def _catch_up(block: Tensor, triangle: Tensor, z, kernel, factor: Tensor, gain: Tensor, t: int) -> None:
    """Bring the factor (from row t on) and the gains of all items up to date with a block of picks."""
    s, known = len(block), factor[:t, block]  # (t, s)
    for tile in (slice(start, start + ITEMS) for start in range(0, len(z), ITEMS)):
        rows = kernel(z[block] @ z[tile].T)  # (s, T)
        rows -= known.T @ factor[:t, tile]
        factor[t : t + s, tile] = torch.linalg.solve_triangular(triangle.T, rows, upper=False)
        gain[tile] -= (factor[t : t + s, tile].double() ** 2).sum(0)
    gain[block] = -torch.inf


def k_centre(z, k: int, *, start: int = 0, centre: bool = False) -> Tensor:
    """Greedy k-centre: each pick is the row farthest (in angle) from all picks so far. (k,) int64, prefix property.

    The largest angle from an item to its nearest pick is then at most twice the best possible. Arguments as in
    `greedy_kdpp`. Source: Gonzalez, "Clustering to minimize the maximum intercluster distance" (1985).
    """
    z = _directions(z, k, centre)
    if not 0 <= start < len(z):
        raise FuseMixLiteError(f"k_centre: start = {start}, the rows are 0..{len(z) - 1}")
    nearest = z.new_full((len(z),), -torch.inf)  # cosine to the nearest pick
    picks, farthest = [], start
    for _ in range(k):
        picks.append(farthest)
        nearest = torch.maximum(nearest, z @ z[farthest])
        nearest[farthest] = torch.inf  # never again, not even where all that is left are duplicates
        farthest = int(nearest.argmin())
    return torch.tensor(picks)


def cluster_balanced(z, k: int, *, clusters: int = 50, seed: int = 0, centre: bool = False) -> Tensor:
    """k-means on the directions, then an equal share of every cluster: common and rare kinds count alike.

    The clusters take turns, each giving its items in random order; one that has no more is passed over. (k,) int64, with
    the prefix property for one seed and number of clusters. k-means feels the last digits of its input, so that another
    machine may cluster otherwise. Source: balanced sampling from clusters of embeddings, as in
    Vo et al., "Automatic Data Curation for Self-Supervised Learning" (2024), here with one level of flat k-means.

    Args:
        clusters: how many; at most N.
        seed: of k-means and of the orders.
    """
    from sklearn.cluster import KMeans  # slow to import
    from threadpoolctl import threadpool_limits  # which scikit-learn brings

    z = _directions(z, k, centre)
    if not 1 <= clusters <= len(z):
        raise FuseMixLiteError(f"cluster_balanced: {clusters} clusters of {len(z)} rows: give 1 to {len(z)}")
    with threadpool_limits(1):  # from three threads on, it adds up their sums in the order in which they get ready
        label = torch.from_numpy(KMeans(clusters, n_init=1, random_state=seed).fit_predict(z.numpy())).long()
    order = torch.randperm(len(z), generator=Generator().manual_seed(seed))
    turn = torch.empty(len(z), dtype=torch.int64)  # how many of its cluster come before an item
    for cluster in label.unique():
        members = order[label[order] == cluster]
        turn[members] = torch.arange(len(members))
    by_turn = turn[order].argsort(stable=True)  # within a turn, the clusters in random order
    return order[by_turn][:k].clone()


def redundant(z, k: int, *, seed: int = 0, centre: bool = False) -> Tensor:
    """The worst subset to learn from: an item drawn by `seed` and its nearest neighbours, nearest first.

    (k,) int64, prefix property. Arguments as in `greedy_kdpp`.
    """
    z = _directions(z, k, centre)
    item = int(torch.randint(len(z), (1,), generator=Generator().manual_seed(seed)))
    cosine = z @ z[item]
    cosine[item] = torch.inf  # first also where it has duplicates
    return cosine.argsort(descending=True, stable=True)[:k].clone()


def uniform(n: int, k: int, *, seed: int = 0) -> Tensor:
    """k of n row numbers, each set as likely as any other: (k,) int64, prefix property; what `LatentPairs.subset` takes."""
    if not 1 <= k <= n:
        raise FuseMixLiteError(f"k = {k}: there are {n} rows to pick from")
    return torch.randperm(n, generator=Generator().manual_seed(seed))[:k].clone()


METHODS = {"kdpp": greedy_kdpp, "kcentre": k_centre, "clusters": cluster_balanced, "redundant": redundant}
PICKS = ("uniform", *(f"{method}-{side}" for method in METHODS for side in SIDES))


def pick(name: str, pairs: LatentPairs, k: int, seed: int = 0) -> Tensor:
    """Pick k items of `pairs` by the name of a method and the side it looks at: "uniform", "kdpp-x", "clusters-both", …

    Args:
        name: one of `PICKS`; "-centred" behind it subtracts the mean latent of each side first ("kdpp-x-centred").
        pairs: N items.
        k: how many, 1 to N.
        seed: of the methods that draw lots; "kdpp" and "kcentre" do not, and start at item 0.

    Returns:
        (k,) int64 row numbers of x in the order of picking, as `LatentPairs.take` wants them.

    Raises:
        FuseMixLiteError: an unknown name, or what the method refuses.
    """
    if name == "uniform":
        return uniform(pairs.n_items, k, seed=seed)
    known = name.removesuffix("-centred")
    if known not in PICKS[1:]:
        raise FuseMixLiteError(f"no method {name!r} to pick a subset; there are {', '.join(PICKS)}")
    method, side = known.split("-")
    options = {} if method in ("kdpp", "kcentre") else {"seed": seed}
    if method == "clusters":
        options["clusters"] = min(50, pairs.n_items)
    return METHODS[method](item_latents(pairs, side, centre=known != name), k, **options)


def item_latents(pairs: LatentPairs, side: str, centre: bool = False) -> Tensor:
    """One unit vector an item, for choosing among items: (N, dx), (N, dy) or (N, dx + dy), float64.

    "x" is the item's own latent; "y" the mean of its rows' unit latents (five captions vote alike, however long); "both"
    the two side by side, so that its cosine is the mean of the two cosines. (A product of the two kernels would do for a
    DPP, yet k-means and k-centre want vectors, and every method should see the same items.)

    Raises:
        FuseMixLiteError: another side, an item without a row of y where y is asked for, or latents without a direction.
    """
    if side not in SIDES:
        raise FuseMixLiteError(f"side = {side!r}: choose one of {', '.join(SIDES)}")
    if side == "x":
        return _directions(pairs.x, 1, centre)
    counts = torch.bincount(pairs.owner, minlength=pairs.n_items)
    if (counts == 0).any():
        raise FuseMixLiteError(f"item {int(counts.argmin())} has no row of {pairs.names[1]}: leave it out with take")
    unit = _directions(pairs.y, 1, False)
    mean = unit.new_zeros(pairs.n_items, unit.shape[1]).index_add_(0, pairs.owner, unit) / counts[:, None]
    y = _directions(mean, 1, centre)
    return y if side == "y" else torch.cat([_directions(pairs.x, 1, centre), y], dim=1) / 2**0.5


def vendi_score(z) -> float:
    """How many different directions a set of latents (n, d) holds, as a number from 1 (all alike) to min(n, d).

    The exponential of the entropy of the eigenvalues of the cosine matrix / n. What all latents share swamps the rest, so
    give latents less the mean of the *pool* that the set was picked from, ``item_latents(pool, side, centre=True)[picks]``:
    less its own mean, a set of near-duplicates looks diverse. Source: Friedman & Dieng, "The Vendi Score" (TMLR 2023).
    """
    z = _directions(z, 1, False)
    values = torch.linalg.svdvals(z) ** 2 / len(z)  # the non-zero eigenvalues of z zᵀ / n, summing to 1
    values = values[values > 0]
    return float((-(values * values.log()).sum()).exp())


def log_determinant(z, kernel: Callable[[Tensor], Tensor] = squared_kernel) -> float:
    """ln det L of a set of latents (n, d), an n x n matrix: what `greedy_kdpp` maximises; -inf where a row repeats."""
    z = _directions(z, 1, False)
    sign, value = torch.linalg.slogdet(kernel(z @ z.T))
    return float(value) if sign > 0 else -torch.inf


def _directions(z, k: int, centre: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit rows (N, d), checked; k must fit."""
    z = (z.detach().cpu() if isinstance(z, Tensor) else torch.from_numpy(np.array(z))).to(dtype)
    if z.ndim != 2 or z.numel() == 0:
        raise FuseMixLiteError(f"latents of shape {tuple(z.shape)}: give (N, d), at least one row and one dimension")
    if not 1 <= k <= len(z):
        raise FuseMixLiteError(f"k = {k}: there are {len(z)} rows to pick from")
    if centre:
        z = z - z.mean(0)
    norm = z.norm(dim=1, keepdim=True)
    bad = ~(norm.isfinite() & (norm > 0)).squeeze(1)
    if bad.any():
        first, count = int(bad.int().argmax()), int(bad.sum())
        raise FuseMixLiteError(f"latents: row {first} is zero, NaN or infinite and has no direction ({count} such rows in all)")
    return z / norm
