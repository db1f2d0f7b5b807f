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


def prediction_range(values: Sequence[float], level: float = 0.999) -> Interval:
    """Where one more value from the law of `values` lies with probability `level`: does a live run fit a record?"""
    mean, deviation, quantile = _student(values, level)
    half = quantile * deviation * math.sqrt(1 + 1 / len(values))
    return Interval(mean, mean - half, mean + half)


def _student(values: Sequence[float], level: float) -> tuple[float, float, float]:
    """Mean, standard deviation (n - 1) and two-sided Student-t quantile."""
    if len(values) < 2 or not all(map(math.isfinite, values)) or not 0 < level < 1:
        raise FuseMixLiteError(f"give two or more finite values and a level in (0, 1), not {list(values)}, {level}")
    from scipy.stats import t  # slow to import

    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, deviation, float(t.ppf((1 + level) / 2, n - 1))
