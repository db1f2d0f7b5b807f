"""The contrastive objective: as one matrix of similarities, in tiles that never hold it, and shared by several processes.

The matrix of a batch has B x B numbers: 1 MB at a batch of 512, 1.7 GB at the paper's 20,480, and a backward pass holds it
several times. Tiles hold the two vectors of its log-sum-exps instead, and compute every similarity once more on the way back:
four matrix products in place of three, in memory that grows with B. Where the matrix does not fit the caches of a CPU that is
the faster way too.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .errors import FuseMixLiteError

#: A matrix of more bytes than this is not made, by type of device. On a CPU tiles are faster above it; elsewhere they cost a
#: third more operations and are there for the memory.
DENSE_BYTES = {"cpu": 2**25, "other": 2**31}  # in fp32 up to B = 2,896, and 23,170: the paper's batch is one matrix
TILE = {"cpu": 1024, "other": 4096}  # rows and columns of a tile: 4 MB where caches count, 64 MB where launches do
#: exp(x) of any |x| up to this, and sums of millions of them, are ordinary numbers: no maximum has to be subtracted.
SAFE_LOGIT = {torch.float32: 60.0, torch.float64: 600.0}


def symmetric_infonce(
    u: Tensor,
    v: Tensor,
    temperature: Tensor | float,
    same: Tensor | None = None,
    *,
    tile: int | None = None,
) -> Tensor:
    """Symmetric InfoNCE: the mean of the cross-entropies of finding ``v[i]`` from ``u[i]`` and ``u[i]`` from ``v[i]``.

    Row i of `u` and row i of `v` are the positive pair; every other row of the batch is a negative, in both directions.
    That holds for a second caption of the same image too, as in the official code, unless `same` says otherwise.

    Where the (B, B) matrix of similarities would take more than 32 MB on a CPU or 2 GB elsewhere (`DENSE_BYTES`), it is
    worked off in tiles: the same value and gradients up to rounding, in O(B D) memory.

    Args:
        u: (B, D) embeddings of one modality, unit rows. They are never normalised here.
        v: (B, D) embeddings of the other modality, unit rows.
        temperature: positive scalar that divides the cosine similarities.
        same: (B, B) bool, true where row i and row j are about one item and so no negatives of each other: they are left
            out of both denominators. The diagonal is never left out. Or (P, B) integers, P labels a row: true where any of
            them is the same, at the same place; so that no (B, B) matrix is needed for that either.
        tile: rows and columns of a tile; asks for tiles at any size. None: by size, as told above.

    Returns:
        A scalar in nats, 0 at best and log(B) where all embeddings are alike.

    Raises:
        FuseMixLiteError: `u` and `v` differ in shape or are not matrices, `same` does not fit them, a tile below 1, or a
            second derivative of what was done in tiles.

    Source: the paper's L_sym (arXiv 2312.10144); official code, ``mlp_contrastive_fusion.py``. Tiles with the log-sum-exps
    kept and the rest computed again: as in FlashAttention (Dao et al., 2022), for a loss with two directions.
    """
    if u.ndim != 2 or u.shape != v.shape:
        raise FuseMixLiteError(f"symmetric_infonce: u {tuple(u.shape)}, v {tuple(v.shape)}; both must be (B, D)")
    B = len(u)
    if same is not None and not (same.shape == (B, B) if same.dtype == torch.bool else _are_labels(same, B)):
        what = "it must be (B, B) bool, or (P, B) integers"
        raise FuseMixLiteError(f"symmetric_infonce: same {tuple(same.shape)} {same.dtype}; {what}")
    if tile is not None and tile < 1:
        raise FuseMixLiteError(f"symmetric_infonce: tile = {tile}: give at least 1, or None")
    if tile is None and B * B * u.element_size() <= _by_device(DENSE_BYTES, u):
        return dense_infonce(u, v, temperature, same)
    return tiled_infonce(u, v, temperature, same, tile or _by_device(TILE, u))


def dense_infonce(u: Tensor, v: Tensor, temperature: Tensor | float, same: Tensor | None = None) -> Tensor:
    """`symmetric_infonce` as one matrix, whatever its size; what the tiles are tested against."""
    logits = (u / temperature) @ v.T  # (B, B), row i: u[i] against every v
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast halves the product, and nothing else
    targets = logits.diagonal()
    if same is not None:
        if same.dtype != torch.bool:
            same = _alike(same, slice(None), slice(None))
        kept = torch.eye(len(u), dtype=torch.bool, device=u.device)
        logits = logits.masked_fill(same & ~kept, -torch.inf)
    # Cross-entropy is logsumexp minus the logit of the target, and both directions share their targets: the diagonal.
    u_to_v, v_to_u = torch.logsumexp(logits, dim=1), torch.logsumexp(logits, dim=0)  # (B,), (B,)
    return (u_to_v + v_to_u).mean() / 2 - targets.mean()


def tiled_infonce(
    u: Tensor,
    v: Tensor,
    temperature: Tensor | float,
    same: Tensor | None = None,
    tile: int = 1024,
) -> Tensor:
    """`symmetric_infonce` in tiles of ``tile`` x ``tile`` similarities, whatever its size.

    Embeddings in half precision, or under autocast, are multiplied in half precision; everything else, sums and gradients
    among it, is fp32, and so is the result.
    """
    return _applied(_Tiled, u, v, temperature, same, tile)


def _applied(loss: type[torch.autograd.Function], u: Tensor, v: Tensor, temperature: Tensor | float, *more) -> Tensor:
    """A loss of our own derivative: under autocast it gets embeddings in half precision, and decides the rest by itself."""
    device = u.device.type
    if torch.is_autocast_enabled(device) and u.dtype != torch.float64:
        u, v = u.to(torch.get_autocast_dtype(device)), v.to(torch.get_autocast_dtype(device))
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(temperature, dtype=torch.promote_types(u.dtype, torch.float32), device=u.device)
    with torch.autocast(device, enabled=False):
        return loss.apply(u, v, temperature, *more)


class _Tiled(torch.autograd.Function):
    """Forward: the log-sum-exps of all rows and columns of the logits S. Backward: S again, tile by tile.

    With P = exp(S - row) and Q = exp(S - column), a row of P and a column of Q summing to 1, the gradient with respect to S
    is (P + Q - 2 I) / 2B. Where no logit can be large, exp(S) is kept as it comes and divided by plain sums: one exponential
    instead of two. Otherwise everything goes through logarithms, and no temperature is too cold.
    """

    @staticmethod
    def forward(ctx, u, v, temperature, same, tile):
        B, exact = len(u), torch.promote_types(u.dtype, torch.float32)
        scale = 1 / float(temperature)
        largest = u.norm(dim=1, dtype=exact).max() * v.norm(dim=1, dtype=exact).max() * abs(scale)  # Cauchy and Schwarz
        safe = bool(largest <= SAFE_LOGIT[exact])
        rows, columns = (u.new_full((B,), 0.0 if safe else -torch.inf, dtype=exact) for _ in range(2))
        targets = u.new_empty(B, dtype=exact)
        for i, j in _tiles(B, tile):
            logits = _logits(u[i], v[j], scale, exact)  # (T, T)
            if i == j:
                targets[i] = logits.diagonal()
            left_out = _left_out(same, i, j)
            if safe:
                e = logits.exp_() if left_out is None else logits.exp_().masked_fill_(left_out, 0)
                rows[i] += e.sum(1)
                columns[j] += e.sum(0)
            else:
                logits = logits if left_out is None else logits.masked_fill_(left_out, -torch.inf)
                rows[i] = torch.logaddexp(rows[i], logits.logsumexp(1))
                columns[j] = torch.logaddexp(columns[j], logits.logsumexp(0))
        ctx.save_for_backward(u, v, temperature, same, rows, columns)
        ctx.scale, ctx.safe, ctx.tile = scale, safe, tile
        return ((rows.log() + columns.log()) if safe else (rows + columns)).mean() / 2 - targets.mean()

    @staticmethod
    def backward(ctx, grad):
        u, v, temperature, same, rows, columns = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
            grads = _Tiled._gradients(ctx, grad, u, v, temperature, same, rows, columns)
        if torch.is_grad_enabled():  # create_graph: let the first derivative pass, and say why there is no second one
            grads = _NoSecond.apply(u, v, temperature, *grads)
        return *grads, None, None

    @staticmethod
    def _gradients(ctx, grad, u, v, temperature, same, rows, columns):
        B, exact = len(u), rows.dtype
        for_u = ctx.needs_input_grad[0] or ctx.needs_input_grad[2]
        du = torch.zeros_like(u, dtype=exact) if for_u else None
        dv = torch.zeros_like(v, dtype=exact) if ctx.needs_input_grad[1] else None
        if ctx.safe:
            rows, columns = 1 / rows, 1 / columns
        for i, j in _tiles(B, ctx.tile):
            logits, left_out = _logits(u[i], v[j], ctx.scale, exact), _left_out(same, i, j)
            if ctx.safe:
                weights = logits.exp_().mul_(rows[i, None] + columns[j])  # P + Q
            else:
                weights = (logits - rows[i, None]).exp_().add_(logits.sub_(columns[j]).exp_())
            if left_out is not None:
                weights.masked_fill_(left_out, 0)
            if i == j:
                weights.diagonal().sub_(2)
            if for_u:
                _add_product(du[i], weights, v[j])
            if dv is not None:
                _add_product(dv[j], weights.T, u[i])
        share = grad.to(exact) / (2 * B)  # of the mean over rows and two directions
        # S = scale u vᵀ, so that the sum of S dS, which the temperature asks for, is the sum of u du.
        dt = (u * du).sum() * share * -(ctx.scale**2) if ctx.needs_input_grad[2] else None
        return (
            du.mul_(share * ctx.scale).to(u.dtype) if ctx.needs_input_grad[0] else None,
            None if dv is None else dv.mul_(share * ctx.scale).to(v.dtype),
            None if dt is None else dt.to(temperature.dtype).reshape(temperature.shape),
        )


def shared_infonce(
    u: Tensor,
    v: Tensor,
    temperature: Tensor | float,
    own: slice,
    gather: Callable[[Tensor], Tensor],
    same: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:
    """`symmetric_infonce` of a batch whose rows several processes share, for the one that has these.

    The value is that of the whole batch, everywhere. The gradients of `u` and `v` are the whole batch's, too. That of the
    temperature is a part: those of all processes add up to the whole, as the gradients of the adapters' weights do.

    A process multiplies its rows of either modality with the batch of the other: six products of (b, B) in place of three of
    (B, B). All that has to be told are the embeddings and, of each row, its two log-sum-exps and the logit of its target.

    Args:
        u, v: (b, D) embeddings of this process's rows, unit rows.
        temperature: positive scalar that divides the cosine similarities.
        own: which rows of the batch these are.
        gather: takes (b, k) of this process and returns (B, k), the rows of all; no gradient passes through it.
        same: (P, B) integers for the whole batch, as `symmetric_infonce` takes them.
        tile: rows of the batch that are multiplied at once. None: by device.

    Source: the exchange of log-sum-exps is that of tiles (`tiled_infonce`), between processes instead of loops.
    """
    return _applied(_Shared, u, v, temperature, own, gather, same, tile or _by_device(TILE, u))


class _Shared(torch.autograd.Function):
    """Forward: log-sum-exps of own rows and own columns of the logits S. Backward: S again, with everybody's log-sum-exps.

    A row of the gradient with respect to S takes the log-sum-exp of that row and those of all columns, and so does a column.
    """

    @staticmethod
    def forward(ctx, u, v, temperature, own, gather, same, tile):
        exact, scale = torch.promote_types(u.dtype, torch.float32), 1 / float(temperature)
        every_u, every_v = gather(u), gather(v)  # (B, D)
        rows, columns = (u.new_full((len(u),), -torch.inf, dtype=exact) for _ in range(2))
        for at, left_out in _strips(own, same, len(every_u), tile):
            for sums, z, others in ((rows, u, every_v), (columns, v, every_u)):
                logits = _logits(z, others[at], scale, exact)  # (b, T)
                logits = logits if left_out is None else logits.masked_fill_(left_out, -torch.inf)
                torch.logaddexp(sums, logits.logsumexp(1), out=sums)
        targets = (u.to(exact) * v.to(exact)).sum(1) * scale
        told = gather(torch.stack([rows, columns, targets], 1))  # (B, 3)
        ctx.save_for_backward(u, v, temperature, every_u, every_v, told, same)
        ctx.own, ctx.scale, ctx.tile = own, scale, tile
        return (told[:, 0] + told[:, 1]).mean() / 2 - told[:, 2].mean()

    @staticmethod
    def backward(ctx, grad):
        u, v, temperature, every_u, every_v, told, same = ctx.saved_tensors
        exact, own, B = told.dtype, ctx.own, len(told)
        rows, columns = told[:, 0], told[:, 1]
        du, dv = (torch.zeros_like(z, dtype=exact) for z in (u, v))
        with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
            for at, left_out in _strips(own, same, B, ctx.tile):
                # Of S: own rows, whose sums are `rows`; of S transposed: own columns, whose sums are `columns`.
                for dz, z, others, of_own, of_others in (
                    (du, u, every_v, rows[own], columns[at]),
                    (dv, v, every_u, columns[own], rows[at]),
                ):
                    logits = _logits(z, others[at], ctx.scale, exact)
                    weights = (logits - of_own[:, None]).exp_().add_(logits.sub_(of_others).exp_())
                    weights = weights if left_out is None else weights.masked_fill_(left_out, 0)
                    _add_product(dz, weights, others[at])
            du -= 2 * v.to(exact)
            dv -= 2 * u.to(exact)
            share = grad.to(exact) / (2 * B)  # of the mean over rows and two directions
            dt = ((u * du).sum() * share * -(ctx.scale**2)).to(temperature.dtype).reshape(temperature.shape)
            du, dv = (dz.mul_(share * ctx.scale).to(z.dtype) for dz, z in ((du, u), (dv, v)))
        return du, dv, dt, None, None, None, None


def _strips(own: slice, same: Tensor | None, B: int, tile: int) -> Iterator[tuple[slice, Tensor | None]]:
    """The batch in parts of `tile` rows, and what own rows leave out of the denominators there: never themselves."""
    numbers = None if same is None else torch.arange(B, device=same.device)
    for start in range(0, B, tile):
        at = slice(start, min(start + tile, B))
        yield at, None if same is None else _alike(same, own, at) & (numbers[own, None] != numbers[None, at])


class _NoSecond(torch.autograd.Function):
    """The gradients as they are; their own gradient is refused."""

    @staticmethod
    def forward(ctx, u, v, temperature, *grads):
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx, *_):
        raise FuseMixLiteError("symmetric_infonce in tiles has no second derivative: use losses.dense_infonce for that")


def _tiles(B: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of all tiles; the last ones may be smaller."""
    cuts = [slice(start, min(start + tile, B)) for start in range(0, B, tile)]
    return ((i, j) for i in cuts for j in cuts)


def _logits(u: Tensor, v: Tensor, scale: float, exact: torch.dtype) -> Tensor:
    return (u @ v.T).to(exact).mul_(scale)


def _left_out(same: Tensor | None, i: slice, j: slice) -> Tensor | None:
    """What a tile leaves out of the denominators: never the diagonal."""
    if same is None:
        return None
    if same.dtype == torch.bool:
        return same[i, j].clone().fill_diagonal_(False) if i == j else same[i, j]
    shared = _alike(same, i, j)
    return shared.fill_diagonal_(False) if i == j else shared


def _alike(same: Tensor, i: slice, j: slice) -> Tensor:
    """Which of rows i share a label with which of rows j, by labels (P, B): a matrix of bool."""
    return (same[:, i, None] == same[:, None, j]).any(0)


def _are_labels(same: Tensor, B: int) -> bool:
    return not same.is_floating_point() and not same.is_complex() and same.ndim == 2 and same.shape[1] == B and len(same) > 0


def _add_product(total: Tensor, weights: Tensor, z: Tensor) -> None:
    """total += weights @ z, multiplied in the precision of z, added in that of total."""
    if total.dtype == z.dtype:
        torch.addmm(total, weights, z, out=total)
    else:
        total += weights.to(z.dtype) @ z


def _by_device(values: dict, z: Tensor):
    return values.get(z.device.type, values["other"])
