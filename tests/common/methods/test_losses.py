"""Each shared loss against a literal transcription, and under permutations of classes and batch."""

import math
from functools import partial

import pytest
import torch

from common.methods import losses
from common.methods.method import Outputs
from tests.loss_checks import batch_permutation_gap, check_class_permutation, check_literal, check_run_axes, context


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
    z = torch.tensor([[500.0, -500.0, 80.0, -80.0]])
    value = losses.sigmoid_focal(Outputs(z, z), torch.tensor([1]), context((1, 1, 1, 1)), gamma=1.0)
    assert value.isfinite().all()
    assert float(value) == pytest.approx(500 + 500 + 80, rel=1e-5)


# ---------------------------------------------------------------- focal losses where p is 0 or 1


FOCALS = {"focal": losses.focal, "focal, detached": losses.focal_detached}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("gap", [-60.0, -1.0, 0.0, 1.0, 20.0, 40.0])
@pytest.mark.parametrize("name", FOCALS)
def test_focal_and_its_slope_are_right_where_p_rounds_to_0_or_1(name, gap, gamma, dtype):
    """Two classes, z_y above the other by `gap`: q = 1 - p = 1 / (1 + e^gap), -log p = log(1 + e^-gap), dp/dz = p q."""
    z = torch.tensor([[0.0, gap]], dtype=dtype, requires_grad=True)
    value = FOCALS[name](Outputs(z, z), torch.tensor([1]), context((1, 1)), gamma=gamma)
    value.sum().backward()
    q, p, log_p = 1 / (1 + math.exp(gap)), 1 / (1 + math.exp(-gap)), -math.log1p(math.exp(-gap))
    slope = -(q ** (gamma + 1)) + (0 if "detached" in name else gamma * p * q**gamma * log_p)
    rel, least = (1e-4, 1e-37) if dtype == torch.float32 else (1e-12, 0)
    assert value.tolist() == pytest.approx([-(q**gamma) * log_p], rel=rel, abs=least)
    assert z.grad[0].tolist() == pytest.approx([-slope, slope], rel=rel, abs=least)


@pytest.mark.parametrize("name", FOCALS)
def test_focal_of_a_certain_sample_has_no_loss_and_no_slope(name):
    """In float32 1 - p is 0 for logits [30, 0], where a power of 0.5 by itself has no slope."""
    z = torch.tensor([[30.0, 0.0], [1000.0, 0.0], [-1000.0, 0.0], [0.0, 0.0]], requires_grad=True)
    value = FOCALS[name](Outputs(z, z), torch.zeros(4, dtype=torch.int64), context((1, 1)), gamma=0.5)
    value.sum().backward()
    assert value.tolist() == pytest.approx([0, 0, 1000, math.log(2) / math.sqrt(2)], rel=1e-6, abs=1e-12)
    assert z.grad[:2].abs().max() < 1e-12
    assert z.grad[2].tolist() == pytest.approx([-1, 1])


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_sigmoid_focal_has_its_slope_at_0(gamma):
    """At z = 0, where log(1 + e^z) written with |z| has the slope 0 or 1: d/dp of (1 - p)^gamma (-log p) at 1/2, times 1/4."""
    z = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    losses.sigmoid_focal(Outputs(z, z), torch.tensor([1]), context((1, 1, 1)), gamma=gamma).sum().backward()
    slope = -(0.5**gamma) * (gamma * math.log(2) + 1) / 2
    assert z.grad[0].tolist() == pytest.approx([-slope, slope, -slope], rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
@pytest.mark.parametrize("far", [40.0, 500.0])
def test_sigmoid_focal_is_right_at_both_ends(gamma, far):
    z = torch.tensor([[far, -far]], requires_grad=True)
    right, wrong = (losses.sigmoid_focal(Outputs(z, z), torch.tensor([y]), context((1, 1)), gamma=gamma) for y in (0, 1))
    (right + wrong).sum().backward()
    assert right.tolist() == pytest.approx([2 * math.exp(-far) ** (1 + gamma)], rel=1e-4, abs=1e-37)
    assert wrong.tolist() == pytest.approx([2 * far], rel=1e-6)
    assert z.grad[0].tolist() == pytest.approx([1, -1], rel=1e-6)


def test_softplus_and_its_slope_at_the_ends():
    x = torch.tensor([-1000.0, -50.0, 0.0, 50.0, 1000.0], requires_grad=True)
    value = losses.softplus(x)
    value.sum().backward()
    assert value.tolist() == pytest.approx([0, math.exp(-50), math.log(2), 50, 1000], rel=1e-6, abs=0)
    assert x.grad.tolist() == pytest.approx([0, math.exp(-50), 0.5, 1, 1], rel=1e-6, abs=0)
