"""Deliberate breaks: each of these must turn its oracle check red."""

import pytest
import torch
import torch.nn.functional as F
from test_adapters import check_adapter
from test_losses import check_loss, check_tiles
from test_metrics import check_recall
from test_mixing import check_fusemix

from fusemix_lite import adapters, fusemix, losses, metrics, recall_at_k, separate_lambda, symmetric_infonce
from fusemix_lite.mixing import no_mixing


def logits(u, v, temperature):
    return u @ v.T / temperature, torch.arange(len(u))


true_ranks = metrics.ranks  # kept, as the tests below replace it

LOSSES = {
    "one direction": lambda u, v, t: F.cross_entropy(*logits(u, v, t)),
    "one direction twice": lambda u, v, t: (F.cross_entropy(*logits(u, v, t)) + F.cross_entropy(*logits(u, v, t))) / 2,
    "sum, not mean": lambda u, v, t: 2 * symmetric_infonce(u, v, t),
    "multiplies by the temperature": lambda u, v, t: symmetric_infonce(u, v, 1 / t),
    "normalises": lambda u, v, t: symmetric_infonce(F.normalize(u, dim=1), F.normalize(v, dim=1), t),
    "temperature gets no gradient": lambda u, v, t: (
        symmetric_infonce(u, v, t.detach() if torch.is_tensor(t) else t) + 0 * t
    ),
    "positives left out of the denominator": lambda u, v, t: (
        symmetric_infonce(u, v, t)
        + torch.logsumexp(logits(u, v, t)[0].fill_diagonal_(-torch.inf), 1).mean()
        - torch.logsumexp(logits(u, v, t)[0], 1).mean()
    ),
}

MIXINGS = {
    "separate lambda": separate_lambda,
    "one half": lambda zx, zy, **_: [z[: len(z) // 2] for z in (zx, zy)],
    "not mixed": no_mixing,
    "partners differ": lambda zx, zy, **options: fusemix(
        zx, torch.cat([zy[: len(zy) // 2], zy[len(zy) // 2 :].roll(1, 0)]), **options
    ),
    "neighbours, not halves": lambda zx, zy, **options: fusemix(
        *(torch.cat([z[::2], z[1::2]]) for z in (zx, zy)), **options
    ),
    "lambda swapped in one": lambda zx, zy, **options: fusemix(zx, zy.roll(len(zy) // 2, 0), **options),
    "always per batch": lambda zx, zy, generator, per: fusemix(zx, zy, generator=generator),
    "lambda beyond 1": lambda zx, zy, **options: [
        2 * m - z[: len(m)] for m, z in zip(fusemix(zx, zy, **options), (zx, zy), strict=True)
    ],
}


class NoResidual(adapters.ResidualBlock):
    def forward(self, z):
        return super().forward(z) - z


class PostNorm(adapters.ResidualBlock):
    def forward(self, z):
        return self.norm(z + self.narrow(self.dropout(F.gelu(self.widen(z)))))


class DropoutFirst(adapters.ResidualBlock):
    def forward(self, z):
        return z + self.narrow(F.gelu(self.widen(self.norm(self.dropout(z)))))


class DropoutLast(adapters.ResidualBlock):
    def forward(self, z):
        return z + self.dropout(self.narrow(F.gelu(self.widen(self.norm(z)))))


class Relu(adapters.ResidualBlock):
    def forward(self, z):
        return z + self.narrow(self.dropout(F.relu(self.widen(self.norm(z)))))


class Narrow(adapters.ResidualBlock):
    def __init__(self, dim, expansion, dropout):
        super().__init__(dim, expansion // 2, dropout)


def ties_for_the_model(u, v, owner):
    scores = u @ v.T
    own = owner == torch.arange(len(u))[:, None]
    asks = own.any(1)
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    match = scores.T.gather(1, owner[:, None])
    return {"x_to_y": 1 + (scores > best).sum(1)[asks], "y_to_x": 1 + (match < scores.T).sum(1)}


def own_captions_compete(u, v, owner):
    scores = u @ v.T
    own = owner == torch.arange(len(u))[:, None]
    best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    return {"x_to_y": (scores >= best).sum(1)[own.any(1)], "y_to_x": true_ranks(u, v, owner)["y_to_x"]}


def items_without_rows_ask(u, v, owner):
    found = true_ranks(u, v, owner)
    unanswerable = torch.full((len(u) - len(found["x_to_y"]),), len(v))
    return found | {"x_to_y": torch.cat([found["x_to_y"], unanswerable])}


def first_caption_only(u, v, owner):
    first = torch.tensor([owner.tolist().index(item) for item in owner.unique()])
    scores = u[owner.unique()] @ v.T
    others = owner != owner.unique()[:, None]
    match = scores.gather(1, first[:, None])
    return true_ranks(u, v, owner) | {"x_to_y": 1 + ((scores >= match) & others).sum(1)}


def captionless_items_left_out_of_the_gallery(u, v, owner):
    items, owner = owner.unique(return_inverse=True)
    return true_ranks(u[items], v, owner)


@pytest.mark.parametrize("broken", LOSSES.values(), ids=LOSSES)
def test_broken_losses_are_caught(broken):
    with pytest.raises(AssertionError):
        check_loss(broken)


true_tiles = losses._tiles
true_left_out = losses._left_out

TILES = {
    "the uneven tile is forgotten": ("_tiles", lambda B, tile: true_tiles(B - B % tile if B > tile else B, tile)),
    "tiles of the diagonal only": ("_tiles", lambda B, tile: ((i, j) for i, j in true_tiles(B, tile) if i == j)),
    "a tile twice": ("_tiles", lambda B, tile: [*true_tiles(B, tile), next(true_tiles(B, tile))]),
    "the mask is not looked at": ("_left_out", lambda same, i, j: None),
    "the mask takes the positives too": ("_left_out", lambda same, i, j: None if same is None else same[i, j]),
    "the mask of another tile": ("_left_out", lambda same, i, j: None if same is None else true_left_out(same, i, i)),
    "plain sums at any temperature": ("SAFE_LOGIT", {torch.float64: 1e9}),
    "products not added up": ("_add_product", lambda total, weights, z: total.copy_(weights @ z)),
}


@pytest.mark.parametrize(("part", "broken"), TILES.values(), ids=TILES)
def test_broken_tiles_are_caught(monkeypatch, part, broken):
    monkeypatch.setattr(losses, part, broken)
    with pytest.raises((AssertionError, RuntimeError)):
        check_tiles(losses.tiled_infonce)


@pytest.mark.parametrize("broken", MIXINGS.values(), ids=MIXINGS)
def test_broken_mixings_are_caught(broken):
    with pytest.raises(AssertionError):
        check_fusemix(broken)


@pytest.mark.parametrize("block", [NoResidual, PostNorm, DropoutFirst, DropoutLast, Relu, Narrow])
def test_broken_adapters_are_caught(monkeypatch, block):
    monkeypatch.setattr(adapters, "ResidualBlock", block)
    with pytest.raises(AssertionError):
        check_adapter(adapters.FusionAdapter)


@pytest.mark.parametrize(
    "broken",
    [
        ties_for_the_model,
        own_captions_compete,
        items_without_rows_ask,
        first_caption_only,
        captionless_items_left_out_of_the_gallery,
    ],
)
def test_broken_recalls_are_caught(monkeypatch, broken):
    monkeypatch.setattr(metrics, "ranks", broken)
    with pytest.raises(AssertionError):
        check_recall(recall_at_k)


COUNTS = {
    "ties for the model": ("_count", lambda scores, least, dim: (scores > least).sum(dim)),
    "counted the other way": ("_count", lambda scores, least, dim: (scores <= least).sum(dim)),
    "own rows compete": ("_best", lambda match, item, items: (true_best(match, item, items)[0], 1)),
    "some row, not the best": (
        "_best",
        lambda match, item, items: (match.new_zeros(items).scatter(0, item, match), true_best(match, item, items)[1]),
    ),
    "a tile is forgotten": ("_counted_tiles", lambda rows, columns: [slice(0, rows - 1)]),
}
true_best = metrics._best


@pytest.mark.parametrize(("part", "broken"), COUNTS.values(), ids=COUNTS)
def test_broken_counts_are_caught(monkeypatch, part, broken):
    monkeypatch.setattr(metrics, part, broken)
    with pytest.raises(AssertionError):
        check_recall(recall_at_k)
