"""Groups of runs of one method: their head, their labels, and what their loss sees. The same for every engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from torch import Tensor

from common.methods.method import Context, Method, Outputs
from common.models.heads import (
    BalancedHead,
    CausalHead,
    CentreHead,
    CosineHead,
    GaussianHead,
    LinearHead,
    PackedHead,
    QuadraticHead,
)
from common.models.memory import MemoryHead
from common.plan import Run
from common.train.clusters import cluster_counts


@dataclass(frozen=True)
class Group:
    """Consecutive runs [first, stop) of one method. classes: labels of its task; parent: the class of each cluster, where
    the method divides classes, else empty."""

    first: int
    stop: int
    method: Method
    classes: int
    parent: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return self.stop - self.first

    @property
    def outputs(self) -> int:
        """Outputs of the classifier: clusters, or classes."""
        return len(self.parent) or self.classes


def group_runs(members: Sequence[Run], counts: np.ndarray) -> list[Group]:
    """The groups of runs that stand together and have the same method; counts: training images of each class."""
    groups, first = [], 0
    for _, same in groupby(members, key=lambda m: m.spec.method):
        same = list(same)
        method = same[0].method
        parent = np.repeat(np.arange(len(counts)), cluster_counts(method, counts)).tolist() if method.clusters else ()
        groups.append(Group(first, first + len(same), method, 4 if method.task == "rotation" else len(counts), tuple(parent)))
        first += len(same)
    return groups


def make_head(group: Group, width: int, copies: int, images: int) -> PackedHead:
    """The head of a group's runs on features of so many channels and copies; images: of the training set."""
    head, runs, outputs = group.method.head, group.size, group.outputs
    if head.kind == "causal":
        return CausalHead(runs, width, outputs, head.alpha)
    if head.kind == "memory":
        return MemoryHead(runs, width, outputs)
    more = {"rescale": head.rescale, "project": head.project, "centres": head.centres, "parent": group.parent, "images": images}
    if head.groups:
        return BalancedHead(runs, width, outputs, group.classes, copies, head.groups, bias=head.bias, biased=head.biased, **more)
    if head.kind == "linear":
        return LinearHead(runs, width, outputs, head.bias, head.biased, **more)
    if head.kind == "cosine":
        return CosineHead(runs, width, outputs, **more)
    kind = {"gaussian": GaussianHead, "centres": CentreHead, "quadratic": QuadraticHead}[head.kind]
    return kind(runs, width, outputs, head.means)


def make_outputs(method: Method, head: PackedHead, features: Tensor, context: Context) -> Outputs:
    """What the loss sees. features: [runs, batch, width] or [runs, streams, batch, width], which `combine` may reduce."""
    if method.streams.combine:
        features = method.streams.combine(features, context)
    if features.dim() == 3:
        projected = head.projection(features) if head.projection else None
        balanced = head.balanced(features) if method.head.groups else None
        return Outputs(head(features), head.seen(features), projected, head.tensors(), balanced)
    flat = features.flatten(1, 2)
    shape = features.shape[1:3]
    projected = head.projection(flat).unflatten(1, shape) if head.projection else None
    balanced = head.balanced(flat).unflatten(1, shape) if method.head.groups else None
    return Outputs(head(flat).unflatten(1, shape), head.seen(features), projected, head.tensors(), balanced)


def own_labels(group: Group, head: PackedHead, labels: Tensor, images: Tensor) -> Tensor:
    """The labels of the group's loss: clusters where it has them. labels, images: classes and indices, [runs, batch]."""
    return head.clusters.gather(1, images) if group.parent else labels


def class_scores(group: Group, head: PackedHead, features: Tensor) -> Tensor:
    """Logits of the classes at test time, scaled as the loss scales them. [runs, batch, .] -> [runs, batch, classes]."""
    z = group.method.scale * head(features)
    return head.class_logits(z, group.classes, group.method.clusters.pooling) if group.parent else z
