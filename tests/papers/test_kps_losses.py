"""Equations (3.16) and (3.21) to (3.30) of the KPS chapter, and the released lists, against literal loops and numbers by hand."""

import math
from functools import partial

import pytest
import torch

from common.methods.losses import cross_entropy
from papers.kps import replicate as kps
from tests.loss_checks import (
    COUNTS,
    batch_permutation_gap,
    check_class_permutation,
    check_literal,
    check_run_axes,
    context,
    make,
)

S, BASE, LARGEST, MOST, START = 15.0, 50.0, 0.5, 20.0, 3
CIFAR10_LT_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
CIFAR100_LT_100 = [int(500 * 0.01 ** (i / 99)) for i in range(100)]


def counts(n) -> torch.Tensor:
    return torch.tensor(n, dtype=torch.float64)


def literal_lists(n):
    """Section 3.5.2 word by word: r, m' and m."""
    temporary = [math.log(v * BASE / min(n)) for v in n]
    r = [v / min(temporary) for v in temporary]
    mirrored = [max(r) + 1 - v for v in r]
    return r, mirrored, [v * LARGEST / max(mirrored) for v in mirrored]


def flipped_lists(n):
    r, _, _ = literal_lists(n)
    mirrored = list(reversed(r))
    return r, mirrored, [v * LARGEST / max(mirrored) for v in mirrored]


def literal_loss(z, y, r, m, scale):
    """Eqs. (3.21) and (3.22), or (3.26) where the scale is s_y."""
    scores = [r[j] * z[j] - (m[j] if j == y else 0) for j in range(len(z))]
    return -math.log(math.exp(scale * scores[y]) / sum(math.exp(scale * v) for v in scores))


def literal_kps(z, y, n):
    r, _, m = literal_lists(n)
    return literal_loss(z, y, r, m, S)


def literal_ga(z, y, n):
    r, mirrored, m = literal_lists(n)
    return literal_loss(z, y, r, m, S * mirrored[y])


def literal_released(z, y, n):
    r, _, m = flipped_lists(n)
    return literal_loss(z, y, r, m, S)


def literal_ga_released(z, y, n):
    r, mirrored, m = flipped_lists(n)
    return literal_loss(z, y, r, m, min(max(S * mirrored[y], S), MOST))


NUMBERS = {"s": S, "n_base": BASE, "m_max": LARGEST}
WRITTEN = {
    "KPS": (partial(kps.kps, **NUMBERS), literal_kps),
    "GA, not yet": (partial(kps.kps_ga, **NUMBERS, start=START), literal_kps),
    "GA": (partial(kps.kps_ga, **NUMBERS, start=0), literal_ga),
}
RELEASED = {
    "KPS": (partial(kps.kps_as_released, **NUMBERS), literal_released),
    "GA, not yet": (partial(kps.kps_ga_as_released, **NUMBERS, s_max=MOST, start=START), literal_released),
    "GA": (partial(kps.kps_ga_as_released, **NUMBERS, s_max=MOST, start=0), literal_ga_released),
}
ALL = [*WRITTEN.values(), *RELEASED.values()]
NAMES = [*WRITTEN, *(f"{name}, released" for name in RELEASED)]


@pytest.mark.parametrize(("loss", "literal"), ALL, ids=NAMES)
def test_loss_is_its_equations(loss, literal):
    check_literal(loss, literal)


@pytest.mark.parametrize(("loss", "literal"), ALL, ids=NAMES)
def test_loss_is_a_loss_of_samples(loss, literal):
    check_run_axes(loss)
    assert batch_permutation_gap(loss) < 1e-12


@pytest.mark.parametrize("name", WRITTEN)
def test_written_loss_does_not_know_the_order_of_classes(name):
    check_class_permutation(WRITTEN[name][0])


@pytest.mark.parametrize("name", RELEASED)
def test_released_loss_holds_for_classes_sorted_by_size_only(name):
    """The list backwards is another class's radius as soon as the classes are not sorted."""
    outputs, labels, ctx = make()
    order = torch.tensor([1, 0, 2, 3])
    loss, _ = RELEASED[name]
    permuted = outputs._replace(logits=outputs.logits[:, order])
    renamed = loss(permuted, order[labels], ctx._replace(counts=ctx.counts[order]))
    assert (renamed - loss(outputs, labels, ctx)).abs().max() > 0.1


def test_ga_switches_at_its_epoch():
    outputs, labels, ctx = make()
    for ga, plain in ((kps.kps_ga, kps.kps), (partial(kps.kps_ga_as_released, s_max=MOST), kps.kps_as_released)):
        without = plain(outputs, labels, ctx, **NUMBERS)
        before, at, after = (ga(outputs, labels, context(COUNTS, float(e)), **NUMBERS, start=START) for e in (2, 3, 9))
        torch.testing.assert_close(before, without)
        torch.testing.assert_close(at, after)
        assert (at - before).abs().max() > 0.1


def test_equal_classes_reduce_to_scaled_cosine_cross_entropy():
    """With equal sizes all radii are 1; without a margin Eq. (3.16) and Eq. (3.26) are then cross-entropy of s cos."""
    outputs, labels, _ = make(counts=(70, 70, 70, 70))
    ctx = context((70, 70, 70, 70), 9.0)
    plain = cross_entropy(S * outputs.logits, labels)
    zero = {"s": S, "n_base": BASE, "m_max": 0.0}
    ga = partial(kps.kps_ga, start=0), partial(kps.kps_ga_as_released, s_max=50.0, start=0)
    for loss in (kps.kps, kps.kps_as_released, *ga):
        torch.testing.assert_close(loss(outputs, labels, ctx, **zero), plain)


def test_a_margin_alone_is_cosface():
    outputs, labels, _ = make(counts=(70, 70, 70, 70))
    shifted = outputs.logits - 0.5 * torch.nn.functional.one_hot(labels, 4)
    found = kps.kps(outputs, labels, context((70, 70, 70, 70)), **NUMBERS)
    torch.testing.assert_close(found, cross_entropy(S * shifted, labels))


def test_lists_of_cifar10_lt_100_by_hand():
    """log(50 * 100) / log(50) = 8.5172 / 3.9120 = 2.1772 for the head, log(50) / log(50) = 1 for the tail; the step from
    class to class is log(100) / 9 / log(50) = 0.1308."""
    n = counts(CIFAR10_LT_100)
    r = [2.177, 2.046, 1.916, 1.785, 1.654, 1.523, 1.392, 1.261, 1.130, 1.0]
    m = [0.230, 0.260, 0.290, 0.320, 0.350, 0.380, 0.410, 0.440, 0.470, 0.5]
    s = [15.0, 17.0, 18.9, 20.9, 22.9, 24.8, 26.8, 28.7, 30.7, 32.7]
    assert kps.kps_radii(n, BASE).tolist() == pytest.approx(r, abs=2e-3)
    assert kps.kps_margins(n, BASE, 0.5).tolist() == pytest.approx(m, abs=1e-3)
    assert kps.kps_scales(n, BASE, 15.0).tolist() == pytest.approx(s, abs=0.06)
    assert float(kps.kps_radii(n, BASE)[0]) == pytest.approx(8.51719 / 3.91202, abs=1e-5)
    assert float(kps.kps_scales(n, BASE, 15.0)[-1]) == pytest.approx(15 * 8.51719 / 3.91202, abs=1e-4)


def test_the_flipped_list_is_the_formula_on_the_long_tailed_sets():
    """Log counts fall evenly from class to class, but for their truncation to whole images."""
    for sizes, gap in ((CIFAR10_LT_100, 0.0013), (CIFAR100_LT_100, 0.037)):
        n = counts(sizes)
        assert (kps.kps_flipped_radii(n, BASE) - kps.kps_mirrored_radii(n, BASE)).abs().max() < gap
    n = counts(CIFAR10_LT_100)
    assert (kps.kps_flipped_margins(n, BASE, 0.5) - kps.kps_margins(n, BASE, 0.5)).abs().max() < 0.002
    n = counts(CIFAR10_LT_100[1:] + CIFAR10_LT_100[:1])
    assert (kps.kps_flipped_radii(n, BASE) - kps.kps_mirrored_radii(n, BASE)).abs().max() > 1


def test_the_limit_of_the_released_scale_never_binds_on_cifar():
    for sizes in (CIFAR10_LT_100, CIFAR100_LT_100, [500, 2], [5000, 25]):
        assert 15 * float(kps.kps_flipped_radii(counts(sizes), BASE).max()) < 50


def test_the_gradient_of_ga_on_a_logit_is_s_y_times_the_probability():
    """Eq. (3.23) under Eq. (3.26): s_y (p_i - [i = y]) on the scores, so r_i times that on the cosine."""
    outputs, labels, ctx = make()
    cos = outputs.logits.clone().requires_grad_()
    kps.kps_ga(outputs._replace(logits=cos), labels, ctx, **NUMBERS, start=0).sum().backward()
    r, mirrored, m = (counts(v) for v in literal_lists(list(COUNTS)))
    one_hot = torch.nn.functional.one_hot(labels, 4)
    scale = S * mirrored[labels][:, None]
    p = (scale * (r * outputs.logits - m * one_hot)).softmax(-1)
    torch.testing.assert_close(cos.grad, scale * (p - one_hot) * r)


def test_boundaries_meet_their_equations():
    """At each point of a boundary the two sides of its equation are equal; without radii and margins it is the diagonal."""
    r, m, m_ldam = kps.two_class_lists()
    assert r == pytest.approx((2.1772, 1.0), abs=1e-4)
    assert m == pytest.approx((0.2297, 0.5), abs=1e-4)
    assert m_ldam == pytest.approx((0.1581, 0.5), abs=1e-4)
    (_, x1, y1), (_, x2, y2) = kps.boundary_lines(kps.cosine_boundary, r, m)
    assert len(x1) > 20
    assert len(x2) > 20
    for one, two in zip(x1, y1, strict=True):
        assert r[0] * math.cos(math.radians(one)) - m[0] == pytest.approx(r[1] * math.cos(math.radians(two)), abs=1e-9)
    for one, two in zip(x2, y2, strict=True):
        assert r[1] * math.cos(math.radians(two)) - m[1] == pytest.approx(r[0] * math.cos(math.radians(one)), abs=1e-9)
    (_, x, y), _ = kps.boundary_lines(kps.cosine_boundary, (1.0, 1.0), (0.0, 0.0))
    assert x == pytest.approx(y, abs=1e-6)
    for one, two in zip(*kps.boundary_lines(kps.angle_boundary, r, m)[1][1:], strict=True):
        assert r[1] * math.radians(two) + m[1] == pytest.approx(r[0] * math.radians(one), abs=1e-9)


def test_with_these_radii_only_the_tail_class_keeps_its_key_points_at_a_distance():
    """Section 3.4.2.1 wants m_1 > m'_1 and m_2 > m'_2. Where both cosines are c, class 1 is ahead by (r_1 - r_2) c - m_1, so
    its margin shrinks as c grows, and is negative for key points; class 2's grows."""
    r, m, _ = kps.two_class_lists()
    margin_1 = [m[0] - (r[0] - r[1]) * c for c in (0.0, 0.5, 1.0)]
    margin_2 = [m[1] + (r[0] - r[1]) * c for c in (0.0, 0.5, 1.0)]
    assert margin_1 == pytest.approx([0.2297, -0.3589, -0.9475], abs=1e-3)
    assert margin_2 == pytest.approx([0.5, 1.0886, 1.6772], abs=1e-3)
    key_point, own = kps.cosine_boundary(10.0, r[1], m[1], r[0]), kps.cosine_boundary(10.0, r[0], m[0], r[1])
    assert key_point - 10 > 60  # class 2 wants 60 degrees more to the other anchor
    assert own is None  # no angle to anchor 2 is too small for class 1
