"""Equations (1) to (7) of the Maximum Margin paper, and the released margins, against literal loops."""

import math
from functools import partial

import pytest
import torch

from common.methods.losses import cross_entropy
from papers.mm import replicate as mm
from tests.loss_checks import COUNTS, batch_permutation_gap, check_class_permutation, check_literal, check_run_axes, make

S, DELTA, BETA, LARGEST = 10.0, 1.2, 1.3, 0.5


def literal_margin(z, y, delta_minus):
    """Eqs. (1) to (3) and (5), word by word."""
    rival = max(v for j, v in enumerate(z) if j != y)
    delta_plus = delta_minus * BETA
    if z[y] >= rival:
        return math.exp(-max(z[y] - rival, 0) - delta_plus)
    return math.exp(-max(rival - z[y], 0) - delta_minus)


def literal_loss(z, y, delta_minus):
    """Eq. (4) on the scaled cosines."""
    top = math.exp(S * (z[y] - literal_margin(z, y, delta_minus)))
    return -math.log(top / (top + sum(math.exp(S * v) for j, v in enumerate(z) if j != y)))


def gamma(n, y):
    """The margin C / n_y^(1/4) with C such that the smallest class has LARGEST."""
    constant = LARGEST * min(n) ** 0.25
    return constant / n[y] ** 0.25


WRITTEN = {
    "MM": (partial(mm.mm, s=S, delta=DELTA, beta=BETA), lambda z, y, n: literal_loss(z, y, DELTA)),
    "MM-LDAM": (partial(mm.mm_ldam, s=S, delta=DELTA, beta=BETA, largest=LARGEST),
                lambda z, y, n: literal_loss(z, y, DELTA - gamma(n, y))),
}
RELEASED = {
    "MM": partial(mm.mm_as_released, s=S, delta=DELTA, beta=BETA),
    "MM-LDAM": partial(mm.mm_ldam_as_released, s=S, delta=DELTA, beta=BETA, largest=LARGEST),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_loss_is_its_equations(name):
    check_literal(*WRITTEN[name])


@pytest.mark.parametrize("name", WRITTEN)
def test_written_loss_is_a_loss_of_samples_and_does_not_know_the_order_of_classes(name):
    loss, _ = WRITTEN[name]
    check_class_permutation(loss)
    check_run_axes(loss)
    assert batch_permutation_gap(loss) < 1e-12


@pytest.mark.parametrize("name", RELEASED)
def test_released_loss_reads_the_first_samples_class(name):
    """The defect is reproduced: the value of a sample changes with who is first in the batch."""
    check_class_permutation(RELEASED[name])
    check_run_axes(RELEASED[name])
    assert batch_permutation_gap(RELEASED[name]) > 1e-3


@pytest.mark.parametrize(("name", "with_class_margin"), [("MM", False), ("MM-LDAM", True)])
def test_released_loss_is_the_released_formula(name, with_class_margin):
    outputs, labels, ctx = make()
    found = RELEASED[name](outputs, labels, ctx)
    x, y = outputs.logits.tolist(), labels.tolist()
    for i in range(len(y)):
        p = x[i][y[0]]
        q = max(0.0 if j == y[i] else v for j, v in enumerate(x[i]))
        delta = DELTA - (0.5 * (COUNTS[y[i]] / min(COUNTS)) ** -0.25 if with_class_margin else 0)
        margin = math.exp(-(p - q) - delta * BETA) if p > q else math.exp(-(q - p) - delta) if q > p else 0.0
        z = [S * (v - (margin if j == y[i] else 0)) for j, v in enumerate(x[i])]
        wanted = -math.log(math.exp(z[y[i]]) / sum(map(math.exp, z)))
        assert float(found[i]) == pytest.approx(wanted, rel=1e-10)


def test_margins_are_constants_for_the_gradient():
    outputs, labels, ctx = make()
    for loss, margin in ((mm.mm, mm.maximum_margin(outputs.logits, labels, DELTA * BETA, DELTA)),
                         (mm.mm_as_released, mm.margin_as_released(outputs.logits, labels, DELTA, BETA))):
        logits = outputs.logits.clone().requires_grad_()
        loss(outputs._replace(logits=logits), labels, ctx, s=S, delta=DELTA, beta=BETA).sum().backward()
        plain = outputs.logits.clone().requires_grad_()
        shifted = plain - torch.nn.functional.one_hot(labels, 4) * margin[:, None]
        cross_entropy(S * shifted, labels).sum().backward()
        torch.testing.assert_close(logits.grad, plain.grad)


def test_a_huge_delta_leaves_scaled_cross_entropy():
    outputs, labels, ctx = make()
    found = mm.mm(outputs, labels, ctx, s=S, delta=50.0, beta=1.0)
    torch.testing.assert_close(found, cross_entropy(S * outputs.logits, labels))


def test_hard_negatives_shift_more_than_hard_positives():
    """Section 3.2: with beta > 1 the negative margin is the larger one at equal gaps."""
    z, y = torch.tensor([[0.3, 0.1], [0.1, 0.3]], dtype=torch.float64), torch.tensor([0, 0])
    positive, negative = mm.maximum_margin(z, y, DELTA * BETA, DELTA).tolist()
    assert negative > positive
    assert negative == pytest.approx(math.exp(-0.2 - DELTA))
    assert positive == pytest.approx(math.exp(-0.2 - DELTA * BETA))
