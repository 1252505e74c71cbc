"""OLTR's classifier (Liu et al., 2019): features that a memory of class centroids enriches, packed over runs.

The modulated attention, which OLTR puts on the last maps of its backbone, and its layer of 512 features behind the pool are
not built: this head sees the features that every other head sees.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.heads import PackedHead

REACH = 10.0  # reachability is REACH / distance to the nearest centroid
NEAR = 1e-6  # the least such distance: a feature may be a centroid
FROM_FIRST = {"recall": "weight", "recall_bias": "bias"}  # parameters that begin as those of the first stage's linear head


class MemoryHead(PackedHead):
    """Squashed cosines |u| / (1 + |u|) cos(u, w_c) of u = reach (x + selector * memory), unscaled, where memory =
    sum_j softmax(recall(x))_j c_j, selector = tanh(select(x)) and reach = 10 / min_j |x - c_j|.

    The centroids c_j are parameters [runs, width, classes], 0 until `class_means` are put there; the loss alone moves them,
    the logits see them as constants. Weights and biases of all layers uniform(+-1 / sqrt(width)).
    """

    def __init__(self, runs: int, width: int, classes: int):
        super().__init__(runs, width, classes)
        self.recall, self.recall_bias = (nn.Parameter(torch.empty(runs, n, classes)) for n in (width, 1))
        self.select, self.select_bias = (nn.Parameter(torch.empty(runs, n, width)) for n in (width, 1))
        self.centroids = nn.Parameter(torch.zeros(runs, width, classes))

    def factor(self, name: str, rate: float) -> float:
        """The centroids keep the setting's own rate."""
        return 1.0 if name == "centroids" else rate

    def draw(self, run: int, generator: torch.Generator) -> None:
        for parameter in (self.weight, self.recall, self.recall_bias, self.select, self.select_bias):
            drawn = torch.rand(parameter[run].shape, generator=generator) * 2 - 1
            parameter[run].copy_(drawn / math.sqrt(self.weight.shape[1]))

    def scored(self, features: Tensor) -> Tensor:
        """u / (1 + |u|), which has direction and squashed length of the enriched feature u."""
        centroids = self.centroids.detach().transpose(1, 2)
        memory = torch.bmm(torch.baddbmm(self.recall_bias, features, self.recall).softmax(-1), centroids)
        selector = torch.baddbmm(self.select_bias, features, self.select).tanh()
        enriched = reachability(features, centroids) * (features + selector * memory)
        return enriched / (1 + enriched.norm(dim=-1, keepdim=True))

    def logits(self, features: Tensor) -> Tensor:
        return torch.bmm(self.scored(features), F.normalize(self.weight, dim=1))


def reachability(features: Tensor, centroids: Tensor) -> Tensor:
    """10 / distance to the nearest centroid: [runs, batch, width], [runs, classes, width] -> [runs, batch, 1]."""
    with torch.no_grad():  # squares without |x|^2, which all classes share
        nearest = ((centroids**2).sum(-1).unsqueeze(1) - 2 * torch.bmm(features, centroids.transpose(1, 2))).argmin(-1)
    near = centroids.gather(1, nearest.unsqueeze(-1).expand(features.shape))
    return REACH / (features - near).norm(dim=-1, keepdim=True).clamp(min=NEAR)


@torch.no_grad()
def class_means(batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> Tensor:
    """Mean feature of each class, float64 [runs, width, classes], of batches of features [runs, n, width] and labels [n]; of a
    class without an image 0."""
    total, counts = 0.0, 0.0
    for features, labels in batches:
        member = F.one_hot(labels, classes).double()
        total, counts = total + features.double().transpose(1, 2) @ member, counts + member.sum(0)
    return total / counts.clamp(min=1)
