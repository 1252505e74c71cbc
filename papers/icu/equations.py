"""The losses of the ICU paper and of its released code, and of those that it compares with.

x: features [..., batch, width]; y: labels z_i [..., batch]; z: logits [..., batch, classes]; K: classes; mu_k, Sigma_k =
diag(sigma_k^2): mean and covariance of class k. The head holds mu as `weight` and ln sigma^2 as `log_variances`, both
[..., width, classes], and its logits are -d_k. A term of the whole batch is added to every sample, so that their mean is the
loss. Only tensor methods are used, so that a plan of runs needs no torch.
"""

import math
from typing import TYPE_CHECKING

from common.methods.losses import cross_entropy, shift_target, target
from common.methods.method import Context, Outputs

if TYPE_CHECKING:
    from torch import Tensor


def replace_target(z: "Tensor", y: "Tensor", value: "Tensor") -> "Tensor":
    """z with `value` [..., batch] in the place of each sample's own class."""
    return shift_target(z, y, target(z, y) - value)


def members(z: "Tensor", y: "Tensor") -> "Tensor":
    """1 where a sample is of the class, else 0. [..., batch, classes]."""
    return z.new_zeros(z.shape).scatter(-1, y.unsqueeze(-1), 1.0)


def from_own(x: "Tensor", anchors: "Tensor", member: "Tensor") -> "Tensor":
    """x_i - a_y of each sample's own class. [..., batch, width]; anchors [..., width, classes]."""
    return x - member @ anchors.transpose(-1, -2)


# ---------------------------------------------------------------- Eq. (8) with Eqs. (12) to (14) and (17) to (19): ICU


def icu_own_distance(z: "Tensor", y: "Tensor", gamma: float) -> "Tensor":
    """Eq. (18): d_y = [(x - mu_y)' Sigma_y^-1 (x - mu_y) + ln((1 + gamma) |Sigma_y|)] / 2, which is -z_y + ln(1 + gamma) / 2.

    The text prints ln(1 + gamma)|Sigma|; with the factor inside the logarithm it gives Eq. (21).
    """
    return math.log(1 + gamma) / 2 - target(z, y)


def icu_own_distance_multiplied(z: "Tensor", y: "Tensor", log_variances: "Tensor", gamma: float) -> "Tensor":
    """The other reading of Eq. (18): (1 + gamma) ln |Sigma_y|. Where |Sigma_y| < 1 this margin helps the own class."""
    log_determinants = log_variances.sum(-2, keepdim=True).expand(z.shape)
    return gamma / 2 * target(log_determinants, y) - target(z, y)


def icu_classification(z: "Tensor", y: "Tensor", d_y: "Tensor", alpha: float) -> "Tensor":
    """Eq. (17): cross-entropy of -d_k, with (1 + alpha) d_y for a sample's own class. [..., batch]."""
    return cross_entropy(replace_target(z, y, -(1 + alpha) * d_y), y)


def icu_moments(x: "Tensor", mu: "Tensor", member: "Tensor") -> tuple["Tensor", "Tensor", "Tensor"]:
    """Eqs. (12) and (13) for every class of the batch: its number of samples N_k [..., 1, classes], their mean and their mean
    squared deviation from mu_k, for each dimension by itself [..., width, classes]; 0 where N_k is 0."""
    n = member.sum(-2, keepdim=True)
    share = member / n.clamp(min=1)
    return n, x.transpose(-1, -2) @ share, (from_own(x, mu, member) ** 2).transpose(-1, -2) @ share


def icu_regulariser(x: "Tensor", mu: "Tensor", variances: "Tensor", member: "Tensor", lambda_mu: float, lambda_sigma: float,
                    dimensions: str) -> "Tensor":
    """Eq. (14): sum of lambda_mu |mu_k - mean_k|^2 + lambda_sigma |sigma_k^2 - deviation_k|^2 over the batch's classes k. [...].

    dimensions: whether |.|^2 is the "sum" of the squares over the dimensions, or their "mean".
    """
    n, mean, deviation = icu_moments(x, mu, member)
    terms = lambda_mu * (mu - mean) ** 2 + lambda_sigma * (variances - deviation) ** 2
    squares = terms.mean(-2) if dimensions == "mean" else terms.sum(-2)
    return (squares * (n > 0).squeeze(-2)).sum(-1)


def _regulariser(outputs: Outputs, labels: "Tensor", lambda_mu: float, lambda_sigma: float, dimensions: str) -> "Tensor":
    """Eq. (14) of the features with what the head holds, [..., 1]."""
    mu, variances = outputs.head["weight"], outputs.head["log_variances"].exp()
    member = members(outputs.logits, labels)
    return icu_regulariser(outputs.features, mu, variances, member, lambda_mu, lambda_sigma, dimensions).unsqueeze(-1)


def icu(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float, gamma: float, lambda_mu: float,
        lambda_sigma: float, dimensions: str = "mean") -> "Tensor":
    """Eq. (8) with the margins of Eqs. (17) and (18). [..., batch].

    |.|^2 of Eq. (14) is a mean over the dimensions (gap): the text does not say, the released code has it, and the "sum" soon
    leaves the finite range where there are many dimensions. Its gradient reaches the features too, as "|mu_k - mean_k|^2 in
    Eq. 14 has the same meaning as the Eq. 3 in center loss" (section 3.2), which draws them.
    """
    d_y = icu_own_distance(outputs.logits, labels, gamma)
    regulariser = _regulariser(outputs, labels, lambda_mu, lambda_sigma, dimensions)
    return icu_classification(outputs.logits, labels, d_y, alpha) + regulariser


def icu_multiplied(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float, gamma: float, lambda_mu: float,
                   lambda_sigma: float, dimensions: str = "mean") -> "Tensor":
    """`icu` with the other reading of Eq. (18)."""
    d_y = icu_own_distance_multiplied(outputs.logits, labels, outputs.head["log_variances"], gamma)
    regulariser = _regulariser(outputs, labels, lambda_mu, lambda_sigma, dimensions)
    return icu_classification(outputs.logits, labels, d_y, alpha) + regulariser


def icu_detached(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float, gamma: float, lambda_mu: float,
                 lambda_sigma: float, dimensions: str = "mean") -> "Tensor":
    """`icu` with the features as constants in Eq. (14), so that means and variances follow the batch and draw no feature: the
    text derives the gradients of mu (Eq. 15) and sigma (Eq. 16) alone."""
    constant = outputs._replace(features=outputs.features.detach())  # the logits keep their gradient
    return icu(constant, labels, context, alpha=alpha, gamma=gamma, lambda_mu=lambda_mu, lambda_sigma=lambda_sigma,
               dimensions=dimensions)


def icu_per_sample(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float, gamma: float, lambda_mu: float,
                   lambda_sigma: float) -> "Tensor":
    """`icu` with the released form of the regulariser: squares and absolute differences of each sample, not of the classes'
    moments, and their mean over samples and dimensions."""
    member, head = members(outputs.logits, labels), outputs.head
    squares = from_own(outputs.features, head["weight"], member) ** 2
    variances = member @ head["log_variances"].exp().transpose(-1, -2)
    d_y = icu_own_distance(outputs.logits, labels, gamma)
    regulariser = lambda_mu * squares.mean(-1) + lambda_sigma * (squares - variances).abs().mean(-1)
    return icu_classification(outputs.logits, labels, d_y, alpha) + regulariser


def icu_multiplied_per_sample(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float, gamma: float,
                              lambda_mu: float, lambda_sigma: float) -> "Tensor":
    """`icu_per_sample` with the margin of `icu_multiplied`: between text and code, whose differences are taken one by one."""
    member, head = members(outputs.logits, labels), outputs.head
    squares = from_own(outputs.features, head["weight"], member) ** 2
    variances = member @ head["log_variances"].exp().transpose(-1, -2)
    d_y = icu_own_distance_multiplied(outputs.logits, labels, head["log_variances"], gamma)
    regulariser = lambda_mu * squares.mean(-1) + lambda_sigma * (squares - variances).abs().mean(-1)
    return icu_classification(outputs.logits, labels, d_y, alpha) + regulariser


# ---------------------------------------------------------------- the released code's two versions


def icu_as_released(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float, beta: float,
                    weight: float) -> "Tensor":
    """Commit 3c24b06, on the quadratic head, whose logits are h_k = g_k + ln|A_k| / 2 with A_k = diag(1 / sigma_k).

    Own class: (1 + alpha) (g_y + (1 + beta) ln|A_y| / 2). Regulariser: for each sample, the means over dimensions of
    (mu_y - x)^2 and of |(mu_y - x)^2 - 1 / A_y^2|, the latter held between 1e-6 and 1e6.
    """
    z, a, member = outputs.logits, outputs.head["inverse_deviations"], members(outputs.logits, labels)
    log_determinants = (a + 1e-10).log().sum(-2, keepdim=True).expand(z.shape)
    own = (1 + alpha) * (target(z, labels) + beta / 2 * target(log_determinants, labels))
    squares = from_own(outputs.features, outputs.head["weight"], member) ** 2
    gaps = (squares - member @ (1 / a ** 2).transpose(-1, -2)).abs().clamp(1e-6, 1e6)
    return cross_entropy(replace_target(z, labels, own), labels) + weight * (squares.mean(-1) + gaps.mean(-1))


def icu_as_first_released(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float, weight: float) -> "Tensor":
    """Commit 254170f, on the head of centres: no variances, -(1 + alpha) |x - mu_y|^2 / 2 for the own class, and `weight` times
    the mean over dimensions of (mu_y - x)^2."""
    z = outputs.logits
    squares = from_own(outputs.features, outputs.head["weight"], members(z, labels)) ** 2
    return cross_entropy(replace_target(z, labels, (1 + alpha) * target(z, labels)), labels) + weight * squares.mean(-1)


# ---------------------------------------------------------------- the losses of Table 1 that it is compared with


def icu_center(outputs: Outputs, labels: "Tensor", context: Context, *, weight: float) -> "Tensor":
    """Eq. (3), center loss (Wen et al., 2016): cross-entropy + weight / 2 |x - c_y|^2. The centres follow the means of the
    features at a rate of their own, beside the optimiser (the head moves them)."""
    away = from_own(outputs.features, outputs.head["centres"], members(outputs.logits, labels))
    return cross_entropy(outputs.logits, labels) + weight / 2 * (away ** 2).sum(-1)


def icu_angle_margin(cos: "Tensor", m: int) -> "Tensor":
    """psi(theta) = (-1)^k cos(m theta) - 2 k for theta in [k pi / m, (k + 1) pi / m], from cos(theta) (Liu et al., 2016)."""
    before, multiple = cos * 0 + 1, cos  # cos(0), cos(theta), and on by the recurrence of Chebyshev's polynomials
    for _ in range(m - 1):
        before, multiple = multiple, 2 * cos * multiple - before
    k = cos * 0
    for i in range(1, m):
        k = k + (cos < math.cos(math.pi * i / m))
    return (1 - 2 * (k % 2)) * multiple - 2 * k


def icu_l_softmax(outputs: Outputs, labels: "Tensor", context: Context, *, m: int, base: float, least: float,
                  epochs: int) -> "Tensor":
    """L-Softmax (Liu et al., 2016): cross-entropy with |w_y| |x| psi(theta_y) for the own class, on a head without bias.

    Annealed: the own logit is (lambda w_y x + |w_y| |x| psi) / (1 + lambda), lambda = max(base^(1 - 2 epoch / epochs), least).
    """
    z = outputs.logits
    norms = outputs.features.norm(dim=-1) * target(outputs.head["weight"].norm(dim=-2).unsqueeze(-2).expand(z.shape), labels)
    cos = (target(z, labels) / norms.clamp(min=1e-12)).clamp(-1, 1)
    share = (math.log(base) * (1 - 2 * context.epoch / epochs)).exp().clamp(min=least)
    own = (share * target(z, labels) + norms * icu_angle_margin(cos, m)) / (1 + share)
    return cross_entropy(replace_target(z, labels, own), labels)


def icu_l_gm(outputs: Outputs, labels: "Tensor", context: Context, *, alpha: float, factor: float, every: float, most: float,
             weight: float) -> "Tensor":
    """Eqs. (4) and (5), L-GM (Wan et al., 2018), with unit covariances: cross-entropy of -d_k with (1 + alpha) d_y for the own
    class, + weight d_y; alpha is multiplied by `factor` every `every` epochs, up to `most`."""
    z = outputs.logits
    alpha = (alpha * (math.log(factor) * (context.epoch / every).floor()).exp()).clamp(max=most)
    return cross_entropy(replace_target(z, labels, (1 + alpha) * target(z, labels)), labels) - weight * target(z, labels)
