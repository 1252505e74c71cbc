"""Intervals behind the report: of a mean and of the mean of further runs (Student t), and of whatever is computed from the
means of several methods (a bootstrap over seeds)."""

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95
DRAWS = 2000
SEED = 0  # of the bootstrap, so that a report of the same records is the same report


class Interval(NamedTuple):
    low: float
    high: float


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean; None where there is nothing, or where a run does not have it, such as an accuracy over classes that a column
    lacks."""
    return statistics.fmean(values) if values and None not in values else None


@lru_cache(maxsize=1 << 16)  # a report asks for that of the same runs in every table, claim and board
def spread(values: tuple[float, ...]) -> tuple[float | None, float | None]:
    """Mean and standard deviation over seeds (n - 1 in the denominator); None where there are too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def confidence_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's interval for the mean of the population that these runs come from; None below two runs."""
    return _around_mean(values, 0.0, level)


def difference_interval(ones: Sequence[float], others: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Welch's interval for the mean of the first population less that of the second, from runs of either; None where a side has
    fewer than two runs, or neither has any spread."""
    from scipy.special import stdtrit

    (mean, sd), (other_mean, other_sd) = spread(tuple(ones)), spread(tuple(others))
    if sd is None or other_sd is None or max(sd, other_sd) < 1e-9:
        return None
    parts = sd**2 / len(ones), other_sd**2 / len(others)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(ones) - 1) + parts[1] ** 2 / (len(others) - 1))
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(sum(parts))
    return Interval(mean - other_mean - half, mean - other_mean + half)


def prediction_interval(values: Sequence[float], further: int = 1, level: float = LEVEL) -> Interval | None:
    """Where the mean of `further` more runs like these will fall; None below two runs.

    mean ± t(n - 1) sd sqrt(1/n + 1/further), the level being exact for normal values (Hahn and Meeker, Statistical
    Intervals, 1991, section 4.8). A printed number outside of it is not what so many runs of ours would have printed.
    """
    if further < 1:
        raise ValueError(f"further = {further}: a mean needs at least one run")
    return _around_mean(values, 1 / further, level)


def within_percent(interval: Interval | None) -> Interval | None:
    """Without what lies below 0 or above 100: Student's t does not know that these are percent."""
    return interval and Interval(max(0.0, interval.low), min(100.0, interval.high))


def _around_mean(values: Sequence[float], more: float, level: float) -> Interval | None:
    from scipy.special import stdtrit  # scipy.stats takes half a second to import

    mean, sd = spread(tuple(values))
    if sd is None:
        return None
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * sd * math.sqrt(1 / len(values) + more)
    return Interval(mean - half, mean + half)


def resampled_means(runs: Sequence[Sequence[float]], draws: int = DRAWS) -> "np.ndarray":
    """Means of bootstrap samples over seeds [draws, methods], each method on its own, from a fixed generator.

    Runs of one seed share their batches, but hardly anything of that is left after training, so methods are drawn
    independently. A bootstrap mean of n values varies by (n - 1) / n of what it should, two thirds with three seeds, so its
    distance from the mean is stretched by sqrt(n / (n - 1)). A single run has no spread: its column is constant.
    """
    import numpy as np

    generator = np.random.default_rng(SEED)
    columns = []
    for values in map(np.asarray, runs):
        n = len(values)
        drawn = values[generator.integers(n, size=(draws, n))].mean(axis=1)
        columns.append(values.mean() + (drawn - values.mean()) * math.sqrt(n / max(n - 1, 1)))
    return np.stack(columns, axis=1)


def central(samples: "np.ndarray", level: float = LEVEL) -> Interval:
    """From the smallest to the largest of the samples [n] that are left with (1 - level) / 2 of them cut off at either end."""
    import numpy as np

    ordered = np.sort(samples)
    out = int((1 - level) / 2 * len(ordered) + 1e-9)
    return Interval(float(ordered[out]), float(ordered[-1 - out]))
