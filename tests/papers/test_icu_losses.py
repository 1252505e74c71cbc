"""The equations of the ICU paper, its released code and the losses beside them, against literal loops and closed forms."""

import math
from functools import partial

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from common.methods.losses import cross_entropy
from common.methods.method import Context, Outputs
from common.models.heads import CentreHead, GaussianHead, LinearHead, QuadraticHead
from papers.icu import equations as icu
from papers.icu.replicate import PARAMS

WIDTH, CLASSES, BATCH, ABSENT = 3, 5, 12, 3  # no sample of the batch is of class ABSENT
HEADS = {
    "gaussian": partial(GaussianHead, 1, WIDTH, CLASSES), "centres": partial(CentreHead, 1, WIDTH, CLASSES),
    "quadratic": partial(QuadraticHead, 1, WIDTH, CLASSES),
    "moving": partial(LinearHead, 1, WIDTH, CLASSES, centres=0.5),
    "unbiased": partial(LinearHead, 1, WIDTH, CLASSES, biased=False),
}


def score(kind: str, tensors: dict, x):
    """The logits [batch, classes] of the engine's own head with these tensors."""
    head = HEADS[kind]().to(x.dtype)
    with torch.no_grad():
        return torch.func.functional_call(head, {n: t[None] for n, t in tensors.items()}, (x[None],))[0]


def make(kind: str, seed: int = 0, epoch: float = 0.0):
    """Outputs, labels and context of one run, float64."""
    generator = torch.Generator().manual_seed(seed)
    head = HEADS[kind]().double()
    head.initialise([generator])
    tensors = {}
    for name, tensor in head.tensors().items():
        noise = torch.randn(tensor[0].shape, generator=generator, dtype=torch.float64)
        tensors[name] = noise if name in ("centres", "log_variances") else tensor[0].detach() + 0.2 * noise
    x = torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64) * 1.5
    y = torch.tensor([0, 1, 2, 4])[torch.arange(BATCH) % 4][torch.randperm(BATCH, generator=generator)]
    context = Context(torch.tensor([50.0, 5, 500, 20, 9], dtype=torch.float64), torch.tensor(epoch, dtype=torch.float64))
    return Outputs(score(kind, tensors, x), x, None, tensors), y, context


# ---------------------------------------------------------------- literal loops, in plain Python


def columns(tensor) -> list[list[float]]:
    """[width, classes] as a list of one list a class."""
    return tensor.T.tolist()


def softmax_loss(z: list[float], own: float, y: int) -> float:
    return -math.log(math.exp(own) / (math.exp(own) + sum(math.exp(v) for k, v in enumerate(z) if k != y)))


def distance(x: list[float], mu: list[float], log_variances: list[float]) -> float:
    """Eqs. (9) and (19)."""
    return sum((a - m) ** 2 / math.exp(v) + v for a, m, v in zip(x, mu, log_variances, strict=True)) / 2


ALPHA, GAMMA, ONE, TWO = 0.3, 0.2, 0.15, 0.07


def regulariser(x, y, mu, log_variances, dimensions: str) -> float:
    """Eq. (14) with Eqs. (12) and (13), class by class and dimension by dimension."""
    total = 0.0
    for k in set(y):
        mine = [x[i] for i in range(len(y)) if y[i] == k]
        for d in range(WIDTH):
            mean = sum(f[d] for f in mine) / len(mine)
            deviation = sum((f[d] - mu[k][d]) ** 2 for f in mine) / len(mine)
            total += ONE * (mu[k][d] - mean) ** 2 + TWO * (math.exp(log_variances[k][d]) - deviation) ** 2
    return total / WIDTH if dimensions == "mean" else total


def literal_icu(outputs, labels, gamma_is_added: bool = True, per_sample: bool = False, dimensions: str = "mean"):
    x, y = outputs.features.tolist(), labels.tolist()
    mu, log_variances = columns(outputs.head["weight"]), columns(outputs.head["log_variances"])
    found = []
    for f, k in zip(x, y, strict=True):
        z = [-distance(f, mu[j], log_variances[j]) for j in range(CLASSES)]
        log_determinant = sum(log_variances[k])
        own = distance(f, mu[k], log_variances[k]) - log_determinant / 2
        own += (math.log(1 + GAMMA) + log_determinant) / 2 if gamma_is_added else (1 + GAMMA) * log_determinant / 2
        value = softmax_loss(z, -(1 + ALPHA) * own, k)
        if per_sample:
            for d in range(WIDTH):
                square = (mu[k][d] - f[d]) ** 2
                value += (ONE * square + TWO * abs(square - math.exp(log_variances[k][d]))) / WIDTH
        found.append(value if per_sample else value + regulariser(x, y, mu, log_variances, dimensions))
    return found


def literal_released(outputs, labels):
    """Commit 3c24b06: the square of x is summed over the classes, half a log-determinant, beta in gamma's place."""
    mu, a = columns(outputs.head["weight"]), columns(outputs.head["inverse_deviations"])
    found = []
    for f, k in zip(outputs.features.tolist(), labels.tolist(), strict=True):
        square = sum(a[j][d] ** 2 * f[d] ** 2 for j in range(CLASSES) for d in range(WIDTH))
        g = [-(square - 2 * sum(f[d] * a[j][d] ** 2 * mu[j][d] for d in range(WIDTH))
               + sum(a[j][d] ** 2 * mu[j][d] ** 2 for d in range(WIDTH))) / 2 for j in range(CLASSES)]
        log_a = [sum(map(math.log, a[j])) for j in range(CLASSES)]
        h = [g[j] + log_a[j] / 2 for j in range(CLASSES)]
        value = softmax_loss(h, (1 + ALPHA) * (g[k] + (1 + GAMMA) * log_a[k] / 2), k)
        squares = [(mu[k][d] - f[d]) ** 2 for d in range(WIDTH)]
        value += ONE * sum(squares) / WIDTH + ONE * sum(abs(s - 1 / a[k][d] ** 2) for d, s in enumerate(squares)) / WIDTH
        found.append(value)
    return found


def half_squares(outputs, of: str):
    mu, x = columns(outputs.head[of]), outputs.features.tolist()
    return [[sum((a - m) ** 2 for a, m in zip(f, mu[j], strict=True)) / 2 for j in range(CLASSES)] for f in x]


def literal_first_released(outputs, labels):
    d = half_squares(outputs, "weight")
    return [softmax_loss([-v for v in d[i]], -(1 + ALPHA) * d[i][k], k) + ONE * 2 * d[i][k] / WIDTH
            for i, k in enumerate(labels.tolist())]


def literal_center(outputs, labels):
    d = half_squares(outputs, "centres")
    return [softmax_loss(z, z[k], k) + ONE * d[i][k]
            for i, (z, k) in enumerate(zip(outputs.logits.tolist(), labels.tolist(), strict=True))]


def literal_psi(theta: float, m: int) -> float:
    k = min(int(theta * m / math.pi), m - 1)
    return (-1) ** k * math.cos(m * theta) - 2 * k


def literal_l_softmax(outputs, labels, share: float):
    w, found = columns(outputs.head["weight"]), []
    for f, k in zip(outputs.features.tolist(), labels.tolist(), strict=True):
        z = [sum(a * b for a, b in zip(f, w[j], strict=True)) for j in range(CLASSES)]
        size = math.hypot(*f) * math.hypot(*w[k])
        own = (share * z[k] + size * literal_psi(math.acos(z[k] / size), 4)) / (1 + share)
        found.append(softmax_loss(z, own, k))
    return found


def literal_l_gm(outputs, labels):
    d = half_squares(outputs, "weight")
    return [softmax_loss([-v for v in d[i]], -(1 + ALPHA) * d[i][k], k) + ONE * d[i][k] for i, k in enumerate(labels.tolist())]


MARGINS = {"alpha": ALPHA, "gamma": GAMMA, "lambda_mu": ONE, "lambda_sigma": TWO}
CASES = {  # the head, the loss, the same in loops
    "ICU": ("gaussian", partial(icu.icu, **MARGINS), literal_icu),
    "ICU, gamma multiplied": ("gaussian", partial(icu.icu_multiplied, **MARGINS), partial(literal_icu, gamma_is_added=False)),
    "ICU, summed": ("gaussian", partial(icu.icu, **MARGINS, dimensions="sum"), partial(literal_icu, dimensions="sum")),
    "ICU, detached": ("gaussian", partial(icu.icu_detached, **MARGINS), literal_icu),
    "ICU, per sample": ("gaussian", partial(icu.icu_per_sample, **MARGINS), partial(literal_icu, per_sample=True)),
    "3c24b06": ("quadratic", partial(icu.icu_as_released, alpha=ALPHA, beta=GAMMA, weight=ONE), literal_released),
    "254170f": ("centres", partial(icu.icu_as_first_released, alpha=ALPHA, weight=ONE), literal_first_released),
    "center": ("moving", partial(icu.icu_center, weight=ONE), literal_center),
    "L-Softmax": ("unbiased", partial(icu.icu_l_softmax, m=4, base=100.0, least=2.0, epochs=8),
                  partial(literal_l_softmax, share=100.0)),
    "L-GM": ("centres", partial(icu.icu_l_gm, alpha=ALPHA, factor=2.0, every=5.0, most=0.7, weight=ONE), literal_l_gm),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_is_its_equation(name):
    kind, loss, literal = CASES[name]
    for seed in range(3):
        outputs, labels, context = make(kind, seed)
        found = loss(outputs, labels, context)
        torch.testing.assert_close(found, torch.tensor(literal(outputs, labels), dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_names_of_classes_and_places_in_the_batch_do_not_matter(name):
    kind, loss, _ = CASES[name]
    outputs, labels, context = make(kind)
    order = torch.tensor([2, 4, 0, 3, 1])
    renamed = Outputs(outputs.logits[:, order], outputs.features, None, {n: t[..., order] for n, t in outputs.head.items()})
    plain = loss(outputs, labels, context)
    torch.testing.assert_close(loss(renamed, torch.argsort(order)[labels], context._replace(counts=context.counts[order])), plain)
    places = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    moved = outputs._replace(logits=outputs.logits[places], features=outputs.features[places])
    torch.testing.assert_close(loss(moved, labels[places], context), plain[places])


@pytest.mark.parametrize("name", CASES)
def test_runs_side_by_side_get_what_they_get_alone(name):
    kind, loss, _ = CASES[name]
    each = [make(kind, seed) for seed in range(3)]
    outputs = [e[0] for e in each]
    heads = {n: torch.stack([o.head[n] for o in outputs]) for n in outputs[0].head}
    packed = Outputs(torch.stack([o.logits for o in outputs]), torch.stack([o.features for o in outputs]), None, heads)
    labels = torch.stack([e[1] for e in each])
    found = loss(packed, labels, each[0][2])
    assert found.shape == labels.shape
    for i, (alone, y, context) in enumerate(each):
        torch.testing.assert_close(found[i], loss(alone, y, context))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_also_at_the_origin(name):
    kind, loss, _ = CASES[name]
    for zero in (False, True):
        outputs, labels, context = make(kind)
        head = HEADS[kind]()
        with torch.no_grad():
            for n, tensor in head.tensors().items():
                tensor.copy_(outputs.head[n][None])
        x = (outputs.features * (not zero)).float()[None].requires_grad_()
        single = Context(*(t.float() for t in context[:2]))
        loss(Outputs(head(x), x, None, head.tensors()), labels[None], single).mean().backward()
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
        assert zero or head.weight.grad.abs().sum() > 0


# ---------------------------------------------------------------- Eqs. (14) to (16): the regulariser


def regulariser_terms(seed: int = 0):
    outputs, labels, _ = make("gaussian", seed)
    mu, sigma = outputs.head["weight"].clone().requires_grad_(), (outputs.head["log_variances"] / 2).exp().requires_grad_()
    member = icu.members(outputs.logits, labels)
    return outputs.features, mu, sigma, member


def test_gradients_of_equations_15_and_16_with_the_sign_that_differentiation_gives():
    """Eq. (15) prints a plus before 4 eta_2; differentiating Eq. (14) with Eq. (13) gives a minus. Of the sum over dimensions;
    the gradients of the mean are these over their number."""
    x, mu, sigma, member = regulariser_terms()
    icu.icu_regulariser(x, mu, sigma ** 2, member, ONE, TWO, "mean").backward()
    for parameter in (mu, sigma):
        parameter.grad *= WIDTH
    n, mean, deviation = icu.icu_moments(x, mu.detach(), member)
    there, gap = (n > 0).double(), sigma.detach() ** 2 - deviation
    as_printed, mended = ((2 * ONE + sign * 4 * TWO * gap) * (mu.detach() - mean) * there for sign in (1, -1))
    torch.testing.assert_close(mu.grad, mended)
    torch.testing.assert_close(sigma.grad, 4 * TWO * gap * sigma.detach() * there)  # Eq. (16)
    assert (mu.grad - as_printed).abs().max() > 0.1


def test_the_regulariser_draws_means_variances_and_features_which_one_form_takes_as_constants():
    outputs, labels, context = make("gaussian")
    weights = {**MARGINS, "lambda_mu": 50.0}
    for loss, draws in ((icu.icu, True), (icu.icu_multiplied, True), (icu.icu_detached, False), (icu.icu_per_sample, True)):
        x, head = outputs.features.clone().requires_grad_(), {n: t.clone().requires_grad_() for n, t in outputs.head.items()}
        loss(outputs._replace(features=x, head=head), labels, context, **weights).mean().backward()  # the logits are given
        assert all(tensor.grad.abs().max() > 1e-3 for tensor in head.values())
        assert (x.grad is not None and float(x.grad.abs().max()) > 1e-3) == draws


def test_a_class_that_is_absent_contributes_nothing():
    x, mu, sigma, member = regulariser_terms()
    value = icu.icu_regulariser(x, mu, sigma ** 2, member, ONE, TWO, "sum")
    value.backward()
    assert mu.grad[:, ABSENT].abs().max() == 0
    assert sigma.grad[:, ABSENT].abs().max() == 0
    with torch.no_grad():
        mu[:, ABSENT] += 100
        assert icu.icu_regulariser(x, mu, sigma ** 2, member, ONE, TWO, "sum") == value


def test_the_regulariser_is_zero_at_the_moments_of_the_batch():
    """Eqs. (10) to (13): at the maximum of the likelihood."""
    x, mu, _, member = regulariser_terms()
    with torch.no_grad():
        n, mean, _ = icu.icu_moments(x, mu, member)
        _, _, deviation = icu.icu_moments(x, mean, member)
        assert float(icu.icu_regulariser(x, mean, deviation, member, 1.0, 1.0, "sum")) == pytest.approx(0, abs=1e-20)
        for k in set(range(CLASSES)) - {ABSENT}:
            mine = x[member[:, k] > 0]
            assert n[0, k] == len(mine)
            torch.testing.assert_close(mean[:, k], mine.mean(0))
            torch.testing.assert_close(deviation[:, k], mine.var(0, correction=0))


# ---------------------------------------------------------------- closed forms


def one_dimension(x: float, means: list[float], variances: list[float]) -> Outputs:
    tensors = {"weight": torch.tensor([means], dtype=torch.float64), "log_variances": torch.tensor([variances]).double().log()}
    head = GaussianHead(1, 1, len(means)).double()
    features = torch.tensor([[x]], dtype=torch.float64)
    with torch.no_grad():
        z = torch.func.functional_call(head, {n: t[None] for n, t in tensors.items()}, (features[None],))[0]
    return Outputs(z, features, None, tensors)


CONTEXT = Context(torch.ones(2, dtype=torch.float64), torch.zeros((), dtype=torch.float64))
FIRST = torch.tensor([0])


def test_a_case_worked_out_by_hand():
    """x = 1, means 0 and 2, variances 1 and 4: d = 1/2 and (1/4 + ln 4) / 2 = 0.818147. Of class 0: -ln of
    1 / (1 + e^(0.5 - 0.818147)) = 0.546673, and 0.1 (0 - 1)^2 + 0.1 (1 - 1)^2. With alpha = 0.5 and gamma = 1 the own distance
    is 1.5 (1/2 + ln 2 / 2) = 1.269860, and the first term ln(1 + e^(1.269860 - 0.818147)) = 0.944295."""
    outputs = one_dimension(1.0, [0.0, 2.0], [1.0, 4.0])
    assert outputs.logits[0].tolist() == pytest.approx([-0.5, -0.818147], abs=1e-6)
    plain = icu.icu(outputs, FIRST, CONTEXT, alpha=0.0, gamma=0.0, lambda_mu=0.1, lambda_sigma=0.1)
    assert float(plain) == pytest.approx(0.546673 + 0.1, abs=1e-6)
    margins = icu.icu(outputs, FIRST, CONTEXT, alpha=0.5, gamma=1.0, lambda_mu=0.0, lambda_sigma=0.0)
    assert float(margins) == pytest.approx(0.944295, abs=1e-6)


def test_with_unit_variances_and_no_margins_it_is_the_squared_distance_classifier():
    outputs, labels, context = make("centres")
    unit = {**outputs.head, "log_variances": torch.zeros_like(outputs.head["weight"])}
    torch.testing.assert_close(score("gaussian", unit, outputs.features), outputs.logits)
    squares = ((outputs.features[:, None] - outputs.head["weight"].T) ** 2).sum(-1)
    found = icu.icu(outputs._replace(head=unit), labels, context, alpha=0.0, gamma=0.0, lambda_mu=0.0, lambda_sigma=0.0)
    torch.testing.assert_close(found, cross_entropy(-squares / 2, labels))
    torch.testing.assert_close(found, icu.icu_l_gm(outputs, labels, context, alpha=0.0, factor=1.0, every=1.0, most=0.0,
                                                    weight=0.0))


def gap(x: float, means: list[float], variances: list[float]) -> float:
    z = one_dimension(x, means, variances).logits[0]
    return float(z[0] - z[1])


def test_two_gaussians_are_told_apart_where_their_densities_cross():
    """Unlike under L-GM, whose distances leave the log-determinants out (section 2)."""
    means, variances = [0.0, 3.0], [1.0, 4.0]
    def densities(x):
        return norm.logpdf(x, 0, 1) - norm.logpdf(x, 3, 2)
    crossing = brentq(densities, 0, 3)
    assert crossing == pytest.approx(math.sqrt(4 + 8 * math.log(2) / 3) - 1)  # of x^2 / 2 = (x - 3)^2 / 8 + ln 2
    assert brentq(gap, 0, 3, args=(means, variances)) == pytest.approx(crossing, abs=1e-9)
    other = brentq(densities, -10, 0)  # the wide class wins on the far side too
    assert brentq(gap, -10, 0, args=(means, variances)) == pytest.approx(other, abs=1e-9)
    assert (1 - 0) ** 2 / 1 == (1 - 3) ** 2 / 4  # where L-GM would tell them apart
    assert abs(crossing - 1) > 0.4


def test_between_two_centroids_the_class_of_smaller_uncertainty_wins():
    """Section 3.3, Eq. (21): at one Mahalanobis distance, class 0 wins if sigma_1^2 > (1 + gamma) sigma_0^2."""
    for ratio, wins in ((1.19, False), (1.21, True)):
        variances = [1.0, ratio]
        x = 1 / (1 + math.sqrt(ratio))  # between means 0 and 1
        z = one_dimension(x, [0.0, 1.0], variances).logits
        own = float(icu.icu_own_distance(z, FIRST, 0.2))
        assert (own < -float(z[0, 1])) == wins


def test_an_added_gamma_always_hurts_the_own_class_a_multiplied_one_helps_small_variances():
    for variance, helps in ((0.1, True), (10.0, False)):
        outputs = one_dimension(0.3, [0.0, 1.0], [variance, 1.0])
        plain = -float(outputs.logits[0, 0])
        assert float(icu.icu_own_distance(outputs.logits, FIRST, 0.5)) > plain
        multiplied = float(icu.icu_own_distance_multiplied(outputs.logits, FIRST, outputs.head["log_variances"], 0.5))
        assert (multiplied < plain) == helps


def test_the_released_classifier_is_linear_and_the_written_one_is_not():
    """The released square of x is one number for all classes, so that the differences between logits have no curvature."""
    for kind, is_linear in (("quadratic", True), ("gaussian", False)):
        outputs, _, _ = make(kind)
        a, b = outputs.features[:6], outputs.features[6:]
        bend = score(kind, outputs.head, a) + score(kind, outputs.head, b) - 2 * score(kind, outputs.head, (a + b) / 2)
        between = (bend - bend[:, :1]).abs().max()
        assert (between < 1e-9) == is_linear


# ---------------------------------------------------------------- the losses beside it


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_angle_margin_is_its_definition_and_falls(m):
    theta = torch.linspace(0.001, math.pi - 0.001, 500, dtype=torch.float64)
    found = icu.icu_angle_margin(theta.cos(), m)
    assert found.tolist() == pytest.approx([literal_psi(t, m) for t in theta.tolist()], abs=1e-9)
    assert (found.diff() < 0).all()
    ends = icu.icu_angle_margin(torch.tensor([1.0, -1.0], dtype=torch.float64), m)
    assert ends.tolist() == pytest.approx([1, 1 - 2 * m])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_angle_margin_agrees_with_a_public_library():
    library = pytest.importorskip("pytorch_metric_learning.losses")
    outputs, labels, context = make("unbiased")
    theirs = library.LargeMarginSoftmaxLoss(CLASSES, WIDTH, margin=4, scale=1).double()
    theirs.W.data = outputs.head["weight"].clone()
    found = icu.icu_l_softmax(outputs, labels, context._replace(epoch=torch.tensor(1e6)), m=4, base=1000.0, least=0.0, epochs=10)
    assert float(found.mean()) == pytest.approx(float(theirs(outputs.features, labels).detach()), rel=1e-6)


def test_annealing_goes_from_plain_softmax_to_the_margin():
    outputs, labels, context = make("unbiased")
    plain = cross_entropy(outputs.logits, labels)
    for least, epoch, share in ((0.0, 0.0, 1000.0), (0.0, 5.0, 1.0), (0.0, 10.0, 0.001), (5.0, 5.0, 5.0)):
        found = icu.icu_l_softmax(outputs, labels, context._replace(epoch=torch.tensor(epoch).double()), m=4, base=1000.0,
                                  least=least, epochs=10)
        wanted = literal_l_softmax(outputs, labels, share)
        assert found.tolist() == pytest.approx(wanted, rel=1e-9), (least, epoch)
    start = icu.icu_l_softmax(outputs, labels, context, m=4, base=1e9, least=0.0, epochs=10)
    torch.testing.assert_close(start, plain, rtol=1e-6, atol=1e-6)


def test_alpha_of_l_gm_grows_up_to_its_limit():
    """On CIFAR-100: 0.1, from 5,000 iterations on 0.2, from 10,000 on 0.3. On MNIST: 0.001, three times as much after every
    1,000 iterations of 64 images, 0.1 from 5,000 on."""
    outputs, labels, context = make("centres")
    own = outputs.logits.gather(1, labels[:, None])[:, 0]
    on_cifar, on_mnist = ({n: getattr(PARAMS.baselines.l_gm[d], n) for n in ("alpha", "factor", "every", "most")}
                          for d in ("cifar100", "mnist"))
    cases = [(on_cifar, *case) for case in ((0, 0.1), (12, 0.1), (13, 0.2), (25, 0.2), (26, 0.3), (306, 0.3))]
    cases += [(on_mnist, *case) for case in ((1, 0.001), (2, 0.003), (3, 0.009), (4, 0.027), (5, 0.081), (6, 0.1), (9, 0.1))]
    for values, epoch, alpha in cases:
        found = icu.icu_l_gm(outputs, labels, context._replace(epoch=torch.tensor(float(epoch)).double()), **values, weight=0.0)
        z = outputs.logits.scatter(1, labels[:, None], ((1 + alpha) * own)[:, None])
        torch.testing.assert_close(found, cross_entropy(z, labels))
