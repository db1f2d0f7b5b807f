"""FuseMix and its rivals: row by row, the law of lambda, and where the randomness comes from."""

import pytest
import torch
from scipy import stats

from fusemix_lite import SCHEMES, FuseMixLiteError, fusemix, no_mixing, separate_lambda
from fusemix_lite.mixing import sample_lambda


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def latents(rows=12, dims=(3, 5), dtype=torch.float64):
    return [torch.randn(rows, d, generator=seeded(d), dtype=torch.float64).to(dtype) for d in dims]


def lambdas(mixed, z):
    """Recover lambda of each row from mixed = lambda * z[i] + (1 - lambda) * z[i + B], and that it was mixed so."""
    B, found = len(z) // 2, []
    assert mixed.shape == (B, z.shape[1])
    for i in range(B):
        apart = z[i] - z[i + B]
        lam = ((mixed[i] - z[i + B]) @ apart / (apart @ apart)).item()
        assert torch.allclose(mixed[i], lam * z[i] + (1 - lam) * z[i + B], atol=1e-6)
        assert 0 <= lam <= 1
        found.append(lam)
    return torch.tensor(found)


def check_fusemix(mix):
    """The oracle check; `test_breaks` feeds it broken mixings."""
    zx, zy = latents()
    seen = []
    for seed in range(5):
        for per in ("batch", "pair"):
            lx, ly = (
                lambdas(m, z) for m, z in zip(mix(zx, zy, generator=seeded(seed), per=per), (zx, zy), strict=True)
            )
            assert torch.allclose(lx, ly, atol=1e-6)  # one lambda for both modalities
            assert torch.allclose(lx, lx[:1].expand_as(lx), atol=1e-6) == (per == "batch")
            seen.append(lx[0].item())
    assert torch.tensor(seen).std() > 0.1  # and a new one each time


def test_fusemix_row_by_row():
    check_fusemix(fusemix)


def test_separate_lambda_differs_between_modalities():
    zx, zy = latents()
    lx, ly = (lambdas(m, z) for m, z in zip(separate_lambda(zx, zy, generator=seeded()), (zx, zy), strict=True))
    assert (lx - ly).abs().min() > 0.01


def test_slerp_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    lam = sample_lambda(1, generator=seeded()).double().item()
    for mixed in SCHEMES["slerp"](x, x, generator=seeded()):
        angle = torch.tensor((1 - lam) * torch.pi / 2, dtype=torch.float64)  # from x[0] towards x[1]
        expected = (lam * 1 + (1 - lam) * 3) * torch.stack([angle.cos(), angle.sin()])
        assert torch.allclose(mixed[0], expected, atol=1e-6)
    for second in (x[0], -x[0], 0 * x[0]):  # equal, opposite, no direction at all
        assert torch.isfinite(SCHEMES["slerp"](torch.stack([x[0], second]), x, generator=seeded())[0]).all()


@pytest.mark.parametrize("scheme", ["noise", "quantise"])
def test_perturbations_have_the_stated_size(scheme):
    zx, zy = latents(rows=20_000)
    level = 0.5 * sample_lambda(1, generator=seeded())
    for new, z in zip(SCHEMES[scheme](zx, zy, alpha=0.5, generator=seeded()), (zx, zy), strict=True):
        error = new - z
        assert torch.allclose(error.std(0) / z.std(0), level.double().expand(z.shape[1]), rtol=0.05)
        assert (error.mean(0).abs() < 0.03).all()
    constant = torch.ones(4, 2)
    assert torch.equal(SCHEMES[scheme](constant, constant, generator=seeded())[0], constant)


def test_quantisation_leaves_few_values():
    zx, zy = latents(rows=1000)
    new, _ = SCHEMES["quantise"](zx, zy, generator=seeded(1))
    assert all(len(column.round(decimals=6).unique()) < 40 for column in new.T)


def test_no_mixing_returns_its_input():
    zx, zy = latents()
    assert all(a is b for a, b in zip(no_mixing(zx, zy), (zx, zy), strict=True))


@pytest.mark.parametrize("alpha", [0.4, 1.0, 2.0, 30.0])
def test_lambda_follows_the_beta_law(alpha):
    sample = sample_lambda(20_000, alpha, seeded(1)).double().numpy()
    assert stats.kstest(sample, "beta", args=(alpha, alpha)).pvalue > 0.01
    assert stats.kstest(sample, "beta", args=(alpha * 1.2, alpha)).pvalue < 1e-6  # the test can tell


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("per", ["batch", "pair"])
def test_contract_of_every_scheme(name, per):
    scheme = SCHEMES[name]
    for dtype in (torch.float32, torch.float64):
        zx, zy = latents(dtype=dtype)
        before = torch.get_rng_state()
        first = scheme(zx, zy, 0.7, seeded(3), per)
        assert torch.equal(torch.get_rng_state(), before)  # the global state is left alone
        for a, b, z in zip(first, scheme(zx, zy, 0.7, seeded(3), per), (zx, zy), strict=True):
            assert torch.equal(a, b) and a.dtype == dtype
            assert a.shape == (len(z) // scheme.rows_per_pair, z.shape[1])
        if name != "none":
            assert not torch.equal(first[0], scheme(zx, zy, 0.7, seeded(4), per)[0])


@pytest.mark.parametrize("name", SCHEMES)
def test_without_a_generator_the_global_state_counts(name):
    zx, zy = latents()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = SCHEMES[name](zx, zy)
        torch.manual_seed(0)
        assert all(torch.equal(a, b) for a, b in zip(first, SCHEMES[name](zx, zy), strict=True))


def test_errors():
    zx, zy = latents()
    for name in ("fusemix", "separate", "slerp"):
        with pytest.raises(FuseMixLiteError, match="even"):
            SCHEMES[name](zx[:5], zy[:5])
    for name, scheme in SCHEMES.items():
        with pytest.raises(FuseMixLiteError, match="rows"):
            scheme(zx, zy[:-2])
        with pytest.raises(FuseMixLiteError, match="rows"):
            scheme(zx[:0], zy[:0])
        if name != "none":
            with pytest.raises(FuseMixLiteError, match='"pair"'):
                scheme(zx, zy, per="row")
    for alpha in (0, -1, float("nan")):
        with pytest.raises(FuseMixLiteError, match="alpha"):
            fusemix(zx, zy, alpha)
