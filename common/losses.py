"""Losses and margins that two or more papers use.

A loss maps (outputs, labels, context) to per-sample values: logits [..., batch, classes] in float32 or float64,
labels [..., batch] (int64), values [..., batch]. It draws nothing, moves nothing, reads no global state and never
synchronises. Only tensor methods are used, so this file, and a plan of runs, load without torch.

n_j: training images of class j; s: scale of the cosine logits; m_j: margin of class j.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from common.method import Context, Outputs


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


def focal(outputs: "Outputs", labels: "Tensor", context: "Context", *, gamma: float) -> "Tensor":
    """(1 - p_y)^gamma * -log p_y with softmax p (Lin et al., 2017; softmax form of the LDAM code)."""
    loss = cross_entropy(outputs.logits, labels)
    return (1 - (-loss).exp()) ** gamma * loss


def sigmoid_focal(outputs: "Outputs", labels: "Tensor", context: "Context", *, gamma: float) -> "Tensor":
    """Sum over the classes of (1 - p_t)^gamma * -log p_t, one sigmoid a class (Cui et al., 2019).

    With t = +1 for the sample's class and -1 for the others, p_t = sigmoid(t z).
    """
    z = outputs.logits
    t = z.new_full(z.shape, -1.0).scatter(-1, labels.unsqueeze(-1), 1.0)
    softplus = (-t * z).clamp(min=0) + (-(z.abs())).exp().log1p()
    return ((-gamma * (softplus + t * z)).exp() * softplus).sum(-1)


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
