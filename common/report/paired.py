"""Two methods on the same images and seeds: a paired test that respects both sources of spread.

d_si is 1 where only the first method is right on image i in its run of seed s, -1 where only the second is, else 0. It is seen as
delta + seed + image + rest, seeds and images both drawn from many: a run of another seed and another test set of the same kind
would differ. The test is the analysis of variance of Dorfman, Berbaum and Metz for many readers (here seeds) and many cases
(here images), with the degrees of freedom of Hillis (Statistics in Medicine 26, 2007; Hillis, Berbaum and Metz, Academic
Radiology 15, 2008). With one seed there is no telling how seeds differ, so there is no test.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Paired(NamedTuple):
    """Of a difference in accuracy, first minus second, in points.

    low, high: 95 % interval. p: one-sided, of the first not being better. seeds, images: how many were compared.
    wins, losses: images and seeds on which only the first, only the second is right.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: int
    images: int
    wins: int
    losses: int


def paired_test(first: np.ndarray, second: np.ndarray) -> Paired | None:
    """first, second: whether each method is right, bool [seeds, images], the same seeds in the same order. None below two
    seeds or two images."""
    d = first.astype(np.int8) - second.astype(np.int8)
    seeds, images = d.shape
    if seeds < 2 or images < 2:
        return None
    mean = float(d.mean())
    error, freedom = standard_error(d)
    low, high, p = _student(mean, error, freedom)
    return Paired(100 * mean, 100 * low, 100 * high, p, seeds, images, int((d > 0).sum()), int((d < 0).sum()))


def standard_error(d: np.ndarray) -> tuple[float, float]:
    """Of the mean of d [seeds, images] over both: sqrt((MS_seeds + max(MS_images - MS_rest, 0)) / (seeds images)), and its
    degrees of freedom."""
    seeds, images = d.shape
    by_seed, by_image, mean = d.mean(1), d.mean(0), d.mean()
    of_seeds = images * ((by_seed - mean) ** 2).sum() / (seeds - 1)
    of_images = seeds * ((by_image - mean) ** 2).sum() / (images - 1)
    whole = ((d - mean) ** 2).sum()
    rest = (whole - (seeds - 1) * of_seeds - (images - 1) * of_images) / ((seeds - 1) * (images - 1))
    total = of_seeds + max(of_images - rest, 0.0)
    freedom = math.inf if of_seeds <= 0 else total**2 / (of_seeds**2 / (seeds - 1))
    return math.sqrt(total / (seeds * images)), freedom


def _student(mean: float, error: float, freedom: float) -> tuple[float, float, float]:
    """Interval and one-sided p; without any spread there is nothing to test against, and p is 1."""
    from scipy.stats import norm, t

    if error == 0:
        return mean, mean, 1.0
    law = norm if math.isinf(freedom) else t(freedom)
    reach = float(law.ppf((1 + LEVEL) / 2)) * error
    return mean - reach, mean + reach, float(law.sf(mean / error))


def right_by_seed(labels: np.ndarray, predicted: Mapping[int, np.ndarray], seeds: list[int], classes: set[int] | None = None
                  ) -> np.ndarray:
    """Whether the runs are right, bool [seeds, images], on all images or those of some classes. predicted: by seed."""
    kept = np.ones(len(labels), bool) if classes is None else np.isin(labels, sorted(classes))
    return np.stack([predicted[seed][kept] == labels[kept] for seed in seeds])
