"""Two methods on the same images and seeds: a paired test that respects both sources of spread.

d_si is 1 where only the first method is right on image i in its run of seed s, -1 where only the second is, else 0. It is seen as
delta + seed + image + rest, seeds and images both drawn from many: a run of another seed and another test set of the same kind
would differ. The test is the analysis of variance of Dorfman, Berbaum and Metz for many readers (here seeds) and many cases
(here images), with the degrees of freedom of Hillis (Statistics in Medicine 26, 2007; Hillis, Berbaum and Metz, Academic
Radiology 15, 2008). With one seed there is no telling how seeds differ, so there is no test.

All follows from a few sums of integers, from which the page's script (`page/paired.js`) computes the same numbers.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from common.predictions import Library

LEVEL = 0.95
MOST = 1e6  # degrees of freedom; with more, Student's distribution is the normal one to five digits


class Hits(NamedTuple):
    """Which images of the test set a run answers right in its last epoch. labels: true classes [images], one array for all runs
    of a test set; right: bool [images], in canonical order."""

    labels: np.ndarray
    right: np.ndarray


NO_HITS: Mapping[str, Hits] = MappingProxyType({})  # of records without predictions


class Paired(NamedTuple):
    """Of a difference in accuracy, first minus second, in points.

    low, high: 95 % interval. p: one-sided, of the first not being better; p_either: two-sided, of no difference.
    seeds, images: how many were compared. wins, losses: images and seeds on which only the first, only the second is right.
    """

    difference: float
    low: float
    high: float
    p: float
    p_either: float
    seeds: int
    images: int
    wins: int
    losses: int


def hits_of(root: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Hits]:
    """Of the records, by key, that have predictions under `root`, the folder of all papers."""
    library, hits = Library(root), {}
    labels: dict[bytes, np.ndarray] = {}
    for key, record in records.items():
        predictions = library.of(record)
        if predictions is not None:
            true = labels.setdefault(predictions.labels.tobytes(), predictions.labels)
            hits[key] = Hits(true, predictions.answers.last == predictions.labels)
    return hits


def compare(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], hits: Mapping[str, Hits],
            classes: Collection[int] | None = None) -> Paired | None:
    """The test on two methods' records of a column, on all images or those of some classes; None where `both_hits` has none."""
    both = both_hits(first, second, hits)
    if not both:
        return None
    labels = both[0][0].labels
    kept = slice(None) if classes is None else np.isin(labels, sorted(classes))
    return paired_test(*(np.stack([run.right[kept] for run in side]) for side in zip(*both, strict=True)))


def both_hits(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], hits: Mapping[str, Hits]
              ) -> list[tuple[Hits, Hits]]:
    """Of the seeds that both methods have, in the order of the first; empty below two seeds, and where a run among them has no
    predictions or another test set."""
    if not hits:
        return []
    theirs = {record["spec"]["seed"]: record["key"] for record in second}
    keys = [(record["key"], theirs[seed]) for record in first if (seed := record["spec"]["seed"]) in theirs]
    if len(keys) < 2 or not all(key in hits for pair in keys for key in pair):
        return []
    both = [(hits[one], hits[other]) for one, other in keys]
    labels = both[0][0].labels
    return both if all(run.labels is labels for pair in both for run in pair) else []


def paired_test(first: np.ndarray, second: np.ndarray) -> Paired | None:
    """first, second: whether each method is right, bool [seeds, images], the same seeds in the same order. None below two
    seeds or two images."""
    d = first.astype(np.int8) - second.astype(np.int8)
    seeds, images = d.shape
    if seeds < 2 or images < 2:
        return None
    wins, losses = int(np.count_nonzero(d > 0)), int(np.count_nonzero(d < 0))
    mean = (wins - losses) / (seeds * images)
    low, high, p, p_either = _student(mean, *standard_error(d))
    return Paired(100 * mean, 100 * low, 100 * high, p, p_either, seeds, images, wins, losses)


def standard_error(d: np.ndarray) -> tuple[float, float]:
    """Of the mean of d [seeds, images], integers, over both: sqrt((MS_seeds + max(MS_images - MS_rest, 0)) / (seeds images)), and
    its degrees of freedom. The numerators of the mean squares are whole numbers, so that what is 0 is exactly 0."""
    seeds, images = d.shape
    by_seed, by_image = d.sum(1, dtype=np.int64), d.sum(0, dtype=np.int16).astype(np.float64)  # integers have no fast product
    squares, of_seed, of_image = int(np.count_nonzero(d != 0)), int(by_seed @ by_seed), int(by_image @ by_image)
    whole, number = int(by_seed.sum()) ** 2, seeds * images
    of_seeds = (seeds * of_seed - whole) / (number * (seeds - 1))
    of_images = (images * of_image - whole) / (number * (images - 1))
    rest = (number * squares - seeds * of_seed - images * of_image + whole) / (number * (seeds - 1) * (images - 1))
    total = of_seeds + max(of_images - rest, 0.0)
    freedom = min(MOST, (seeds - 1) * (total / of_seeds) ** 2) if of_seeds else MOST
    return math.sqrt(total / number), freedom


def _student(mean: float, error: float, freedom: float) -> tuple[float, float, float, float]:
    """Interval, one-sided and two-sided p; without any spread there is nothing to test against, and both are 1."""
    from scipy.special import stdtr, stdtrit  # scipy.stats takes far longer for the same numbers

    if error == 0:
        return mean, mean, 1.0, 1.0
    reach, ratio = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error, mean / error
    return mean - reach, mean + reach, float(stdtr(freedom, -ratio)), 2 * float(stdtr(freedom, -abs(ratio)))
