"""Each shared loss against a literal transcription, and under permutations of classes and batch."""

import math
from functools import partial

import pytest
import torch

from common import losses
from tests.loss_checks import batch_permutation_gap, check_class_permutation, check_literal, check_run_axes


def softmax_ce(z, y):
    return -math.log(math.exp(z[y]) / sum(math.exp(v) for v in z))


def literal_focal(z, y, n):
    p = math.exp(z[y]) / sum(math.exp(v) for v in z)
    return (1 - p) ** 2 * -math.log(p)


def literal_sigmoid_focal(z, y, n):
    total = 0.0
    for j, v in enumerate(z):
        p = 1 / (1 + math.exp(-v))
        p_t = p if j == y else 1 - p
        total += (1 - p_t) ** 1.5 * -math.log(p_t)
    return total


def margin(n, j):
    return 0.5 * (n[j] / min(n)) ** -0.25


def literal_ldam(z, y, n):
    shifted = [30 * (v - (margin(n, j) if j == y else 0)) for j, v in enumerate(z)]
    return softmax_ce(shifted, y)


def literal_uniform_margin(z, y, n):
    return softmax_ce([30 * (v - (0.4 if j == y else 0)) for j, v in enumerate(z)], y)


def literal_hinge(z, y, n):
    rival = max(v for j, v in enumerate(z) if j != y)
    return 30 * max(rival - z[y] + 0.4, 0)


def literal_ldam_hinge(z, y, n):
    rival = max(v for j, v in enumerate(z) if j != y)
    return 30 * max(rival - z[y] + margin(n, y), 0)


CASES = {
    "cross-entropy": (losses.softmax_cross_entropy, lambda z, y, n: softmax_ce(z, y), False),
    "focal": (partial(losses.focal, gamma=2.0), literal_focal, False),
    "sigmoid focal": (partial(losses.sigmoid_focal, gamma=1.5), literal_sigmoid_focal, False),
    "LDAM": (partial(losses.ldam, s=30.0, largest=0.5), literal_ldam, True),
    "uniform margin": (partial(losses.uniform_margin, s=30.0, m=0.4), literal_uniform_margin, True),
    "hinge": (partial(losses.hinge, s=30.0, m=0.4), literal_hinge, True),
    "LDAM hinge": (partial(losses.ldam_hinge, s=30.0, largest=0.5), literal_ldam_hinge, True),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_is_its_equation(name):
    loss, literal, cosines = CASES[name]
    check_literal(loss, literal, cosines)


@pytest.mark.parametrize("name", CASES)
def test_loss_does_not_depend_on_names_or_places(name):
    loss, _, cosines = CASES[name]
    check_class_permutation(loss, cosines)
    assert batch_permutation_gap(loss, cosines) < 1e-12
    check_run_axes(loss, cosines)


def test_ldam_margins_of_cifar10_lt_100():
    counts = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], dtype=torch.float64)
    printed = [0.158, 0.180, 0.204, 0.232, 0.264, 0.300, 0.341, 0.387, 0.441, 0.5]
    assert losses.ldam_margins(counts, 0.5).tolist() == pytest.approx(printed, abs=6e-4)


def test_neutral_parameters_give_cross_entropy():
    from tests.loss_checks import make

    outputs, labels, ctx = make(cosines=False)
    plain = losses.softmax_cross_entropy(outputs, labels, ctx)
    for neutral in (partial(losses.focal, gamma=0.0), partial(losses.ldam, s=1.0, largest=0.0),
                    partial(losses.uniform_margin, s=1.0, m=0.0)):
        torch.testing.assert_close(neutral(outputs, labels, ctx), plain)


def test_sigmoid_focal_stays_finite_for_large_logits():
    from common.method import Outputs
    from tests.loss_checks import context

    z = torch.tensor([[500.0, -500.0, 80.0, -80.0]])
    value = losses.sigmoid_focal(Outputs(z, z), torch.tensor([1]), context((1, 1, 1, 1)), gamma=1.0)
    assert value.isfinite().all()
    assert float(value) == pytest.approx(500 + 500 + 80, rel=1e-5)
