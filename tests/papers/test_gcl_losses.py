"""Equations (5.3), (5.9) and (5.11) to (5.15), Table 5.4's cloud sizes and the released second loss, against literal loops."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from common.data.imbalance import class_counts
from common.methods.losses import cross_entropy
from common.methods.method import Outputs
from papers.gcl import replicate as gcl
from tests.loss_checks import COUNTS, make

S, CLOUD, SIGMA, M, GAMMA = 30.0, 0.7, 1 / 3, 0.1, 1.0
SIZES = {
    "logarithm": (gcl.cloud_logarithm, lambda n, j: math.log(max(n)) - math.log(n[j])),
    "power 1/3": (partial(gcl.cloud_power, exponent=1 / 3), lambda n, j: max(n) ** (1 / 3) - n[j] ** (1 / 3)),
    "power 1/4": (partial(gcl.cloud_power, exponent=0.25), lambda n, j: max(n) ** 0.25 - n[j] ** 0.25),
    "cosine": (gcl.cloud_cosine, lambda n, j: math.cos(n[j] / max(n) * math.pi / 2)),
}
CIFAR10_LT_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def with_noise(seed: int = 0, scale: float = 1.0):
    """Outputs, labels and a context whose noise reaches beyond three sigma, so that the clamp is at work."""
    outputs, labels, context = make(seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    noise = torch.randn(outputs.logits.shape, generator=generator, dtype=torch.float64) * scale
    noise[0, 0], noise[1, 3] = 4.5, -7.0
    return outputs, labels, context._replace(noise=noise)


def literal_logits(cosine, n, noise, size):
    """Eq. (5.11), word by word, with section 5.4.1's delta_j / delta_max and eps clamped to [-1, 1]."""
    largest = max(size(n, j) for j in range(len(n)))
    found = []
    for j, value in enumerate(cosine):
        epsilon = max(-1.0, min(1.0, SIGMA * noise[j]))
        found.append(value - CLOUD * size(n, j) / largest * abs(epsilon))
    return found


def literal_loss(z, y):
    return -math.log(math.exp(z[y]) / sum(math.exp(v) for v in z))


@pytest.mark.parametrize("name", SIZES)
def test_gcl_is_its_equations(name):
    size, literal = SIZES[name]
    outputs, labels, context = with_noise()
    found = gcl.gcl(outputs, labels, context, s=S, cloud=CLOUD, sigma=SIGMA, size=size)
    for i, y in enumerate(labels.tolist()):
        z = literal_logits(outputs.logits[i].tolist(), COUNTS, context.noise[i].tolist(), literal)
        assert float(found[i]) == pytest.approx(literal_loss([S * v for v in z], y), rel=1e-10)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_the_released_second_loss_is_its_formula(gamma):
    outputs, labels, context = with_noise()
    found = gcl.gcl_margin_focal(outputs, labels, context, s=20.0, cloud=CLOUD, sigma=SIGMA, m=M, gamma=gamma)
    for i, y in enumerate(labels.tolist()):
        z = literal_logits(outputs.logits[i].tolist(), COUNTS, context.noise[i].tolist(), SIZES["logarithm"][1])
        loss = literal_loss([20.0 * (v - (M if j == y else 0)) for j, v in enumerate(z)], y)
        assert float(found[i]) == pytest.approx((1 - math.exp(-loss)) ** gamma * loss, rel=1e-9)


LOSSES = {
    "equation": partial(gcl.gcl, s=S, cloud=CLOUD, sigma=SIGMA),
    "margin and focal": partial(gcl.gcl_margin_focal, s=20.0, cloud=CLOUD, sigma=SIGMA, m=M, gamma=GAMMA),
}


@pytest.mark.parametrize("name", LOSSES)
def test_renaming_classes_and_moving_samples_changes_nothing(name):
    loss = LOSSES[name]
    outputs, labels, context = with_noise()
    found, order = loss(outputs, labels, context), torch.tensor([2, 0, 3, 1])
    renamed = loss(Outputs(outputs.logits[:, order], outputs.features), torch.argsort(order)[labels],
                   context._replace(counts=context.counts[order], noise=context.noise[:, order]))
    torch.testing.assert_close(renamed, found, rtol=1e-12, atol=1e-12)
    places = torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))
    moved = loss(Outputs(outputs.logits[places], outputs.features[places]), labels[places],
                 context._replace(noise=context.noise[places]))
    torch.testing.assert_close(moved, found[places], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_each_run_of_a_pack_gets_what_it_gets_alone(name):
    loss, each = LOSSES[name], [with_noise(seed) for seed in range(3)]
    outputs = Outputs(*(torch.stack([e[0][k] for e in each]) for k in (0, 1)))
    labels, noise = torch.stack([e[1] for e in each]), torch.stack([e[2].noise for e in each])
    packed = loss(outputs, labels, each[0][2]._replace(noise=noise))
    assert packed.shape == labels.shape
    for i, alone in enumerate(each):
        torch.testing.assert_close(packed[i], loss(*alone), rtol=1e-12, atol=1e-12)
    logits = outputs.logits.float().requires_grad_()
    context = each[0][2]._replace(counts=each[0][2].counts.float(), noise=noise.float())
    loss(Outputs(logits, outputs.features.float()), labels, context).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


def test_without_noise_or_without_clouds_it_is_scaled_cross_entropy():
    outputs, labels, context = with_noise()
    plain = cross_entropy(S * outputs.logits, labels)
    silent = context._replace(noise=torch.zeros_like(context.noise))
    balanced = context._replace(counts=torch.full((4,), 77.0, dtype=torch.float64))
    for size, _ in SIZES.values():
        for changed in (silent, balanced, balanced._replace(counts=balanced.counts.float())):
            torch.testing.assert_close(gcl.gcl(outputs, labels, changed, s=S, cloud=1.0, sigma=SIGMA, size=size), plain)


def test_the_largest_class_has_no_cloud_and_the_sign_of_the_noise_does_not_matter():
    outputs, _, context = with_noise()
    clouded = gcl.gcl_clouded(outputs.logits, context, cloud=1.0, sigma=SIGMA, size=gcl.cloud_logarithm)
    torch.testing.assert_close(clouded[:, 1], outputs.logits[:, 1])  # 500 of (5, 500, 50, 120)
    assert (clouded[:, 0] < outputs.logits[:, 0]).all()
    assert float(outputs.logits[0, 0] - clouded[0, 0]) == 1.0  # 4.5 sigma, clamped, in the smallest class
    negative = context._replace(noise=-context.noise)
    again = gcl.gcl_clouded(outputs.logits, negative, cloud=1.0, sigma=SIGMA, size=gcl.cloud_logarithm)
    torch.testing.assert_close(again, clouded)


def test_no_gradient_flows_through_the_focal_factor():
    outputs, labels, context = with_noise()
    grads = []
    for gamma in (0.0, 1.0):
        logits = outputs.logits.clone().requires_grad_()
        value = gcl.gcl_margin_focal(outputs._replace(logits=logits), labels, context, s=20.0, cloud=CLOUD, sigma=SIGMA, m=M,
                                     gamma=gamma)
        value.sum().backward()
        grads.append((logits.grad, value.detach()))
    (plain, loss), (focal, _) = grads
    torch.testing.assert_close(focal, (1 - (-loss).exp())[:, None] * plain)


def test_blended_labels_are_half_the_own_and_half_another_label_on_the_same_image():
    """Each image has half the loss of its own label, and half that of the one before it, under that one's noise."""
    numbers = {"s": S, "cloud": CLOUD, "sigma": SIGMA, "m": M, "gamma": GAMMA}
    singles = []
    for seed in (0, 1):
        outputs, labels, context = with_noise(seed)
        found = gcl.gcl_blended_labels(outputs, labels, context, **numbers)
        before = [len(labels) - 1, *range(len(labels) - 1)]
        own = gcl.gcl_margin_focal(outputs, labels, context, **numbers)
        other = gcl.gcl_margin_focal(outputs, labels[before], context._replace(noise=context.noise[before]), **numbers)
        torch.testing.assert_close(found, 0.5 * own + 0.5 * other)
        assert not torch.allclose(found, own)
        singles.append((outputs, labels, context, found))
    logits, features, noise, labels = (torch.stack(each) for each in (
        [o.logits for o, *_ in singles], [o.features for o, *_ in singles], [c.noise for *_, c, _ in singles],
        [y for _, y, *_ in singles]))
    packed = gcl.gcl_blended_labels(Outputs(logits, features), labels, singles[0][2]._replace(noise=noise), **numbers)
    torch.testing.assert_close(packed, torch.stack([found for *_, found in singles]))


def test_equation_5_3_is_the_gradient_of_two_class_cross_entropy():
    for z_1, z_2 in ((0.0, 0.0), (3.0, -1.0), (-2.0, 1.5)):
        z = torch.tensor([[z_1, z_2]], dtype=torch.float64, requires_grad=True)
        cross_entropy(z, torch.tensor([0])).sum().backward()
        assert float(z.grad[0, 0]) == pytest.approx(gcl.gradient_on_target(z_1 - z_2))
    assert gcl.gradient_on_target(0.0) == -0.5


# ---------------------------------------------------------------- by hand, on CIFAR-10-LT with ratio 100


def test_cloud_sizes_by_hand():
    """log 5000 - log 2997 = 0.511826, over log 100 = 4.60517; and the other forms of Table 5.4 for n = 50 and n = 2997."""
    n = np.array(CIFAR10_LT_100, float)
    delta = gcl.cloud_size(n)
    assert delta[[0, 1, 9]] == pytest.approx([0.0, 0.111142, 1.0], abs=1e-6)
    assert delta[4] == pytest.approx(math.log(5000 / 645) / math.log(100))
    raw = gcl.cloud_power(n, exponent=0.25)
    assert raw[[0, 9]] == pytest.approx([0.0, 8.408964 - 2.659148], abs=1e-6)
    assert gcl.cloud_power(n, exponent=1 / 3)[9] == pytest.approx(17.099759 - 3.684031, abs=1e-6)
    assert gcl.cloud_cosine(n)[[0, 9]] == pytest.approx([0.0, math.cos(math.pi / 200)], abs=1e-12)


@pytest.mark.parametrize("name", SIZES)
def test_cloud_sizes_are_the_same_of_arrays_and_of_tensors(name):
    n = np.array([50.0, 5000.0, 232.0])
    size, literal = SIZES[name]
    found = gcl.cloud_size(torch.tensor(n), size)
    assert found.tolist() == pytest.approx(gcl.cloud_size(n, size).tolist(), abs=1e-12)
    largest = max(literal(n.tolist(), j) for j in range(3))
    assert found.tolist() == pytest.approx([literal(n.tolist(), j) / largest for j in range(3)], abs=1e-12)


def test_validity_and_sampling_rate_by_hand():
    """Eq. (5.15): beta is a for the largest class and a + b for the smallest; Eq. (5.13) for both."""
    n = np.array(CIFAR10_LT_100, float)
    beta = gcl.validity(n, a=0.999, b=0.0009)
    assert beta[[0, 1, 9]] == pytest.approx([0.999, 0.999 + 0.0009 * 0.111142, 0.9999], abs=1e-9)
    head = 0.001 / (1 - math.exp(5000 * math.log(0.999)))  # 0.0010068
    tail = 0.0001 / (1 - math.exp(50 * math.log(0.9999)))  # 0.0200495
    p = gcl.gcl_cben(np.array(CIFAR10_LT_100), 0, a=0.999, b=0.0009)
    assert p.sum() == pytest.approx(1)
    assert p[0] / p[9] == pytest.approx(5000 * head / (50 * tail))
    assert (head, tail) == pytest.approx((0.0010068, 0.0200495), rel=1e-4)


# Sampling mass of a class relative to uniform, of the largest and the smallest class.
MASS = [
    (10, 50, 0.999, 0.0009, 2.75, 0.55), (10, 100, 0.999, 0.0009, 2.86, 0.57), (10, 200, 0.999, 0.0009, 2.95, 0.59),
    (10, 50, 0.9999, 0.00001, 1.19, 0.94), (10, 100, 0.9999, 0.00001, 1.19, 0.94), (10, 200, 0.9999, 0.00001, 1.20, 0.95),
]


@pytest.mark.parametrize(("classes", "ratio", "a", "b", "head", "tail"), MASS)
def test_how_far_cben_is_from_balanced_on_cifar10(classes, ratio, a, b, head, tail):
    p = gcl.gcl_cben(class_counts("lt", ratio, 50_000 // classes, classes), 0, a=a, b=b) * classes
    assert (p[0], p[-1]) == pytest.approx((head, tail), abs=0.006)


@pytest.mark.parametrize(("a", "b", "ratio"), [(0.999, 0.0009, 1.27), (0.9999, 0.00001, 1.025)])
def test_how_far_cben_is_from_balanced_on_cifar100(a, b, ratio):
    p = gcl.gcl_cben(class_counts("lt", 100, 500, 100), 0, a=a, b=b)
    assert p[0] / p[-1] == pytest.approx(ratio, abs=0.006)


def test_cben_is_a_literal_loop_and_does_not_know_the_order_of_classes():
    counts, a, b = np.array([120, 5, 500, 50]), 0.999, 0.0009
    for name, (size, literal) in SIZES.items():
        delta = [literal(counts.tolist(), j) for j in range(4)]
        mass = []
        for j, n_j in enumerate(counts.tolist()):
            beta = b * (delta[j] - min(delta)) / (max(delta) - min(delta)) + a
            mass.append(n_j * (1 - beta) / (1 - beta**n_j))
        found = gcl.gcl_cben(counts, 7, a=a, b=b, size=size)
        assert found.tolist() == pytest.approx([m / sum(mass) for m in mass]), name
        order = [2, 0, 3, 1]
        np.testing.assert_allclose(gcl.gcl_cben(counts[order], 7, a=a, b=b, size=size), found[order], rtol=1e-12)


def test_cben_of_equal_classes_is_uniform():
    assert gcl.gcl_cben(np.full(4, 50), 0, a=0.999, b=0.0009).tolist() == pytest.approx([0.25] * 4)
