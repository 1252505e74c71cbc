"""The verdict of a cell: whether our runs say what the paper prints, from the runs' numbers alone."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.report.intervals import confidence_interval

if TYPE_CHECKING:
    from pandas import DataFrame, Series

LEVEL = 0.05  # of each of the two one-sided tests
BOUND, NEAR = 1.0, 1.5  # points
SHARE = 4  # a column of a small range has that part of it as its bound
LESS_IS_BETTER = ("top1_error",)
APART = "not comparable"
VERDICTS = ("reproduced", "near", "undecided", "better", "worse", APART)
RULE = (
    "Verdict of a cell, on the difference between the mean of our runs and the printed number, which is taken as it stands, "
    "without a spread of its own. Reproduced: two one-sided t-tests, at 5 % each, say that the difference is smaller than the "
    f"bound on either side. The bound is {BOUND:g} point, or a quarter of the range of all numbers printed in that column of the "
    "table, where this is less. Else undecided, so that more runs are needed: the 95 % confidence interval of our mean is wider "
    f"than ±{NEAR} points, or cannot be had, from one run or from runs that are all equal. Else near: within {NEAR} points. Else "
    "better or worse than reported (a lower error is better). A larger spread never makes reproduced easier. Classes and groups "
    f"of classes, which scatter more, have the same rule. {APART.capitalize()}: the setting is known to differ from that of the "
    "number's source, so the difference is shown without a verdict."
)


def bounds(frame: "DataFrame") -> "Series":
    """How far ours may be from each printed number and still be `reproduced`, in points [rows].

    The range is over the numbers of one table, column, metric and group of classes; where it is nothing (a single number, or
    equal ones), it cannot scale anything.
    """
    numbers = frame.groupby(["table", "column", "metric", "group"])["number"]
    spans = numbers.transform("max") - numbers.transform("min")
    return (spans / SHARE).where(spans > 0, BOUND).clip(upper=BOUND)


def cell_verdict(values: Sequence[float], published: float, metric: str, bound: float) -> str | None:
    """`RULE` on our runs' numbers in the printed metric; None where there is no run."""
    if not values:
        return None
    tolerance = 1e-9  # what two decimals print as 1.50 is not to fail on the last bit
    # Both one-sided tests reject at LEVEL exactly where this interval lies inside the bounds (Schuirmann, 1987).
    inner, outer = confidence_interval(values, 1 - 2 * LEVEL), confidence_interval(values)
    if outer is None or outer.high - outer.low < tolerance:
        return "undecided"
    if max(published - inner.low, inner.high - published) <= bound + tolerance:
        return "reproduced"
    if (outer.high - outer.low) / 2 > NEAR + tolerance:
        return "undecided"
    delta = statistics.fmean(values) - published
    if abs(delta) <= NEAR + tolerance:
        return "near"
    return "better" if (delta < 0) == (metric in LESS_IS_BETTER) else "worse"
