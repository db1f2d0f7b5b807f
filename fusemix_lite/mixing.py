"""FuseMix and its rivals: augmentations of paired latents, all called the same way.

A scheme takes a batch of positive pairs, ``zx`` (rows, dx) and ``zy`` (rows, dy), and returns the augmented pairs. Its
attribute ``rows_per_pair`` says how many loaded rows one pair in the loss costs (2 where rows are mixed, 1 elsewhere),
so that every scheme can be given the same number of pairs in the loss. The common arguments:

    alpha      how strong. Mixing schemes: lambda ~ Beta(alpha, alpha). Noise and quantisation: the largest
               perturbation, in standard deviations of a latent dimension over the batch; its level, shared by both
               modalities, is uniform in [0, alpha].
    generator  the only source of randomness. None means torch's global one.
    per        "batch": one lambda (or level) for the whole batch, as in the official code. "pair": one for each pair.

Latents must be finite floating point; a wrong shape, an odd count or an unknown `per` raises FuseMixLiteError.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .errors import FuseMixLiteError

Pair = tuple[Tensor, Tensor]


def sample_lambda(size: int, alpha: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Draw (size,) mixing coefficients from Beta(alpha, alpha), float32, on the generator's device (None: the CPU).

    By inversion of the distribution function, since ``torch.distributions.Beta.sample`` takes no generator. One uniform
    number a coefficient, whatever alpha, so runs that differ in alpha alone stay paired in everything else.
    """
    if not alpha > 0:
        raise FuseMixLiteError(f"alpha = {alpha}: the Beta distribution needs alpha > 0")
    uniform = _draw(torch.rand, size, generator)
    if alpha == 1.0:
        return uniform
    from scipy.special import betaincinv  # here, because the default alpha does not need it

    return torch.from_numpy(betaincinv(alpha, alpha, uniform.double().cpu().numpy())).to(uniform)


def rows_per_pair(rows: int):
    """Mark a scheme with the number of loaded rows that one pair in the loss costs."""

    def mark(scheme):
        scheme.rows_per_pair = rows
        return scheme

    return mark


@rows_per_pair(2)
def fusemix(zx: Tensor, zy: Tensor, alpha: float = 1.0, generator: Generator | None = None, per: str = "batch") -> Pair:
    """FuseMix: mix row i with row i + B, with one lambda for both modalities, so that mixed pairs stay positive pairs.

    Args:
        zx: (2B, dx) latents of one modality, as the frozen encoder gave them.
        zy: (2B, dy) latents of the other, row-matched.

    Returns:
        ``lambda * z[:B] + (1 - lambda) * z[B:]`` of both, (B, dx) and (B, dy).

    Source: the paper's FuseMix (arXiv 2312.10144); official code (two halves of a batch, one lambda a step).
    """
    lam = _lambda(_pairs(zx, zy, 2), alpha, generator, per)
    return _mix(zx, lam), _mix(zy, lam)


@rows_per_pair(2)
def separate_lambda(
    zx: Tensor, zy: Tensor, alpha: float = 1.0, generator: Generator | None = None, per: str = "batch"
) -> Pair:
    """`fusemix` with an independent lambda for each modality: what sharing it is worth. (2B, d) -> (B, d)."""
    rows = _pairs(zx, zy, 2)
    return _mix(zx, _lambda(rows, alpha, generator, per)), _mix(zy, _lambda(rows, alpha, generator, per))


@rows_per_pair(2)
def slerp(zx: Tensor, zy: Tensor, alpha: float = 1.0, generator: Generator | None = None, per: str = "batch") -> Pair:
    """`fusemix` on the sphere: directions turn along the great circle, lengths mix linearly. (2B, d) -> (B, d)."""
    lam = _lambda(_pairs(zx, zy, 2), alpha, generator, per)
    return _turn(zx, lam), _turn(zy, lam)


@rows_per_pair(1)
def no_mixing(
    zx: Tensor, zy: Tensor, alpha: float = 1.0, generator: Generator | None = None, per: str = "batch"
) -> Pair:
    """The pairs as they are; draws nothing. (B, d) -> (B, d)."""
    _pairs(zx, zy, 1)
    return zx, zy


@rows_per_pair(1)
def gaussian_noise(
    zx: Tensor, zy: Tensor, alpha: float = 1.0, generator: Generator | None = None, per: str = "batch"
) -> Pair:
    """Add normal noise, its size relative to the spread of each latent dimension. (B, d) -> (B, d)."""
    level = _level(_pairs(zx, zy, 1), alpha, generator, per)

    def noisy(z: Tensor) -> Tensor:
        noise = _draw(torch.randn, z.shape, generator).to(z)
        return z + level.to(z) * z.std(0, correction=0) * noise

    return noisy(zx), noisy(zy)


@rows_per_pair(1)
def random_quantisation(
    zx: Tensor, zy: Tensor, alpha: float = 1.0, generator: Generator | None = None, per: str = "batch"
) -> Pair:
    """Round each latent dimension to the centres of equal bins, placed at random for each batch. (B, d) -> (B, d).

    The bins are as wide as makes the rounding error the size of the noise in `gaussian_noise`. After Wu et al.,
    "Randomized Quantization" (ICCV 2023), whose bins have random unequal widths.
    """
    level = _level(_pairs(zx, zy, 1), alpha, generator, per)

    def rounded(z: Tensor) -> Tensor:
        deviation = level.to(z) * z.std(0, correction=0)  # of the error: (1, d) or (B, d)
        width = math.sqrt(12) * deviation  # the error is uniform over a bin
        shift = _draw(torch.rand, z.shape[1:], generator).to(z)  # (d,), in bins
        return torch.where(width > 0, ((z / width + shift).floor() + 0.5 - shift) * width, z)

    return rounded(zx), rounded(zy)


SCHEMES = {
    "none": no_mixing,
    "noise": gaussian_noise,
    "separate": separate_lambda,
    "quantise": random_quantisation,
    "slerp": slerp,
    "fusemix": fusemix,
}


def _pairs(zx: Tensor, zy: Tensor, rows_per_pair: int) -> int:
    """The number of pairs that come out, or an error for latents that cannot be paired."""
    if zx.ndim != 2 or zy.ndim != 2 or len(zx) != len(zy) or len(zx) == 0:
        raise FuseMixLiteError(f"latents {tuple(zx.shape)} and {tuple(zy.shape)}: give (rows, dx) and (rows, dy)")
    if len(zx) % rows_per_pair:
        raise FuseMixLiteError(f"{len(zx)} rows cannot be mixed two by two: give an even number")
    return len(zx) // rows_per_pair


def _lambda(pairs: int, alpha: float, generator: Generator | None, per: str) -> Tensor:
    """Mixing coefficients that broadcast over latents: (1, 1) per batch, (B, 1) per pair."""
    if per not in ("batch", "pair"):
        raise FuseMixLiteError(f'per = {per!r}: choose "batch" or "pair"')
    return sample_lambda(1 if per == "batch" else pairs, alpha, generator)[:, None]


def _level(pairs: int, alpha: float, generator: Generator | None, per: str) -> Tensor:
    """Perturbation levels, uniform in [0, alpha], that broadcast like `_lambda`."""
    return alpha * _lambda(pairs, 1.0, generator, per)


def _mix(z: Tensor, lam: Tensor) -> Tensor:
    """Mix the first half of the rows with the second: (2B, d) -> (B, d)."""
    first, second = z.chunk(2)
    return torch.lerp(second, first, lam.to(z))


def _turn(z: Tensor, lam: Tensor) -> Tensor:
    """Like `_mix`, along the great circle."""
    lam = lam.to(z)
    length = z.norm(dim=1, keepdim=True)
    first, second = F.normalize(z, dim=1).chunk(2)  # (B, d) each, on the sphere
    cosine = (first * second).sum(1, keepdim=True)
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()  # kept off 0 and pi, where the sine below vanishes
    direction = ((lam * angle).sin() * first + ((1 - lam) * angle).sin() * second) / angle.sin()
    return direction * _mix(length, lam)


def _draw(law, size, generator: Generator | None) -> Tensor:
    """Draw on the generator's own device, so that one generator serves latents on any device."""
    return law(size, generator=generator, device=generator.device if generator is not None else "cpu")
