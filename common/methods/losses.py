"""Losses and margins that two or more papers use.

A loss maps (outputs, labels, context) to per-sample values: logits [..., batch, classes] in float32 or float64,
labels [..., batch] (int64), values [..., batch]. It draws nothing, moves nothing, reads no global state and never
synchronises. Only tensor methods are used, so this file, and a plan of runs, load without torch. Where a method has
extra samplers, labels are [..., streams, batch] and outputs have that axis too.

n_j: training images of class j; s: scale of the cosine logits; m_j: margin of class j.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from common.methods.method import Context, Outputs


def target(z: "Tensor", y: "Tensor") -> "Tensor":
    """z_y: the entry of each sample's own class. [..., batch, classes], [..., batch] -> [..., batch]."""
    return z.gather(-1, y.unsqueeze(-1)).squeeze(-1)


def largest_other(z: "Tensor", y: "Tensor") -> "Tensor":
    """max_{j != y} z_j. [..., batch, classes], [..., batch] -> [..., batch]."""
    return z.scatter(-1, y.unsqueeze(-1), float("-inf")).amax(-1)


def shift_target(z: "Tensor", y: "Tensor", margin: "Tensor") -> "Tensor":
    """z with `margin` [..., batch] taken from each sample's own class."""
    return z.scatter_add(-1, y.unsqueeze(-1), -margin.unsqueeze(-1))


def cross_entropy(z: "Tensor", y: "Tensor") -> "Tensor":
    """-log softmax(z)_y. [..., batch, classes], [..., batch] -> [..., batch]."""
    return -target(z.log_softmax(-1), y)


def softmax_cross_entropy(outputs: "Outputs", labels: "Tensor", context: "Context") -> "Tensor":
    """Softmax cross-entropy on the logits as they are."""
    return cross_entropy(outputs.logits, labels)


def softplus(x: "Tensor") -> "Tensor":
    """log(1 + e^x), which is -log sigmoid(-x), and its slope sigmoid(x), both right at either end and at 0."""
    return x.logaddexp(x.new_zeros(()))


def log_odds_against(z: "Tensor", y: "Tensor") -> "Tensor":
    """log((1 - p_y) / p_y) with softmax p, from the other classes' own sum, so that it is exact where p_y rounds to 1:
    -log p_y is the softplus of it, -log(1 - p_y) that of its negative. [..., batch, classes] -> [..., batch]."""
    return z.scatter(-1, y.unsqueeze(-1), float("-inf")).logsumexp(-1) - target(z, y)


def focal(outputs: "Outputs", labels: "Tensor", context: "Context", *, gamma: float) -> "Tensor":
    """(1 - p_y)^gamma * -log p_y with softmax p (Lin et al., 2017; softmax form of the LDAM code).

    The power is taken of the logarithm: the slope of x^gamma itself is infinite at 0 where gamma < 1.
    """
    against = log_odds_against(outputs.logits, labels)
    return (-gamma * softplus(-against)).exp() * softplus(against)


def focal_detached(outputs: "Outputs", labels: "Tensor", context: "Context", *, gamma: float) -> "Tensor":
    """(1 - p_y)^gamma * -log p_y with the factor (1 - p_y)^gamma as a constant for the gradient, as several released
    codes have it."""
    against = log_odds_against(outputs.logits, labels)
    return (-gamma * softplus(-against.detach())).exp() * softplus(against)


def sigmoid_focal(outputs: "Outputs", labels: "Tensor", context: "Context", *, gamma: float) -> "Tensor":
    """Sum over the classes of (1 - p_t)^gamma * -log p_t, one sigmoid a class (Cui et al., 2019).

    With t = +1 for the sample's class and -1 for the others, p_t = sigmoid(t z).
    """
    z = outputs.logits
    t = z.new_full(z.shape, -1.0).scatter(-1, labels.unsqueeze(-1), 1.0)
    return ((-gamma * softplus(t * z)).exp() * softplus(-t * z)).sum(-1)


def ldam_margins(counts: "Tensor", largest: float) -> "Tensor":
    """m_j = C / n_j^(1/4), with C such that the smallest class has margin `largest` (Cao et al., 2019). [classes]."""
    return largest * (counts / counts.min()) ** -0.25


def ldam(outputs: "Outputs", labels: "Tensor", context: "Context", *, s: float, largest: float) -> "Tensor":
    """Cross-entropy of s * (cos_j - m_j [j = y]) with the label-distribution-aware margins (Cao et al., 2019)."""
    margin = ldam_margins(context.counts, largest)[labels]
    return cross_entropy(s * shift_target(outputs.logits, labels, margin), labels)


def uniform_margin(outputs: "Outputs", labels: "Tensor", context: "Context", *, s: float, m: float) -> "Tensor":
    """Cross-entropy of s * (cos_j - m [j = y]): one margin for all classes."""
    margin = labels.new_full(labels.shape, m, dtype=outputs.logits.dtype)
    return cross_entropy(s * shift_target(outputs.logits, labels, margin), labels)


def hinge(outputs: "Outputs", labels: "Tensor", context: "Context", *, s: float, m: float) -> "Tensor":
    """s * max(max_{j != y} cos_j - cos_y + m, 0)."""
    z = outputs.logits
    return s * (largest_other(z, labels) - target(z, labels) + m).clamp(min=0)


def ldam_hinge(outputs: "Outputs", labels: "Tensor", context: "Context", *, s: float, largest: float) -> "Tensor":
    """s * max(max_{j != y} cos_j - cos_y + m_y, 0) with the label-distribution-aware margins."""
    z, margin = outputs.logits, ldam_margins(context.counts, largest)[labels]
    return s * (largest_other(z, labels) - target(z, labels) + margin).clamp(min=0)


def arcface(outputs: "Outputs", labels: "Tensor", context: "Context", *, s: float, m: float) -> "Tensor":
    """Cross-entropy of s * cos(theta_j + m [j = y]) (Deng et al., 2019); CosFace is `uniform_margin`.

    Beyond theta_y + m = pi the cosine would rise again; there the target is cos theta_y - m sin m, as in the released code.
    """
    cos = target(outputs.logits, labels)
    sin = (1 - cos * cos).clamp(min=1e-7).sqrt()  # the floor bounds the slope, which is infinite at theta = 0
    moved = cos * math.cos(m) - sin * math.sin(m)
    moved = moved.where(cos >= -math.cos(m), cos - m * math.sin(m))
    return cross_entropy(s * shift_target(outputs.logits, labels, cos - moved), labels)


def equalization(outputs: "Outputs", labels: "Tensor", context: "Context", *, rate: float, threshold: float) -> "Tensor":
    """-log(exp z_y / sum_j w_j exp z_j), w_j = 1 - b_j [n_j / n < threshold] [j != y], b_j = 1 with probability `rate`
    (Tan et al., 2020, softmax form): rare classes are spared most of the time where they are not the label.

    Needs uniform noise: b is drawn for each sample and class.
    """
    frequency = context.counts / context.counts.sum()
    spared = (context.noise < rate) & (frequency < threshold)
    spared = spared.scatter(-1, labels.unsqueeze(-1), False)
    return cross_entropy(outputs.logits.masked_fill(spared, float("-inf")), labels)


def logit_adjusted(outputs: "Outputs", labels: "Tensor", context: "Context", *, tau: float) -> "Tensor":
    """Cross-entropy of z_j + log(pi_j^tau + 1e-12), pi the class frequencies (Menon et al., 2021).

    With tau = 1 this is balanced softmax (Ren et al., 2020): z_j + log n_j, up to a constant.
    """
    prior = context.counts / context.counts.sum()
    return cross_entropy(outputs.logits + (prior ** tau + 1e-12).log(), labels)


def lade(outputs: "Outputs", labels: "Tensor", context: "Context", *, alpha: float, strength: float) -> "Tensor":
    """Cross-entropy of z_j + log pi_j, and alpha times LADE's regulariser (Hong et al., 2021), which is one number a batch:
    -sum_c pi_c (mean_{i: y_i = c} z_ic - l_c - strength l_c^2), l_c = log mean_i exp(z_ic - log pi_c - log C).

    Every sample's value has it added, so the mean over the batch is the loss. The batch is all of what is handed in; the
    mean of a class without a sample is 0, as in the released code.
    """
    z, log_prior = outputs.logits, (context.counts / context.counts.sum()).log()
    member = z.new_zeros(z.shape).scatter(-1, labels.unsqueeze(-1), 1.0)
    mean = (member * z).sum(-2) / member.sum(-2).clamp(min=1)
    level = (z - log_prior - math.log(z.shape[-1])).logsumexp(-2) - math.log(z.shape[-2])
    regulariser = -(log_prior.exp() * (mean - level - strength * level ** 2)).sum(-1, keepdim=True)
    return cross_entropy(z + log_prior, labels) + alpha * regulariser


def meta_embedding(outputs: "Outputs", labels: "Tensor", context: "Context", *, s: float, share: float = 0.01,
                   repel: float = 0.01, margin: float = 10.0) -> "Tensor":
    """Cross-entropy of s z, and `share` times the centroid loss of OLTR (Liu et al., 2019) on the features x:
    1/(2N) sum_i |x_i - c_{y_i}|^2 + repel * max(margin - 1/(NC) sum_i sum_{j != y_i} |x_i - c_j|^2, 0).

    The second term is one number a batch and is added to every sample's value, so the mean over the batch is the loss. As
    in the released code, what the first term tells the centroids is the slope of sum_i |x_i - c_{y_i}|^2 / (2N (1 + n)),
    n images of the class in the batch, without `share`. Needs a memory head's centroids [..., width, classes].
    """
    x, c = outputs.features, outputs.head["centroids"]
    own = c.transpose(-1, -2).gather(-2, labels.unsqueeze(-1).expand(x.shape))
    squares = (x ** 2).sum(-1, keepdim=True) + (c ** 2).sum(-2, keepdim=True) - 2 * x @ c
    far = squares.scatter(-1, labels.unsqueeze(-1), 0.0).mean((-2, -1)).unsqueeze(-1)
    near = ((x - own.detach()) ** 2).sum(-1) / 2
    together = (labels.unsqueeze(-1) == labels.unsqueeze(-2)).sum(-1)
    pull = ((x.detach() - own) ** 2).sum(-1) / (2 * (1 + together))
    feature_loss = near + repel * (margin - far).clamp(min=0)
    return cross_entropy(s * outputs.logits, labels) + share * feature_loss + (pull - pull.detach())


def label_aware_smoothing(outputs: "Outputs", labels: "Tensor", context: "Context", *, head: float, tail: float) -> "Tensor":
    """(1 - e_y) * -log p_y + e_y * mean_j -log p_j (Zhong et al., 2021), with
    e_c = tail + (head - tail) sin(pi / 2 (n_c - n_min) / (n_max - n_min))."""
    n = context.counts
    place = (n - n.min()) / (n.max() - n.min()).clamp(min=1)
    e = (tail + (head - tail) * (math.pi / 2 * place).sin())[labels]
    log_p = outputs.logits.log_softmax(-1)
    return -(1 - e) * target(log_p, labels) - e * log_p.mean(-1)


def supervised_contrast(f: "Tensor", y: "Tensor", temperature: float) -> "Tensor":
    """-1 / |P(i)| sum_{p in P(i)} log(exp(f_i f_p / T) / sum_{a != i} exp(f_i f_a / T)), P(i) the others of label y_i
    (Khosla et al., 2020). f is brought to unit length. [..., batch, width], [..., batch] -> [..., batch]."""
    f = f / f.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    similarity = f @ f.transpose(-1, -2) / temperature
    own = similarity.new_ones(similarity.shape[-1]).diag_embed().bool()
    log_p = similarity - similarity.masked_fill(own, float("-inf")).logsumexp(-1, keepdim=True)
    positive = (y.unsqueeze(-1) == y.unsqueeze(-2)) & ~own
    return -(log_p * positive).sum(-1) / positive.sum(-1).clamp(min=1)


# ---------------------------------------------------------------- of several streams: labels [..., streams, batch]


def falling_share(epoch: "Tensor", epochs: int) -> "Tensor":
    """l = 1 - (epoch / epochs)^2: from 1 to nearly 0, as a parabola."""
    return 1 - (epoch / epochs) ** 2


def hybrid_contrastive(outputs: "Outputs", labels: "Tensor", context: "Context", *, temperature: float,
                       epochs: int) -> "Tensor":
    """l * supervised contrast of two views (streams 0 and 1; a sample's value is the mean over its views) + (1 - l) *
    cross-entropy of the balanced stream 2, with l as in `falling_share` (Hybrid-SC, Wang et al., 2021).

    No official code is known to us, and that paper's text is not in our sources: the structure and its settings are from
    memory of the literature.
    """
    views, y = outputs.projected[..., :2, :, :], labels[..., :2, :]
    contrast = supervised_contrast(views.flatten(-3, -2), y.flatten(-2), temperature).unflatten(-1, y.shape[-2:]).mean(-2)
    balanced = cross_entropy(outputs.logits[..., 2, :, :], labels[..., 2, :])
    share = falling_share(context.epoch, epochs)
    return share * contrast + (1 - share) * balanced


def cumulative(features: "Tensor", context: "Context", *, epochs: int) -> "Tensor":
    """[2 l f_a ; 2 (1 - l) f_b] of the features of two branches (BBN, Zhou et al., 2020), l as in `falling_share`.
    [..., 2, batch, width] -> [..., batch, 2 width]."""
    share = falling_share(context.epoch, epochs)
    shares = (share - share.new_ones(2).cumsum(0) + 1).abs()  # |l - 0|, |l - 1|: made on the device, without torch's name
    return (2 * shares[:, None, None] * features).movedim(-3, -2).flatten(-2)


def bilateral(outputs: "Outputs", labels: "Tensor", context: "Context", *, epochs: int) -> "Tensor":
    """l CE(z, y_a) + (1 - l) CE(z, y_b) on the logits of the combined features (BBN). labels [..., 2, batch] -> [..., batch]."""
    share, log_p = falling_share(context.epoch, epochs), outputs.logits.log_softmax(-1)
    return -share * target(log_p, labels[..., 0, :]) - (1 - share) * target(log_p, labels[..., 1, :])
