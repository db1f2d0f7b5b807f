"""Intervals against textbook values and scipy, and their coverage."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from fusemix_lite import FuseMixLiteError
from fusemix_lite.stats import detectable, interval, paired_interval, prediction_range

VALUES = [71.2, 69.8, 70.5, 72.0, 70.1]


def test_interval_is_student_t():
    low, high = reference.t.interval(0.95, 4, np.mean(VALUES), reference.sem(VALUES))
    assert interval(VALUES) == pytest.approx((np.mean(VALUES), low, high))
    assert interval([0.0, 2.0]).high == pytest.approx(1 + 12.7062, abs=1e-3)  # t(0.975, 1) = 12.7062, sem = 1


def test_paired_interval_is_of_the_differences():
    other = [70.0, 69.9, 69.0, 71.5, 69.3]
    expected = reference.ttest_rel(VALUES, other).confidence_interval(0.9)
    mean, low, high = paired_interval(VALUES, other, level=0.9)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean == pytest.approx(np.mean(VALUES) - np.mean(other))
    assert paired_interval(VALUES, VALUES) == (0, 0, 0)  # the same arm twice


def test_coverage():
    draws = np.random.default_rng(0).normal(5, 2, (4000, 11))
    inside = [a.low <= 5 <= a.high for a in (interval(row) for row in draws[:, :10])]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    inside = [a.low <= row[10] <= a.high for row, a in ((row, prediction_range(row[:10], 0.9)) for row in draws)]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.015)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_bad_values(values):
    for function in (interval, prediction_range):
        with pytest.raises(FuseMixLiteError, match="two or more"):
            function(values)


def test_other_errors():
    with pytest.raises(FuseMixLiteError, match="same seeds"):
        paired_interval([1, 2], [1, 2, 3])
    with pytest.raises(FuseMixLiteError, match="level"):
        interval(VALUES, level=95)


def test_what_is_detectable_is_detected_four_times_in_five():
    """Against simulation: a true difference of that size is told from zero with the power asked for, one of none at 5 %."""
    rng = np.random.default_rng(0)
    for seeds, power in ((5, 0.8), (10, 0.5)):
        noise = rng.normal(0, 3, (4000, seeds))
        for shift, share in ((detectable(3, seeds, power=power), power), (0, 0.025)):
            found = reference.ttest_1samp(noise + shift, 0, axis=1)
            assert np.mean((found.pvalue < 0.05) & (found.statistic > 0)) == pytest.approx(share, abs=0.02)


def test_what_is_detectable_in_textbook_cases():
    """Pairs that a paired t-test needs for effects of 0.2, 0.5 and 0.8 standard deviations at 5 % and a power of 0.8."""
    for effect, pairs in ((0.2, 199), (0.5, 34), (0.8, 15)):
        assert detectable(1, pairs - 1) > effect >= detectable(1, pairs)
    assert detectable(6.0, 34) == pytest.approx(6 * detectable(1.0, 34))
    assert detectable(0.0, 5) == 0  # what never varies shows at once
    assert detectable(1, 20) < detectable(1, 10) < detectable(1, 10, power=0.9) < detectable(1, 10, 0.99, 0.9)


@pytest.mark.parametrize(
    "wrong", [(1, 1), (-1, 5), (math.nan, 5), (math.inf, 5), (1, 5, 95), (1, 5, 0.95, 1), (1, 5, 0.95, 0.01)]
)
def test_detectable_refuses(wrong):
    with pytest.raises(FuseMixLiteError, match="two seeds or more"):
        detectable(*wrong)
