"""The loss against an explicit double loop, forward and backward."""

import math

import pytest
import torch
import torch.nn.functional as F

from fusemix_lite import FuseMixLiteError, symmetric_infonce


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
    for same in (torch.eye(3), torch.eye(4, dtype=torch.bool)):
        with pytest.raises(FuseMixLiteError, match="same"):
            symmetric_infonce(torch.eye(3), torch.eye(3), 0.1, same)
