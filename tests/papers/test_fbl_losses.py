"""Equations (4.4) to (4.8), the curricula of Table 4.4 and the released feature-balanced loss, against literal loops."""

import math
from functools import partial

import pytest
import torch

from common.methods.losses import cross_entropy
from common.methods.method import Context, Outputs
from papers.fbl import replicate as fbl
from tests.loss_checks import COUNTS, batch_permutation_gap, check_class_permutation, check_run_axes, context, make

EPOCHS, EPOCH, STRENGTH = 200, 120, 13.0
LONG_TAIL = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)  # CIFAR-10-LT at ratio 100
CURVES = {  # Table 4.4, column "Representation"
    fbl.fbl_linear_decrease: lambda t, T: 1 - t / T,
    fbl.fbl_linear_increase: lambda t, T: t / T,
    fbl.fbl_sine_increase: lambda t, T: math.sin(t / T * math.pi / 2),
    fbl.fbl_cosine_increase: lambda t, T: 1 - math.cos(t / T * math.pi / 2),
    fbl.fbl_parabolic_increase: lambda t, T: (t / T) ** 2,
}
PARABOLA = partial(fbl.fbl_parabolic_increase, T=float(EPOCHS))
WRITTEN = partial(fbl.fbl, strength=STRENGTH, curriculum=PARABOLA)
RELEASED = partial(fbl.fbl_as_released, strength=60.0, curriculum=partial(fbl.fbl_parabolic_increase, T=EPOCHS - 10.0))


def at(loss, epoch: float):
    """The loss in one epoch, so that the checks, whose epoch is 0, see a stimulus."""
    return lambda outputs, labels, ctx: loss(outputs, labels, Context(ctx.counts, torch.full_like(ctx.counts[0], epoch)))


def example(epoch: float, seed: int = 0):
    outputs, labels, _ = make(seed=seed, cosines=False)
    return outputs, labels, context(COUNTS, epoch)


def literal(z, f, y, n, alpha, highest=1.0):
    """Eqs. (4.4), (4.6) and (4.8), word by word; `highest`: what lambda is divided by."""
    stimulus = [(math.log(max(n)) - math.log(n_j)) / highest for n_j in n]
    norm = math.sqrt(sum(v * v for v in f))
    balanced = [z_j - alpha * s / norm for z_j, s in zip(z, stimulus, strict=True)]
    return -math.log(math.exp(balanced[y]) / sum(math.exp(b) for b in balanced))


def check_literal(loss, alpha, highest, epoch):
    outputs, labels, ctx = example(epoch)
    found = loss(outputs, labels, ctx).tolist()
    wanted = [literal(z.tolist(), f.tolist(), int(y), COUNTS, alpha, highest)
              for z, f, y in zip(*outputs[:2], labels, strict=True)]
    assert found == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("curve", CURVES, ids=lambda f: f.__name__)
def test_the_written_loss_is_its_equations_under_every_curriculum(curve):
    loss = partial(fbl.fbl, strength=STRENGTH, curriculum=partial(curve, T=float(EPOCHS)))
    for epoch in (0, EPOCH, EPOCHS - 1):
        check_literal(loss, STRENGTH * CURVES[curve](epoch + 1, EPOCHS), 1.0, epoch)


@pytest.mark.parametrize("curve", CURVES, ids=lambda f: f.__name__)
def test_the_released_loss_is_the_released_formula(curve):
    end = EPOCHS - 10 if curve is fbl.fbl_parabolic_increase else EPOCHS
    loss = partial(fbl.fbl_as_released, strength=60.0, curriculum=partial(curve, T=float(end)))
    highest = math.log(max(COUNTS) / min(COUNTS))
    for epoch in (0, EPOCH, EPOCHS - 1):
        check_literal(loss, 60.0 * CURVES[curve](epoch, end), highest, epoch)


@pytest.mark.parametrize("loss", [WRITTEN, RELEASED], ids=["written", "released"])
def test_a_loss_of_samples_that_does_not_know_the_order_of_classes(loss):
    late = at(loss, EPOCH)
    check_class_permutation(late, cosines=False)
    check_run_axes(late, cosines=False)
    assert batch_permutation_gap(late, cosines=False) < 1e-12


def test_the_stimulus_of_cifar10_lt_100_by_hand():
    """ln(5000 / n_j): ln(5000 / 2997) = 0.5118, ln(5000 / 645) = 2.0479, ln 100 = 4.6052."""
    found = fbl.fbl_stimulus(context(LONG_TAIL).counts)
    assert found.tolist() == pytest.approx([0, 0.5118, 1.0239, 1.5353, 2.0479, 2.5588, 3.0704, 3.5827, 4.0983, 4.6052], abs=1e-4)
    assert fbl.fbl_stimulus(context(LONG_TAIL[::-1]).counts).tolist() == found.tolist()[::-1]


def test_a_loss_by_hand():
    """Two classes of 100 and 1 images, both logits 0, |f| = 5, alpha = 5: z^b = (0, -ln 100), so p = 100/101 and 1/101."""
    outputs = Outputs(torch.zeros(2, 2, dtype=torch.float64), torch.tensor([[3.0, 4.0], [-4.0, 3.0]], dtype=torch.float64))
    loss = partial(fbl.fbl, strength=5.0, curriculum=PARABOLA)
    found = loss(outputs, torch.tensor([0, 1]), context((100, 1), EPOCHS - 1))
    assert found.tolist() == pytest.approx([math.log(101 / 100), math.log(101)])


@pytest.mark.parametrize(("counts", "column"), [((5000, 50, 700), "cifar10-lt-100"), ((5000, 100, 700), "cifar10-lt-50")])
def test_the_readings_are_one_where_their_curricula_are_at_every_ratio(counts, column):
    """60 / ln(n_max / n_min) on log ratios is 60 on stimuli in [0, 1]: how the written strength is chosen."""
    outputs, labels, _ = make(cosines=False, counts=counts)
    at = fbl.PARAMS.paper.columns[column]
    written, released = (partial(loss, strength=fbl.strength(at, reading), curriculum=PARABOLA)(
        outputs, labels, context(counts, epoch)) for reading, loss, epoch in (("written", fbl.fbl, 99),
                                                                            ("released", fbl.fbl_as_released, 100)))
    torch.testing.assert_close(written, released, rtol=1e-9, atol=1e-9)


def test_without_a_stimulus_it_is_cross_entropy():
    """At t = 0: epoch 0 of the released loss. The text counts from t = 1, whose alpha is 1 / 40000 of the strength."""
    outputs, labels, ctx = example(0)
    plain = cross_entropy(outputs.logits, labels)
    torch.testing.assert_close(RELEASED(outputs, labels, ctx), plain, rtol=0, atol=0)
    torch.testing.assert_close(WRITTEN(outputs, labels, context(COUNTS, -1)), plain, rtol=0, atol=0)
    first = WRITTEN(outputs, labels, ctx)
    torch.testing.assert_close(first, plain, rtol=0, atol=STRENGTH / EPOCHS**2 * 10)
    assert (first != plain).any()


def test_the_released_parabola_passes_its_strength_ten_epochs_before_the_end():
    curve = RELEASED.keywords["curriculum"]
    assert [float(curve(torch.tensor(e))) for e in (0, 95, 190, 199)] == pytest.approx([0, 0.25, 1, 1.0970], abs=1e-4)


@pytest.mark.parametrize("loss", [WRITTEN, RELEASED], ids=["written", "released"])
def test_the_gradient_reaches_the_feature_norm_and_makes_a_tail_feature_longer(loss):
    """With the logits held, a step against the gradient is along +f for a sample of the smallest class, -f for the largest."""
    outputs, labels, ctx = example(EPOCH)
    f = outputs.features.clone().requires_grad_()
    loss(outputs._replace(features=f), labels, ctx).sum().backward()
    along = -(f.grad * f.detach()).sum(-1)
    small, large = COUNTS.index(min(COUNTS)), COUNTS.index(max(COUNTS))
    assert (along[labels == small] > 0).all()
    assert (along[labels == large] < 0).all()
    across = f.grad + along[:, None] * f.detach() / f.detach().square().sum(-1, keepdim=True)
    assert across.abs().max() < 1e-12  # only the length is stimulated


def test_the_gradient_reaches_the_weights_through_the_norm():
    """z = W f with f = V x: the gradient of V is that of autograd by finite differences, norm included."""
    outputs, labels, ctx = example(EPOCH)
    x, w = outputs.features, torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def total(v):
        f = x @ v
        return WRITTEN(Outputs(f @ w.T, f), labels, ctx).sum()

    v = torch.eye(7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(total, v)


@pytest.mark.parametrize("loss", [WRITTEN, RELEASED], ids=["written", "released"])
@pytest.mark.parametrize("length", [0.0, 1e-3, 1e4])
def test_gradients_are_finite_in_float32_for_features_of_any_length(loss, length):
    outputs, labels, ctx = example(EPOCH)
    f = (outputs.features * length).float().requires_grad_()
    z = outputs.logits.float().requires_grad_()
    loss(Outputs(z, f), labels, Context(ctx.counts.float(), ctx.epoch.float())).sum().backward()
    assert f.grad.isfinite().all()
    assert z.grad.isfinite().all()
