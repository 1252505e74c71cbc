"""Class weights and samplers as functions of the class counts and the epoch. No torch.

counts: training images per class, [classes], in any order of size. A sampler returns the probability of each class
(the image is then uniform within its class, drawn with replacement), or None for every image once, shuffled.
"""

from collections.abc import Callable

import numpy as np

Vector = np.ndarray


def uniform_weights(counts: Vector, epoch: int) -> Vector:
    """Weight 1 for every class: plain empirical risk minimisation."""
    return np.ones(len(counts))


def inverse_weights(counts: Vector, epoch: int) -> Vector:
    """w_c = 1 / n_c, scaled to sum to the number of classes (which a weighted mean cancels)."""
    return _sum_to_classes(1.0 / np.asarray(counts, float))


def inverse_counts(counts: Vector, epoch: int) -> Vector:
    """w_c = 1 / n_c as it stands, for a loss that divides by the batch size alone."""
    return 1.0 / np.asarray(counts, float)


def effective_number_weights(counts: Vector, epoch: int, beta: float = 0.9999) -> Vector:
    """w_c = (1 - beta) / (1 - beta^n_c), scaled to sum to the number of classes (Cui et al., 2019)."""
    return _sum_to_classes((1 - beta) / (1 - beta ** np.asarray(counts, float)))


def deferred(counts: Vector, epoch: int, *, before: Callable, then: Callable, start: int) -> Vector | None:
    """`before` until epoch `start`, `then` from it on: deferred re-weighting (DRW) or re-sampling (DRS)."""
    return (then if epoch >= start else before)(counts, epoch)


def shuffled(counts: Vector, epoch: int) -> None:
    """Every image once an epoch, in a random order (instance-balanced sampling)."""
    return None


def class_balanced(counts: Vector, epoch: int) -> Vector:
    """Every class equally often."""
    return np.full(len(counts), 1.0 / len(counts))


def effective_number_sampler(counts: Vector, epoch: int, beta: float = 0.9999) -> Vector:
    """Each image with probability proportional to its class's effective-number weight (CB re-sampling)."""
    return _normalised(np.asarray(counts, float) * effective_number_weights(counts, epoch, beta))


def square_root(counts: Vector, epoch: int) -> Vector:
    """Class probability proportional to the square root of its count (Kang et al., 2020)."""
    return _normalised(np.sqrt(np.asarray(counts, float)))


def progressive(counts: Vector, epoch: int, *, epochs: int) -> Vector:
    """From instance-balanced to class-balanced, linearly over `epochs` (Kang et al., 2020)."""
    t = min(epoch / epochs, 1.0)
    return (1 - t) * _normalised(np.asarray(counts, float)) + t * class_balanced(counts, epoch)


def reversed_frequency(counts: Vector, epoch: int) -> Vector:
    """Class probability proportional to n_max / n_c: the reversed sampler of BBN (Zhou et al., 2020)."""
    return _normalised(1.0 / np.asarray(counts, float))


def again(counts: Vector, epoch: int) -> str:
    """An extra sampler: the images of the first stream once more, under a crop and flip of their own."""
    return "again"


def held_out(counts: Vector, epoch: int) -> str:
    """An extra sampler: any of the images that were held out from training."""
    return "held out"


def _sum_to_classes(weights: Vector) -> Vector:
    return weights * (len(weights) / weights.sum())


def _normalised(values: Vector) -> Vector:
    return values / values.sum()
