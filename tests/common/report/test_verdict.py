"""The verdict of a cell: by hand, whatever the spread, and the bounds of columns."""

import pandas
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from common.report.intervals import confidence_interval
from common.report.verdict import BOUND, NEAR, bounds, cell_verdict


def runs(mean: float, sd: float | None, n: int) -> tuple[float, ...]:
    """n values of exactly this mean and standard deviation."""
    if n < 2:
        return (mean,) * n
    steps = [i - (n - 1) / 2 for i in range(n)]
    unit = (sum(step**2 for step in steps) / (n - 1)) ** 0.5
    return tuple(mean + sd * step / unit for step in steps)


def verdict(delta: float, sd: float | None, n: int, metric: str = "top1_error", bound: float = BOUND) -> str | None:
    return cell_verdict(runs(30 + delta, sd, n), 30.0, metric, bound)


@pytest.mark.parametrize(("delta", "sd", "n", "expected"), [
    # three runs: |delta| + 2.920 sd / sqrt(3) <= 1, and 4.303 sd / sqrt(3) <= 1.5 (t of any table)
    (0.0, 0.59, 3, "reproduced"), (0.0, 0.6, 3, "near"), (0.0, 0.61, 3, "undecided"), (0.83, 0.1, 3, "reproduced"),
    (0.84, 0.1, 3, "near"), (-0.84, 0.1, 3, "near"), (1.5, 0.1, 3, "near"), (1.51, 0.1, 3, "worse"), (-1.51, 0.1, 3, "better"),
    (9.0, 0.7, 3, "undecided"), (-9.0, 0.6, 3, "better"),
    (-0.65, 0.77, 3, "undecided"), (-0.65, 0.1, 3, "reproduced"),  # more spread does not help
    # two runs: 6.314 sd / sqrt(2) <= 1, and 12.706 sd / sqrt(2) <= 1.5
    (0.0, 0.16, 2, "reproduced"), (0.5, 0.12, 2, "near"), (0.0, 0.17, 2, "reproduced"), (0.5, 0.17, 2, "undecided"),
    # no spread to test with: one run, or runs that are all equal
    (0.0, None, 1, "undecided"), (9.0, None, 1, "undecided"), (0.0, 0.0, 3, "undecided"), (0.0, None, 0, None),
    (0.0, 0.59, 5, "reproduced"), (0.99, 1e-6, 5, "reproduced"), (1.01, 1e-6, 5, "near"),
])
def test_by_hand(delta: float, sd: float | None, n: int, expected: str | None) -> None:
    assert verdict(delta, sd, n) == expected


def test_a_small_range_makes_the_bound_smaller() -> None:
    assert [verdict(0.2, 0.05, 3, bound=bound) for bound in (1.0, 0.3, 0.2)] == ["reproduced", "reproduced", "near"]


@given(st.floats(-5, 5), st.floats(1e-3, 2), st.integers(2, 8))
def test_a_lower_error_is_a_higher_accuracy(delta: float, sd: float, n: int) -> None:
    swap = {"better": "worse", "worse": "better"}
    error = verdict(delta, sd, n)
    assert verdict(delta, sd, n, "top1_accuracy") == verdict(delta, sd, n, "top5_accuracy") == swap.get(error, error)
    assert verdict(-delta, sd, n) == swap.get(error, error)
    assert error != ("worse" if delta < 0 else "better")


@given(st.floats(-2, 2), st.floats(1e-3, 2), st.floats(1, 5), st.integers(2, 8), st.floats(0.05, 1))
def test_more_spread_never_makes_reproduced_easier(delta: float, sd: float, times: float, n: int, bound: float) -> None:
    if verdict(delta, sd * times, n, bound=bound) == "reproduced":
        assert verdict(delta, sd, n, bound=bound) == "reproduced"


@given(st.floats(-2, 2), st.floats(0.01, 1), st.integers(2, 6))
def test_reproduced_is_that_of_two_one_sided_tests(delta: float, sd: float, n: int) -> None:
    values = runs(30 + delta, sd, n)
    tests = [ttest_1samp(values, 30 + side * BOUND, alternative=kind) for side, kind in ((-1, "greater"), (1, "less"))]
    p = max(test.pvalue for test in tests)
    assume(abs(p - 0.05) > 1e-6)
    assert (verdict(delta, sd, n) == "reproduced") == (p < 0.05)


@given(st.floats(-9, 9), st.floats(1e-3, 2), st.integers(2, 6))
def test_what_is_better_or_worse_is_not_the_printed_number_by_our_interval(delta: float, sd: float, n: int) -> None:
    if verdict(delta, sd, n) in ("better", "worse"):
        low, high = confidence_interval(runs(30 + delta, sd, n))
        assert not low <= 30 <= high
        assert abs(delta) > NEAR


def test_bounds_by_hand() -> None:
    place = {"table": "1", "column": "a", "metric": "top1_error", "group": ""}
    other = [{"table": "2"}, {"column": "b"}, {"metric": "top1_accuracy"}, {"group": "tail"}]
    rows = [place | {"number": 20.0}, place | {"number": 22.0}, place | {"number": 21.5}]  # a quarter of 2
    rows += [place | more | {"number": 90.0} for more in other]  # each of them alone: no range
    rows += [place | {"column": "c", "number": number} for number in (10.0, 50.0)]  # a wide range
    rows += [place | {"column": "d", "number": 7.0}] * 2  # equal
    assert bounds(pandas.DataFrame(rows)).tolist() == [0.5] * 3 + [1.0] * 8
