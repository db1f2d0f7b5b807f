"""Intervals over seeds: Student-t, from few and paired values. What the seeds are is said where they are drawn."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from .errors import FuseMixLiteError


class Interval(NamedTuple):
    """A mean with the ends of its interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student-t interval of the mean of `values`, one a seed."""
    mean, deviation, quantile = _student(values, level)
    half = quantile * deviation / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_interval(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """Student-t interval of the mean of ``a[i] - b[i]``: two arms, run on the same seeds in the same order."""
    if len(a) != len(b):
        raise FuseMixLiteError(f"paired_interval: {len(a)} values against {len(b)}; give the same seeds on both sides")
    return interval([x - y for x, y in zip(a, b, strict=True)], level)


def detectable(deviation: float, seeds: int, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that shows: that an interval over so many seeds tells from zero with probability `power`.

    Args:
        deviation: standard deviation of the differences, one a seed, taken to be normal; the answer has its unit.
        seeds: how many differences there are.
        level: of the interval.
        power: 0.8 is the usual choice: one true difference of that size in five is missed.

    Raises:
        FuseMixLiteError: fewer than two seeds, a negative deviation, or probabilities out of range.

    Source: power of the paired t-test by the noncentral t distribution (Cohen, 1988).
    """
    if seeds < 2 or not 0 <= deviation < math.inf or not 0 < level < 1 or not 1 - level < power < 1:
        raise FuseMixLiteError(
            f"detectable: {seeds} seeds with deviation {deviation}, level {level}, power {power}: give two seeds or more, "
            "a finite deviation of 0 or more, and a power between 1 - level and 1"
        )
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    needed = t.ppf((1 + level) / 2, seeds - 1)
    missed = lambda shift: nct.cdf(needed, seeds - 1, shift) - (1 - power)  # noqa: E731 - in standard errors
    return deviation / math.sqrt(seeds) * brentq(missed, 0, 2 * needed + 10)


def prediction_range(values: Sequence[float], level: float = 0.999) -> Interval:
    """Where one more value from the law of `values` lies with probability `level`: does a live run fit a record?"""
    mean, deviation, quantile = _student(values, level)
    half = quantile * deviation * math.sqrt(1 + 1 / len(values))
    return Interval(mean, mean - half, mean + half)


def exchange_rate(
    sizes: Sequence[float], curve: Sequence[Sequence[float]], paid: float, reached: Sequence[float], level: float = 0.95
) -> Interval:
    """How many of one kind buy one of another: `paid` / the size at which `curve` comes to what `paid` of the kind reached.

    The curve is that of the means over seeds, straight between sizes on a logarithmic axis; where it meets a value twice,
    the smaller size counts. The interval is a Student-t interval of the logarithm of the rate from its jackknife
    pseudo-values, leaving out one seed at a time: for a mean that is the interval of `interval`.

    Args:
        sizes: S sizes, ascending, of the kind that is bought.
        curve: (S, seeds) values at these sizes, on the same seeds.
        paid: how many of the other kind.
        reached: (seeds,) values with `paid` of them, on the same seeds in the same order.

    Returns:
        The rate with its ends; 2.0 (1.7 to 2.4) says that two buy one.

    Raises:
        FuseMixLiteError: numbers that do not fit, or a mean value that the curve does not come to: then the sizes tell only
            that the rate lies beyond their ends.

    Source: Tukey (1958); Miller, "The jackknife - a review" (Biometrika 1974).
    """
    n = len(reached)
    fits = len(sizes) == len(curve) > 1 and all(len(values) == n for values in curve) and n > 1
    if not fits or list(sizes) != sorted(set(sizes)) or sizes[0] <= 0 or paid <= 0:
        raise FuseMixLiteError("exchange_rate: give two or more ascending sizes, and a value for each size and seed")

    def mean(values, but):
        kept = [value for seed, value in enumerate(values) if seed != but]
        return math.fsum(kept) / len(kept)

    def log_rate(but=None):
        means = [mean(values, but) for values in curve]
        return math.log(paid) - _where(means, mean(reached, but), [math.log(size) for size in sizes])

    means, value = [mean(values, None) for values in curve], mean(reached, None)
    if not min(means) <= value <= max(means):
        raise FuseMixLiteError(
            f"exchange_rate: {paid:,} reach {value:.1f}, the curve goes from {min(means):.1f} to {max(means):.1f}: "
            "more sizes are needed"
        )
    whole = log_rate()
    found = interval([n * whole - (n - 1) * log_rate(but) for but in range(n)], level)
    half = found.high - found.mean
    return Interval(*(math.exp(end) for end in (whole, whole - half, whole + half)))


def _where(curve: list[float], value: float, x: list[float]) -> float:
    """The first x at which a curve of straight pieces comes to a value; beyond its ends the outer pieces go on."""
    pieces = list(zip(x, curve, x[1:], curve[1:], strict=False))
    inside = [piece for piece in pieces if min(piece[1::2]) <= value <= max(piece[1::2])]
    a, fa, b, fb = inside[0] if inside else pieces[0] if value < min(curve) else pieces[-1]
    return a if fa == fb else a + (value - fa) / (fb - fa) * (b - a)


def _student(values: Sequence[float], level: float) -> tuple[float, float, float]:
    """Mean, standard deviation (n - 1) and two-sided Student-t quantile."""
    if len(values) < 2 or not all(map(math.isfinite, values)) or not 0 < level < 1:
        raise FuseMixLiteError(f"give two or more finite values and a level in (0, 1), not {list(values)}, {level}")
    from scipy.stats import t  # slow to import

    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, deviation, float(t.ppf((1 + level) / 2, n - 1))
