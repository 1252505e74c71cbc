"""The losses of the shared baselines against literal transcriptions and numbers worked out by hand."""

import math
from functools import partial

import pytest
import torch

from common.methods import losses
from common.methods.method import Context, Outputs
from tests.loss_checks import (
    COUNTS,
    batch_permutation_gap,
    check_class_permutation,
    check_literal,
    check_run_axes,
    context,
    make,
)

DOUBLE = torch.float64


def ce(z, y):
    return -math.log(math.exp(z[y]) / sum(math.exp(v) for v in z))


def literal_focal(z, y, n):
    p = math.exp(z[y]) / sum(math.exp(v) for v in z)
    return (1 - p) ** 2 * -math.log(p)


def literal_arcface(z, y, n):
    def moved(cos):
        angle = math.acos(cos)
        return math.cos(angle + 0.5) if angle + 0.5 <= math.pi else cos - 0.5 * math.sin(0.5)

    return ce([20 * (moved(v) if j == y else v) for j, v in enumerate(z)], y)


def literal_logit_adjusted(z, y, n):
    return ce([v + math.log((n[j] / sum(n)) ** 1.5 + 1e-12) for j, v in enumerate(z)], y)


def literal_smoothing(z, y, n):
    e = 0.1 + (0.4 - 0.1) * math.sin(math.pi * (n[y] - min(n)) / (2 * (max(n) - min(n))))
    return (1 - e) * ce(z, y) + e * sum(ce(z, j) for j in range(len(z))) / len(z)


CASES = {
    "focal, detached": (partial(losses.focal_detached, gamma=2.0), literal_focal, False),
    "ArcFace": (partial(losses.arcface, s=20.0, m=0.5), literal_arcface, True),
    "logit adjustment": (partial(losses.logit_adjusted, tau=1.5), literal_logit_adjusted, False),
    "label-aware smoothing": (partial(losses.label_aware_smoothing, head=0.4, tail=0.1), literal_smoothing, False),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_is_its_equation(name):
    check_literal(*CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_loss_does_not_depend_on_names_or_places(name):
    loss, _, cosines = CASES[name]
    check_class_permutation(loss, cosines)
    assert batch_permutation_gap(loss, cosines) < 1e-12
    check_run_axes(loss, cosines)


def test_the_detached_focal_factor_is_a_constant_for_the_gradient():
    outputs, labels, ctx = make(cosines=False)
    z = outputs.logits.clone().requires_grad_()
    losses.focal_detached(Outputs(z, z), labels, ctx, gamma=2.0).sum().backward()
    p = outputs.logits.softmax(-1)
    factor = (1 - p.gather(1, labels[:, None])) ** 2
    torch.testing.assert_close(z.grad, factor * (p - torch.nn.functional.one_hot(labels, 4)))


# ---------------------------------------------------------------- ArcFace


def test_arcface_beyond_pi_takes_the_straight_line():
    """m = 0.5: theta + m = pi at cos theta = -cos 0.5 = -0.8776."""
    z = torch.tensor([[-0.95, 0.2], [-0.85, 0.2]], dtype=DOUBLE)
    found = losses.arcface(Outputs(z, z), torch.tensor([0, 0]), context((1, 1)), s=1.0, m=0.5)
    line, curve = -0.95 - 0.5 * math.sin(0.5), math.cos(math.acos(-0.85) + 0.5)
    assert found.tolist() == pytest.approx([math.log1p(math.exp(0.2 - line)), math.log1p(math.exp(0.2 - curve))], rel=1e-9)


@pytest.mark.parametrize("cosine", [1.0, 1.0000001, -1.0, -1.0000001, -math.cos(0.5)])
def test_arcface_has_a_gradient_at_the_ends(cosine):
    z = torch.tensor([[cosine, 0.0]], requires_grad=True)
    value = losses.arcface(Outputs(z, z), torch.tensor([0]), context((1, 1)), s=30.0, m=0.5)
    value.sum().backward()
    assert value.isfinite().all()
    assert z.grad.isfinite().all()


def test_neutral_parameters_give_cross_entropy():
    outputs, labels, ctx = make()
    plain = losses.softmax_cross_entropy(outputs, labels, ctx)
    noisy = ctx._replace(noise=torch.zeros_like(outputs.logits))
    for neutral in (partial(losses.focal_detached, gamma=0.0), partial(losses.arcface, s=1.0, m=0.0),
                    partial(losses.logit_adjusted, tau=0.0), partial(losses.label_aware_smoothing, head=0.0, tail=0.0),
                    partial(losses.equalization, rate=0.0, threshold=1.0), partial(losses.equalization, rate=1.0, threshold=0.0)):
        torch.testing.assert_close(neutral(outputs, labels, noisy), plain)


# ---------------------------------------------------------------- priors


def test_logit_adjustment_by_hand():
    """Equal logits, 9 images against 1: the model already believes 0.9 and 0.1."""
    z = torch.zeros(2, 2, dtype=DOUBLE)
    found = losses.logit_adjusted(Outputs(z, z), torch.tensor([0, 1]), context((9, 1)), tau=1.0)
    assert found.tolist() == pytest.approx([-math.log(0.9), -math.log(0.1)])


def test_logit_adjustment_is_balanced_softmax_at_tau_1():
    outputs, labels, ctx = make(cosines=False)
    found = losses.logit_adjusted(outputs, labels, ctx, tau=1.0)
    torch.testing.assert_close(found, losses.cross_entropy(outputs.logits + ctx.counts.log(), labels))


def test_a_class_without_images_does_not_spoil_logit_adjustment():
    z = torch.zeros(1, 3, requires_grad=True)
    ctx = Context(torch.tensor([5.0, 5.0, 0.0]), torch.tensor(0.0))
    value = losses.logit_adjusted(Outputs(z, z), torch.tensor([0]), ctx, tau=1.0)
    value.sum().backward()
    assert value.tolist() == pytest.approx([math.log(2)])
    assert z.grad.isfinite().all()


def test_smoothing_of_cifar10_lt_100_by_hand():
    """0.3 for the head with 5000 images, none for the tail with 50, 0.3 sin(pi / 4) half-way; logits (1, 0, 0)."""
    z = torch.tensor([[1.0, 0.0, 0.0]], dtype=DOUBLE)
    log_sum = math.log(math.e + 2)
    for y, n, e in ((0, (5000, 2525, 50), 0.3), (0, (50, 5000, 2525), 0.0), (0, (2525, 5000, 50), 0.3 * math.sin(math.pi / 4))):
        found = losses.label_aware_smoothing(Outputs(z, z), torch.tensor([y]), context(n), head=0.3, tail=0.0)
        assert float(found) == pytest.approx((1 - e) * (log_sum - 1) + e * (log_sum - 1 / 3))


def test_smoothing_of_equal_classes_is_the_tails():
    outputs, labels, _ = make(cosines=False)
    same = losses.label_aware_smoothing(outputs, labels, context((7, 7, 7, 7)), head=0.4, tail=0.0)
    torch.testing.assert_close(same, losses.cross_entropy(outputs.logits, labels))


# ---------------------------------------------------------------- equalization loss


EQUALIZE = partial(losses.equalization, rate=0.9, threshold=0.1)  # of COUNTS, classes 0 and 2 are rarer than 0.1


def noisy(seed=0):
    outputs, labels, ctx = make(seed=seed, cosines=False)
    noise = torch.rand(outputs.logits.shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return outputs, labels, ctx._replace(noise=noise)


def test_equalization_is_its_equation():
    outputs, labels, ctx = noisy()
    for rate in (0.5, 0.9):
        found = losses.equalization(outputs, labels, ctx, rate=rate, threshold=0.1)
        for i, y in enumerate(labels.tolist()):
            total = 0.0
            for j, n in enumerate(COUNTS):
                b = 1 if ctx.noise[i, j] < rate else 0
                rare = 1 if n / sum(COUNTS) < 0.1 else 0
                w = 1 - b * rare * (1 - (1 if j == y else 0))
                total += w * math.exp(outputs.logits[i, j])
            assert float(found[i]) == pytest.approx(math.log(total) - float(outputs.logits[i, y]), rel=1e-10)


def test_equalization_by_hand():
    """995, 4 and 1 images of 1000, threshold 0.005, equal logits."""
    z, n = torch.zeros(1, 3, dtype=DOUBLE), torch.tensor([995.0, 4.0, 1.0], dtype=DOUBLE)
    for y, noise, wanted in ((0, (0.5, 0.5, 0.5), 0.0), (1, (0.5, 0.5, 0.5), math.log(2)), (2, (0.5, 0.95, 0.5), math.log(3)),
                             (0, (0.0, 0.95, 0.0), math.log(2))):
        ctx = Context(n, torch.tensor(0.0), torch.tensor([noise], dtype=DOUBLE))
        found = losses.equalization(Outputs(z, z), torch.tensor([y]), ctx, rate=0.9, threshold=0.005)
        assert float(found) == pytest.approx(wanted, abs=1e-12)


def test_equalization_does_not_depend_on_names_and_has_run_axes():
    outputs, labels, ctx = noisy()
    order = torch.tensor([2, 0, 3, 1])
    renamed = Context(ctx.counts[order], ctx.epoch, ctx.noise[:, order])
    found = EQUALIZE(Outputs(outputs.logits[:, order], outputs.features), torch.argsort(order)[labels], renamed)
    torch.testing.assert_close(found, EQUALIZE(outputs, labels, ctx))
    each = [noisy(seed) for seed in range(3)]
    packed = EQUALIZE(Outputs(torch.stack([o.logits for o, _, _ in each]), None), torch.stack([y for _, y, _ in each]),
                      ctx._replace(noise=torch.stack([c.noise for _, _, c in each])))
    for run, (o, y, c) in enumerate(each):
        torch.testing.assert_close(packed[run], EQUALIZE(o, y, c))


def test_equalization_stays_finite_for_large_logits():
    z = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    ctx = Context(torch.tensor([1.0, 500.0, 500.0]), torch.tensor(0.0), torch.zeros(1, 3))
    value = losses.equalization(Outputs(z, z), torch.tensor([1]), ctx, rate=0.9, threshold=0.005)
    value.sum().backward()
    assert value.tolist() == pytest.approx([500])  # class 0 is rare and spared
    assert z.grad.isfinite().all()


# ---------------------------------------------------------------- contrast and two branches


def literal_contrast(f, y, temperature):
    """Word by word, on unit vectors."""
    unit = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in f]
    dot = [[sum(a * b for a, b in zip(p, q, strict=True)) / temperature for q in unit] for p in unit]
    values = []
    for i in range(len(y)):
        below = sum(math.exp(dot[i][a]) for a in range(len(y)) if a != i)
        positives = [p for p in range(len(y)) if p != i and y[p] == y[i]]
        values.append(-sum(math.log(math.exp(dot[i][p]) / below) for p in positives) / len(positives))
    return values


def test_supervised_contrast_is_its_equation():
    generator = torch.Generator().manual_seed(3)
    f, y = torch.randn(9, 5, generator=generator, dtype=DOUBLE), [0, 1, 2, 0, 1, 2, 0, 0, 1]
    found = losses.supervised_contrast(f, torch.tensor(y), 0.1)
    assert found.tolist() == pytest.approx(literal_contrast(f.tolist(), y, 0.1), rel=1e-10)


def test_supervised_contrast_by_hand():
    """Two equal unit vectors of one class and an orthogonal third: -log(e / (e + 1)) at T = 1; a class of one counts nothing."""
    f, y = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=DOUBLE), torch.tensor([0, 0, 1])
    assert losses.supervised_contrast(f, y, 1.0).tolist() == pytest.approx([math.log(1 + 1 / math.e)] * 2 + [0.0])


def three_streams(seed=0, batch=6, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits, projected = (torch.randn(3, batch, w, generator=generator, dtype=DOUBLE) for w in (classes, 5))
    labels = torch.randint(0, classes, (3, batch), generator=generator)
    labels[1] = labels[0]  # the second stream is the first one's images again
    return Outputs(logits, logits, projected), labels


HYBRID = partial(losses.hybrid_contrastive, temperature=0.1, epochs=200)


def test_hybrid_contrastive_is_its_equation():
    outputs, labels = three_streams()
    for epoch, share in ((0.0, 1.0), (100.0, 0.75), (150.0, 0.4375)):
        found = HYBRID(outputs, labels, context(COUNTS, epoch))
        views = literal_contrast(outputs.projected[:2].flatten(0, 1).tolist(), labels[:2].flatten().tolist(), 0.1)
        for i in range(6):
            balanced = ce(outputs.logits[2, i].tolist(), int(labels[2, i]))
            assert float(found[i]) == pytest.approx(share * (views[i] + views[6 + i]) / 2 + (1 - share) * balanced, rel=1e-10)


def test_hybrid_contrastive_has_run_axes_and_finite_gradients():
    each = [three_streams(seed) for seed in range(3)]
    logits, projected = (torch.stack([getattr(o, part) for o, _ in each]) for part in ("logits", "projected"))
    labels, ctx = torch.stack([y for _, y in each]), context(COUNTS, 100.0)
    packed = HYBRID(Outputs(logits, logits, projected), labels, ctx)
    for run, (outputs, y) in enumerate(each):
        torch.testing.assert_close(packed[run], HYBRID(outputs, y, ctx))
    z, f = logits.float().requires_grad_(), projected.float().requires_grad_()
    HYBRID(Outputs(z, z, f), labels, ctx).sum().backward()
    assert f.grad.isfinite().all()
    assert z.grad.isfinite().all()
    assert f.grad.abs().sum() > 0
    assert z.grad[:, 2].abs().sum() > 0
    assert z.grad[:, :2].abs().sum() == 0  # the linear head learns from the balanced stream alone


def test_hybrid_contrastive_does_not_depend_on_names_or_places():
    outputs, labels = three_streams()
    ctx, order, places = context(COUNTS, 100.0), torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 5, 0, 3, 2])
    found = HYBRID(outputs, labels, ctx)
    renamed = Outputs(outputs.logits[..., order], outputs.logits, outputs.projected)
    torch.testing.assert_close(HYBRID(renamed, torch.argsort(order)[labels], ctx._replace(counts=ctx.counts[order])), found)
    moved = Outputs(outputs.logits[:, places], outputs.logits, outputs.projected[:, places])
    torch.testing.assert_close(HYBRID(moved, labels[:, places], ctx), found[places])


def test_the_share_falls_as_a_parabola():
    found = [float(losses.falling_share(torch.tensor(float(e)), 200)) for e in (0, 20, 100, 199)]
    assert found == pytest.approx([1.0, 0.99, 0.75, 0.009975], abs=1e-6)


def test_cumulative_by_hand():
    """Epoch 100 of 200: l = 0.75, so branch a counts 1.5 times and branch b 0.5 times, one after the other."""
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]])
    start, half = (Context(torch.tensor([1.0]), torch.tensor(epoch)) for epoch in (0.0, 100.0))
    combine = partial(losses.cumulative, epochs=200)
    found = combine(features, half)
    assert found.tolist() == [[1.5, 3.0, 5.0, 10.0], [4.5, 6.0, 15.0, 20.0], [7.5, 9.0, 25.0, 30.0]]
    assert combine(features, start).tolist() == [[2.0, 4.0, 0.0, 0.0], [6.0, 8.0, 0.0, 0.0], [10.0, 12.0, 0.0, 0.0]]
    torch.testing.assert_close(combine(torch.stack([features, features * 2]), half), torch.stack([found, 2 * found]))


def test_bilateral_is_its_equation():
    outputs, first, _ = make(cosines=False)
    labels = torch.stack([first, first.roll(1)])
    loss = partial(losses.bilateral, epochs=200)
    for epoch, share in ((0.0, 1.0), (100.0, 0.75)):
        found = loss(outputs, labels, context(COUNTS, epoch))
        for i, z in enumerate(outputs.logits.tolist()):
            wanted = share * ce(z, int(labels[0, i])) + (1 - share) * ce(z, int(labels[1, i]))
            assert float(found[i]) == pytest.approx(wanted, rel=1e-10)
    runs = Outputs(torch.stack([outputs.logits, 2 * outputs.logits]), None)
    packed = loss(runs, torch.stack([labels, labels.flip(0)]), context(COUNTS, 100.0))
    torch.testing.assert_close(packed[0], found)
    torch.testing.assert_close(packed[1], loss(Outputs(2 * outputs.logits, None), labels.flip(0), context(COUNTS, 100.0)))


def test_bilateral_does_not_depend_on_names_and_has_a_gradient():
    outputs, first, ctx = make(cosines=False)
    labels, order, ctx = torch.stack([first, first.roll(1)]), torch.tensor([2, 0, 3, 1]), ctx._replace(epoch=torch.tensor(100.0))
    loss = partial(losses.bilateral, epochs=200)
    z = outputs.logits.float().requires_grad_()
    value = loss(Outputs(z, z), labels, ctx)
    torch.testing.assert_close(loss(Outputs(z[:, order], z), torch.argsort(order)[labels], ctx), value)
    value.sum().backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().sum() > 0


# ---------------------------------------------------------------- all of them, as a step sees them


def test_no_loss_synchronises_or_breaks_a_graph():
    """Each traces as one graph, so none reads a value back to the host."""
    outputs, labels, ctx = noisy()
    three, labels_3 = three_streams()
    half = context(COUNTS, 100.0)
    calls = [(loss, outputs, labels, ctx) for loss, _, _ in CASES.values()]
    calls += [(EQUALIZE, outputs, labels, ctx), (HYBRID, three, labels_3, half),
              (partial(losses.bilateral, epochs=200), outputs, torch.stack([labels, labels]), half)]
    for loss, o, y, c in calls:
        traced = torch.compile(loss, backend="eager", fullgraph=True)
        torch.testing.assert_close(traced(o, y, c), loss(o, y, c))
    combine = partial(losses.cumulative, epochs=200)
    torch.testing.assert_close(torch.compile(combine, backend="eager", fullgraph=True)(three.logits[:2], half),
                               combine(three.logits[:2], half))
