"""The statistics of a claim: comparisons of the best of some champions with the best of some rivals, and what they decide.

The test is Welch's, one-sided. It is not paired over seeds: runs of one seed share initialisation and batches, but hardly
anything of that is left after training, and pairing would halve the few degrees of freedom and need equal seeds on both
sides. A paired test over the seeds that both sides have, and over images where their runs have predictions, is run all the
same; no verdict rests on it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from common.report.groups import WHOLE, classes_of
from common.report.intervals import spread
from common.report.paired import NO_HITS, Hits, both_hits, compare

LEVEL = 0.05
ENOUGH = 3  # fewer runs than this on a side: an undecided claim says that n is too small


class Side(NamedTuple):
    """One contender: its errors in percent and their seeds, one per finished run, how many runs diverged, the records of the
    finished ones and of the stages that they start from, why it is not comparable with its source, "" where it is, and the
    group of classes that the errors are about."""

    label: str
    errors: tuple[float, ...]
    diverged: int = 0
    seeds: tuple[int, ...] = ()
    done: tuple[Mapping[str, Any], ...] = ()
    starts: tuple[Mapping[str, Any], ...] = ()
    apart: str = ""
    classes: str = "all"


class Comparison(NamedTuple):
    """Some champion beats all rivals, in one column and group of classes; the opposite is that some rival beats all champions."""

    column: str
    classes: str
    champions: tuple[Side, ...]
    rivals: tuple[Side, ...]

    @property
    def sides(self) -> tuple[Side, ...]:
        return self.champions + self.rivals


Test = Callable[[Side, Side], float]  # p of the first having the smaller mean error


def p_less(low: Side, high: Side) -> float:
    """p of Welch's one-sided test that `low` has the smaller mean error; 1 where there is no spread to test against."""
    from scipy.special import stdtr  # scipy.stats takes most of a second to import, and far longer for the same number

    (mean_low, sd_low), (mean_high, sd_high) = spread(low.errors), spread(high.errors)
    if sd_low is None or sd_high is None or max(sd_low, sd_high) < 1e-9:
        return 1.0
    n_low, n_high = len(low.errors), len(high.errors)
    of_low, of_high = sd_low**2 / n_low, sd_high**2 / n_high
    freedom = (of_low + of_high)**2 / (of_low**2 / (n_low - 1) + of_high**2 / (n_high - 1))
    return float(stdtr(freedom, (mean_low - mean_high) / math.sqrt(of_low + of_high)))


def p_less_paired(low: Side, high: Side, hits: Mapping[str, Hits] = NO_HITS) -> float:
    """p of the one-sided paired test over images and seeds where the runs of the seeds that both sides have are in `hits`; else
    of the t-test on their differences in these seeds, 1 where these have no spread."""
    from scipy.special import stdtr

    classes = None if low.classes in WHOLE or not low.done else classes_of(low.done[0], low.classes)
    if test := compare(low.done, high.done, hits, classes):
        return test.p
    theirs = dict(zip(high.seeds, high.errors, strict=True))
    differences = tuple(error - theirs[seed] for seed, error in zip(low.seeds, low.errors, strict=True) if seed in theirs)
    (mean, sd), n = spread(differences), len(differences)
    return 1.0 if sd is None or sd < 1e-9 else float(stdtr(n - 1, mean / sd * math.sqrt(n)))


def over_images(comparisons: Iterable[Comparison], hits: Mapping[str, Hits]) -> tuple[int, int]:
    """How many of the comparisons' pairs `p_less_paired` tests over images too, and of how many."""
    pairs = [bool(both_hits(a.done, b.done, hits)) for d in comparisons for a in d.champions for b in d.rivals]
    return sum(pairs), len(pairs)


def _p_some_beats_all(some: tuple[Side, ...], others: tuple[Side, ...], test: Test = p_less) -> float:
    """Bonferroni over the candidates, intersection-union over those they must beat."""
    return min(1.0, len(some) * min((max((test(a, b) for b in others), default=1.0) for a in some), default=1.0))


def p_claim(comparisons: Sequence[Comparison], test: Test = p_less) -> float:
    """p of "the champions win every comparison": the largest p of all comparisons."""
    return max((_p_some_beats_all(d.champions, d.rivals, test) for d in comparisons), default=1.0)


def p_opposite(comparisons: Sequence[Comparison]) -> float:
    """p of "the rivals win some comparison": the smallest p, times the number of comparisons."""
    return min(1.0, len(comparisons) * min((_p_some_beats_all(d.rivals, d.champions) for d in comparisons), default=1.0))


def holm(ps: Iterable[float]) -> list[float]:
    """Holm's step-down correction, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = list(ps)
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted


def decide(comparisons: Sequence[Comparison], p: float, against: float, done: int, of: int) -> str:
    """The verdict from Holm-corrected p values; nothing is decided before every column that the claim names has its runs."""
    if of == 0:
        return "not run (no stand-in for its columns)"
    if done < of:
        return f"not run ({done} of {of} columns)"
    if p <= LEVEL:
        return "holds"
    if against <= LEVEL:
        return "fails"
    fewest = min(len(side.errors) for one in comparisons for side in one.sides)
    return "undecided (n too small)" if fewest < ENOUGH else "undecided"
