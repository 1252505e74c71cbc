"""Intervals: by hand, against scipy, and their coverage on simulated runs."""

import numpy as np
import pytest
from scipy import stats

from common.report.intervals import Interval, central, confidence_interval, prediction_interval, resampled_means, within_percent


def test_by_hand() -> None:
    """1, 2, 3: mean 2, sd 1, t(2) at 97.5 % is 4.302653 (any table)."""
    values, t = (1.0, 2.0, 3.0), 4.302653
    for found, half in [(confidence_interval(values), t / 3**0.5), (prediction_interval(values), t * (4 / 3) ** 0.5),
                        (prediction_interval(values, 3), t * (2 / 3) ** 0.5)]:
        assert found == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(3).normal(70, 0.4, 7)
    for level in (0.5, 0.95):
        assert confidence_interval(values, level) == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(level))


def test_what_is_not_there() -> None:
    assert confidence_interval(()) is None
    assert prediction_interval((70.0,)) is None
    assert prediction_interval((70.0, 70.0)) == Interval(70.0, 70.0)
    with pytest.raises(ValueError, match="further = 0"):
        prediction_interval((1.0, 2.0), 0)


def test_percent_end_at_0_and_100() -> None:
    assert within_percent(Interval(-3.0, 40.0)) == Interval(0.0, 40.0)
    assert within_percent(Interval(99.0, 100.4)) == Interval(99.0, 100.0)
    assert within_percent(None) is None


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("further", [1, 4])
def test_covers_as_stated(n: int, further: int) -> None:
    """Of 4000 simulated cells 95 % of the intervals hold the true mean, and the mean of further runs, within 3 sd (1 %)."""
    draws = np.random.default_rng(n * 10 + further).normal(71, 0.35, (4000, n + further))
    of_mean, of_more = 0, 0
    for row in draws:
        low, high = confidence_interval(row[:n])
        of_mean += low <= 71 <= high
        low, high = prediction_interval(row[:n], further)
        of_more += low <= row[n:].mean() <= high
    assert of_mean / 4000 == pytest.approx(0.95, abs=0.0104)
    assert of_more / 4000 == pytest.approx(0.95, abs=0.0104)


def test_resampled_means_vary_as_a_mean_does() -> None:
    runs = [(70.0, 71.0, 72.0), (60.0, 60.4, 60.1, 60.9, 61.3), (50.0,)]
    means = resampled_means(runs, 20000)
    assert means.shape == (20000, 3)
    assert means.mean(axis=0) == pytest.approx([71.0, 60.54, 50.0], abs=0.02)
    expected = [np.std(values, ddof=1) / len(values) ** 0.5 for values in runs[:2]]
    assert means.std(axis=0) == pytest.approx([*expected, 0.0], rel=0.02)
    assert abs(np.corrcoef(means[:, 0], means[:, 1])[0, 1]) < 0.03  # methods are drawn apart
    assert np.array_equal(means, resampled_means(runs, 20000))


def test_central_leaves_as_much_out_on_either_side() -> None:
    assert central(np.arange(1, 1001)) == Interval(26, 975)  # 25 on either side
    assert central(np.array([1] * 30 + [2] * 940 + [3] * 30)) == Interval(1, 3)
    assert central(np.array([1] * 20 + [2] * 960 + [3] * 20)) == Interval(2, 2)
