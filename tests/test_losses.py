"""The loss against an explicit double loop, forward and backward; the tiles against the matrix."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fusemix_lite import FuseMixLiteError, fit, losses, symmetric_infonce
from fusemix_lite.losses import dense_infonce, tiled_infonce


def naive_infonce(u, v, temperature):
    """Cross-entropy of row i over all j, by loops, in both directions."""
    B, total = len(u), 0.0
    for i in range(B):
        u_to_v = sum(torch.exp((u[i] * v[j]).sum() / temperature) for j in range(B))
        v_to_u = sum(torch.exp((u[j] * v[i]).sum() / temperature) for j in range(B))
        positive = (u[i] * v[i]).sum() / temperature
        total = total + (u_to_v.log() - positive) + (v_to_u.log() - positive)
    return total / (2 * B)


def unit_rows(B, D, seed, dtype=torch.float64):
    return F.normalize(torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1).to(
        dtype
    )


def value_and_gradients(loss, u, v, temperature):
    inputs = [z.clone().requires_grad_() for z in (u, v, torch.tensor(temperature, dtype=u.dtype))]
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def check_loss(loss):
    """The oracle check; `test_breaks` feeds it broken losses."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        for B, temperature in ((2, 0.5), (7, 0.07)):
            u, v = unit_rows(B, 4, 0, dtype), unit_rows(B, 4, 1, dtype)
            expected = value_and_gradients(naive_infonce, u.double(), v.double(), temperature)
            got = value_and_gradients(loss, u, v, temperature)
            for a, b in zip(got, expected, strict=True):
                assert torch.allclose(a.double(), b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max()))
    longer = 2 * unit_rows(5, 4, 0)  # embeddings are taken as they come
    assert torch.isclose(loss(longer, longer, 1.0), naive_infonce(longer, longer, 1.0))


def test_matches_the_double_loop():
    check_loss(symmetric_infonce)


def test_gradients_by_finite_differences():
    inputs = unit_rows(5, 3, 0), unit_rows(5, 3, 1), torch.tensor(0.2, dtype=torch.float64)
    assert torch.autograd.gradcheck(symmetric_infonce, [z.requires_grad_() for z in inputs])


def test_symmetries():
    u, v, order = unit_rows(9, 4, 0), unit_rows(9, 4, 1), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    loss = symmetric_infonce(u, v, 0.1)
    assert torch.isclose(loss, symmetric_infonce(v, u, 0.1))  # modalities swapped
    assert torch.isclose(loss, symmetric_infonce(u[order], v[order], 0.1))  # pairs permuted together
    assert not torch.isclose(loss, symmetric_infonce(u[order], v, 0.1))  # but not apart


def test_limits():
    same = torch.ones(8, 4) / 2
    assert symmetric_infonce(same, same, 0.07).item() == pytest.approx(math.log(8), abs=1e-5)  # knows nothing
    assert symmetric_infonce(torch.eye(8), torch.eye(8), 0.01).item() == pytest.approx(0, abs=1e-6)  # knows all
    assert torch.isfinite(symmetric_infonce(torch.eye(8), -torch.eye(8), 0.001))  # no overflow at the coldest


def test_shapes_must_agree():
    for u, v in ((torch.eye(3), torch.eye(4)), (torch.ones(3), torch.ones(3)), (torch.eye(3), torch.ones(3, 4))):
        with pytest.raises(FuseMixLiteError, match="B, D"):
            symmetric_infonce(u, v, 0.1)


def naive_masked(u, v, temperature, same):
    """The double loop, over those j that are no negatives of their own item."""
    total = 0.0
    for i in range(len(u)):
        others = [j for j in range(len(u)) if j == i or not same[i, j]]
        u_to_v = sum(torch.exp((u[i] * v[j]).sum() / temperature) for j in others)
        v_to_u = sum(torch.exp((u[j] * v[i]).sum() / temperature) for j in others)
        total = total + u_to_v.log() + v_to_u.log() - 2 * (u[i] * v[i]).sum() / temperature
    return total / (2 * len(u))


def test_what_shares_an_item_is_no_negative():
    u, v, items = unit_rows(6, 4, 0), unit_rows(6, 4, 1), torch.tensor([0, 1, 0, 2, 2, 2])
    same = items[:, None] == items[None, :]
    expected = value_and_gradients(lambda u, v, t: naive_masked(u, v, t, same), u, v, 0.1)
    for a, b in zip(value_and_gradients(lambda *z: symmetric_infonce(*z, same), u, v, 0.1), expected, strict=True):
        assert torch.allclose(a, b)
    assert symmetric_infonce(u, v, 0.1, same) < symmetric_infonce(u, v, 0.1)
    alone = torch.zeros_like(same)
    assert torch.equal(symmetric_infonce(u, v, 0.1, alone), symmetric_infonce(u, v, 0.1))
    assert symmetric_infonce(u, v, 0.1, ~alone) == 0  # nothing is left to tell apart


def test_a_mask_has_to_fit():
    for same in (torch.eye(3), torch.eye(4, dtype=torch.bool), torch.arange(3), torch.zeros(2, 4, dtype=torch.int64)):
        with pytest.raises(FuseMixLiteError, match="same"):
            symmetric_infonce(torch.eye(3), torch.eye(3), 0.1, same)


# --- tiles ----------------------------------------------------------------------------------------------------------------

TEMPERATURES = {"plain sums": 0.07, "through logarithms": 0.0005}  # on either side of SAFE_LOGIT


def shared_items(B):
    items = torch.arange(B) // 3
    return items[:, None] == items[None, :]


def check_tiles(tiled):
    """Tiles against the matrix, in float64; `test_breaks` feeds it broken tiles."""
    B = 23
    u, v = unit_rows(B, 6, 0), unit_rows(B, 6, 1)
    for tile in (1, 5, 23, 100):  # uneven, one and only
        for temperature in TEMPERATURES.values():
            for same in (None, shared_items(B)):
                expected = value_and_gradients(partial(dense_infonce, same=same), u, v, temperature)
                got = value_and_gradients(partial(tiled, same=same, tile=tile), u, v, temperature)
                for a, b in zip(got, expected, strict=True):
                    assert torch.allclose(a, b, rtol=1e-9, atol=1e-12), (tile, temperature, same is not None)


def test_tiles_are_the_matrix():
    check_tiles(tiled_infonce)
    check_loss(partial(symmetric_infonce, tile=3))


@pytest.mark.parametrize("safe", [600.0, 0.0], ids=TEMPERATURES)
def test_gradients_of_tiles_by_finite_differences(monkeypatch, safe):
    monkeypatch.setitem(losses.SAFE_LOGIT, torch.float64, safe)
    inputs = unit_rows(5, 3, 0), unit_rows(5, 3, 1), torch.tensor(0.2, dtype=torch.float64)
    tiles = partial(tiled_infonce, same=shared_items(5), tile=2)
    assert torch.autograd.gradcheck(tiles, [z.requires_grad_() for z in inputs])


def test_tiles_round_no_worse_than_the_matrix():
    u, v = unit_rows(700, 64, 0, torch.float32), unit_rows(700, 64, 1, torch.float32)
    exact = value_and_gradients(dense_infonce, u.double(), v.double(), 0.07)

    def error(loss):
        got = value_and_gradients(loss, u, v, 0.07)
        return [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, exact, strict=True)]

    dense, tiled = error(dense_infonce), error(partial(tiled_infonce, tile=256))
    assert max(dense) < 4e-6 and max(tiled) < 4e-6, (dense, tiled)


def test_every_temperature_that_training_may_reach():
    u, v = unit_rows(40, 8, 0, torch.float32), unit_rows(40, 8, 1, torch.float32)
    tiled = partial(tiled_infonce, tile=16)
    for temperature in (0.5, 0.07, 1 / 59, 1 / 61, 0.01, 0.001):
        for a, b in ((u, v), (u, -u), (u, u), (torch.eye(40, 50), -torch.eye(40, 50))):
            expected, got = (value_and_gradients(loss, a, b, temperature) for loss in (dense_infonce, tiled))
            for x, y in zip(got, expected, strict=True):
                assert torch.isfinite(x).all() and torch.allclose(x, y, rtol=1e-4, atol=1e-5 / temperature), temperature


@pytest.mark.parametrize("loss", [dense_infonce, partial(tiled_infonce, tile=5)], ids=["matrix", "tiles"])
def test_labels_say_the_same_as_a_mask(loss):
    u, v, generator = unit_rows(12, 4, 0), unit_rows(12, 4, 1), torch.Generator().manual_seed(0)
    labels = torch.randint(4, (2, 12), generator=generator)  # of pairs that were mixed of two
    mask = (labels[:, :, None] == labels[:, None, :]).any(0)
    assert 0.2 < mask.double().mean() < 0.8 and (labels[0] == labels[1]).any()
    for temperature in TEMPERATURES.values():
        expected = value_and_gradients(lambda *z: dense_infonce(*z, mask), u, v, temperature)
        for a, b in zip(value_and_gradients(partial(loss, same=labels), u, v, temperature), expected, strict=True):
            assert torch.allclose(a, b)
    assert torch.equal(symmetric_infonce(u, v, 0.1, labels), symmetric_infonce(u, v, 0.1, mask))


class Largest(TorchDispatchMode):
    """The most numbers that any result of an operation had."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_nothing_as_large_as_the_matrix_is_ever_made():
    B, D, tile = 220, 8, 50
    u, v = unit_rows(B, D, 0, torch.float32), unit_rows(B, D, 1, torch.float32)
    for temperature in TEMPERATURES.values():
        for labels in (None, torch.arange(B)[None] // 2):
            with Largest() as seen:
                value_and_gradients(partial(symmetric_infonce, same=labels, tile=tile), u, v, temperature)
            assert seen.numbers == max(B * D, tile**2)
    with Largest() as seen:
        value_and_gradients(symmetric_infonce, u, v, 0.07)
    assert seen.numbers == B * B  # and one would be seen


def test_a_product_a_tile_serves_both_directions():
    from fusemix_lite.costs import counted

    B, D = 64, 16
    u, v = (unit_rows(B, D, seed, torch.float32) for seed in (0, 1))
    product = 2 * B * B * D
    assert counted(lambda: tiled_infonce(u, v, 0.07, tile=24)) == product
    assert counted(lambda: value_and_gradients(partial(tiled_infonce, tile=24), u, v, 0.07)) == 4 * product
    frozen = v.clone().requires_grad_()
    assert counted(lambda: tiled_infonce(u, frozen, 0.07, tile=24).backward()) == 3 * product  # no gradient of u wanted


def test_a_matrix_that_is_too_large_is_not_made(monkeypatch):
    u, v = unit_rows(20, 4, 0), unit_rows(20, 4, 1)
    kind = lambda: type(symmetric_infonce(u.requires_grad_(), v, 0.07).grad_fn).__name__  # noqa: E731
    assert kind() == "SubBackward0"
    monkeypatch.setitem(losses.DENSE_BYTES, "cpu", 20 * 20 * 8)
    assert kind() == "SubBackward0"
    monkeypatch.setitem(losses.DENSE_BYTES, "cpu", 20 * 20 * 8 - 1)
    assert kind() == "_TiledBackward"
    assert torch.equal(symmetric_infonce(u, v, 0.07), tiled_infonce(u, v, 0.07))


def test_the_batches_of_the_book_are_matrices():
    from fusemix_lite.profiles import profile

    assert 4 * profile("lite").batch_size ** 2 < min(losses.DENSE_BYTES.values()) / 8


def test_training_in_tiles_is_the_same_training(monkeypatch):
    from fusemix_lite import LatentPairs

    pairs = LatentPairs(unit_rows(64, 6, 0), unit_rows(64, 5, 1))
    train = lambda: fit(pairs, steps=5, batch_size=16, mask_negatives=True, shared_dim=8, progress=False, device="cpu")  # noqa: E731
    expected = [entry["loss"] for entry in train().history]
    monkeypatch.setitem(losses.DENSE_BYTES, "cpu", 0)
    monkeypatch.setitem(losses.TILE, "cpu", 5)
    assert [entry["loss"] for entry in train().history] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    B, D = 300, 32
    u, v = unit_rows(B, D, 0, dtype), unit_rows(B, D, 1, dtype)
    exact = value_and_gradients(dense_infonce, u.double(), v.double(), 1 / 16)  # a number that halves exactly
    got = value_and_gradients(partial(tiled_infonce, tile=64), u, v, 1 / 16)
    assert got[0].dtype == torch.float32 and got[1].dtype == dtype
    assert got[0].item() == pytest.approx(exact[0].item(), rel=1e-3)
    for a, b in zip(got[1:], exact[1:], strict=True):
        assert (a.double() - b).abs().max() < 0.02 * b.abs().max()


@pytest.mark.parametrize("way", [partial(tiled_infonce, tile=16), dense_infonce], ids=["tiles", "dense"])
def test_autocast_halves_the_products_and_nothing_else(way):
    u, v = unit_rows(60, 16, 0, torch.float32), unit_rows(60, 16, 1, torch.float32)
    half = value_and_gradients(partial(tiled_infonce, tile=16), u.bfloat16(), v.bfloat16(), 1 / 16)

    def under_autocast(*z):
        with torch.autocast("cpu", torch.bfloat16):
            return way(*z)

    got = value_and_gradients(under_autocast, u, v, 1 / 16)
    assert [a.dtype for a in got] == [torch.float32] * 4  # as the arguments are
    for a, b in zip(got, half, strict=True):
        assert torch.allclose(a, b.float(), rtol=1e-2, atol=float(b.abs().max()) / 200)
    exact = value_and_gradients(dense_infonce, u, v, 1 / 16)
    assert not torch.equal(got[1], exact[1]) and torch.allclose(got[0], exact[0], rtol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):  # double stays double
        inside = value_and_gradients(way, u.double(), v.double(), 0.07)
    assert torch.allclose(inside[1], value_and_gradients(dense_infonce, u.double(), v.double(), 0.07)[1])


def test_only_the_gradients_that_are_asked_for():
    u, v, t = unit_rows(9, 4, 0), unit_rows(9, 4, 1), torch.tensor(0.1, dtype=torch.float64)
    every = value_and_gradients(dense_infonce, u, v, 0.1)[1:]
    for wanted in ((0,), (1,), (2,), (0, 2), (1, 2)):
        inputs = [z.clone().requires_grad_(n in wanted) for n, z in enumerate((u, v, t))]
        found = torch.autograd.grad(tiled_infonce(*inputs, tile=4), [inputs[n] for n in wanted])
        for n, gradient in zip(wanted, found, strict=True):
            assert torch.allclose(gradient, every[n])
    assert not tiled_infonce(u, v, 0.1, tile=4).requires_grad


def test_a_temperature_of_any_shape_with_one_number():
    u, v, t = unit_rows(9, 4, 0), unit_rows(9, 4, 1), torch.tensor([0.1], requires_grad=True)
    tiled_infonce(u, v, t, tile=4).backward()
    found, t.grad = t.grad, None
    dense_infonce(u, v, t).backward()
    assert found.shape == (1,) and found.dtype == torch.float32 and torch.allclose(found, t.grad)


def test_a_second_derivative_is_refused_in_words():
    u, v = unit_rows(9, 4, 0).requires_grad_(), unit_rows(9, 4, 1)
    (first,) = torch.autograd.grad(tiled_infonce(u, v, 0.1, tile=4), u, create_graph=True)
    assert torch.allclose(first, torch.autograd.grad(dense_infonce(u, v, 0.1), u)[0])  # the first one is not
    with pytest.raises(FuseMixLiteError, match="no second derivative: use losses.dense_infonce"):
        first.sum().backward()


def test_what_is_not_finite_stays_so():
    u, v = unit_rows(9, 4, 0), unit_rows(9, 4, 1)
    u[3, 2] = torch.nan
    assert tiled_infonce(u, v, 0.1, tile=4).isnan()


def test_a_tile_has_to_hold_something():
    with pytest.raises(FuseMixLiteError, match="tile = 0"):
        symmetric_infonce(torch.eye(3), torch.eye(3), 0.1, tile=0)
