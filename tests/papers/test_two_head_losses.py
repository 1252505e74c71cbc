"""Equations (2) to (4), soft labels and cluster numbers of the two heads, against literal loops and numbers by hand."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from common.data.imbalance import class_counts
from common.methods.method import Outputs
from papers.two_head import replicate as paper
from tests.loss_checks import COUNTS, context

PARENT = [0, 1, 1, 1, 1, 2, 2, 3]  # clusters of four classes: 1, 4, 2, 1
ALPHA, WEIGHT = 0.4, 1.5


def sample(batch: int = 16, seed: int = 0, dtype=torch.float64):
    """Outputs of both heads, clusters as labels and the context; every cluster occurs."""
    g = torch.Generator().manual_seed(seed)
    logits, balanced = (torch.randn(batch, n, generator=g, dtype=dtype) * 3 for n in (len(PARENT), 4))
    k = torch.arange(batch) % len(PARENT)
    k = k[torch.randperm(batch, generator=g)]
    ctx = context(COUNTS)._replace(parent=torch.tensor(PARENT))
    return Outputs(logits, torch.randn(batch, 5, generator=g, dtype=dtype), balanced=balanced), k, ctx


def log_softmax(z: list, i: int) -> float:
    return z[i] - math.log(sum(math.exp(v) for v in z))


def literal_division(z: list, k: int) -> float:
    """Eq. (4) and the paragraph before it, word by word."""
    siblings = [j for j in range(len(PARENT)) if PARENT[j] == PARENT[k]]
    total = 0.0
    for j in range(len(PARENT)):
        q = 0.0
        if j == k:
            q = ALPHA if len(siblings) > 1 else 1.0
        elif j in siblings:
            q = (1 - ALPHA) / (len(siblings) - 1)
        total -= q * log_softmax(z, j)
    return total


def test_the_division_loss_is_equation_4():
    outputs, k, ctx = sample()
    found = paper.class_divided(outputs, k, ctx, alpha=ALPHA)
    wanted = [literal_division(z.tolist(), int(i)) for z, i in zip(outputs.logits, k, strict=True)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)


def test_both_losses_are_their_sum():
    outputs, k, ctx = sample()
    found = paper.two_heads(outputs, k, ctx, alpha=ALPHA, weight=WEIGHT)
    wanted = [literal_division(z.tolist(), int(i)) - WEIGHT * log_softmax(b.tolist(), PARENT[int(i)])
              for z, b, i in zip(outputs.logits, outputs.balanced, k, strict=True)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)


def test_balancing_alone_adds_equation_2_to_cross_entropy():
    outputs, k, ctx = sample()
    usual, y = Outputs(outputs.logits[:, :4], outputs.features, balanced=outputs.balanced), k % 4
    found = paper.feature_balanced(usual, y, ctx, weight=WEIGHT)
    wanted = [-log_softmax(z.tolist(), int(i)) - WEIGHT * log_softmax(b.tolist(), int(i))
              for z, b, i in zip(usual.logits, usual.balanced, y, strict=True)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_soft_labels_sum_to_one(alpha):
    k = torch.arange(len(PARENT))
    q = paper.soft_labels(k, torch.tensor(PARENT), alpha, torch.float64)
    assert q.sum(-1).tolist() == pytest.approx([1.0] * len(PARENT))
    assert q[0].tolist() == [1.0, *[0.0] * 7]  # the only cluster of its class
    assert q[5].tolist() == pytest.approx([0, 0, 0, 0, 0, alpha, 1 - alpha, 0])
    assert q[2].tolist() == pytest.approx([0, *[(1 - alpha) / 3] * 3, 0, 0, 0, 0][:2] + [alpha] + [(1 - alpha) / 3] * 2 + [0] * 3)


def test_a_renaming_of_the_classes_changes_nothing():
    outputs, k, ctx = sample()
    order = torch.tensor([2, 0, 3, 1])  # new class i was class order[i]
    clusters = torch.tensor([j for c in order.tolist() for j in range(len(PARENT)) if PARENT[j] == c])
    new_class = torch.argsort(order)
    renamed = Outputs(outputs.logits[:, clusters], outputs.features, balanced=outputs.balanced[:, order])
    parent = new_class[torch.tensor(PARENT)[clusters]]
    found = paper.two_heads(renamed, torch.argsort(clusters)[k], ctx._replace(counts=ctx.counts[order], parent=parent),
                            alpha=ALPHA, weight=WEIGHT)
    torch.testing.assert_close(found, paper.two_heads(outputs, k, ctx, alpha=ALPHA, weight=WEIGHT), rtol=1e-12, atol=1e-12)


def test_leading_run_axes_and_gradients():
    each = [sample(seed=s) for s in range(3)]
    both = Outputs(*(torch.stack([e[0][i] for e in each]) for i in (0, 1)), balanced=torch.stack([e[0].balanced for e in each]))
    k = torch.stack([e[1] for e in each])
    loss = partial(paper.two_heads, alpha=ALPHA, weight=WEIGHT)
    packed = loss(both, k, each[0][2])
    for i, (alone, mine, ctx) in enumerate(each):
        torch.testing.assert_close(packed[i], loss(alone, mine, ctx), rtol=1e-12, atol=1e-12)
    z, b = both.logits.float().requires_grad_(), both.balanced.float().requires_grad_()
    loss(Outputs(z, both.features.float(), balanced=b), k, each[0][2]).sum().backward()
    assert z.grad.isfinite().all()
    assert b.grad.isfinite().all()
    assert b.grad.abs().sum() > 0


def test_a_class_of_one_cluster_gives_plain_cross_entropy():
    outputs, _, ctx = sample()
    parent = torch.arange(len(PARENT))
    y = torch.arange(16) % len(PARENT)
    found = paper.class_divided(outputs, y, ctx._replace(parent=parent), alpha=ALPHA)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(outputs.logits, y, reduction="none"))


# ---------------------------------------------------------------- Eq. (3)


def test_cluster_numbers_by_hand_on_cifar_10_lt_100():
    """n from 5000 to 50: 1 + 9 (n - 50) / 4950 is 10, 6.36, 4.17, 2.87, 2.08, 1.61, 1.33, 1.16, 1.06, 1."""
    n = class_counts("lt", 100, 5000, 10)
    assert n.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert paper.cluster_numbers(n, u=10, rounding="nearest").tolist() == [10, 6, 4, 3, 2, 2, 1, 1, 1, 1]
    assert paper.cluster_numbers(n, u=10, rounding="ceiling").tolist() == [10, 7, 5, 3, 3, 2, 2, 2, 2, 1]


@pytest.mark.parametrize(("n_max", "classes", "ratio", "nearest", "ceiling"), [
    (5000, 10, 100, 31, 37), (5000, 10, 50, 33, 38), (5000, 10, 10, 42, 44),
    (500, 100, 100, 283, 347), (500, 100, 50, 311, 368), (500, 100, 10, 391, 443),
    (500, 200, 100, 566, 688), (500, 200, 50, 618, 736), (500, 200, 10, 780, 884),
])
def test_all_clusters_of_the_papers_columns(n_max, classes, ratio, nearest, ceiling):
    n = class_counts("lt", ratio, n_max, classes)
    found = [int(paper.cluster_numbers(n, u=10, rounding=how).sum()) for how in ("nearest", "ceiling")]
    assert found == [nearest, ceiling]


def test_cluster_numbers_follow_a_permutation_and_balanced_classes_have_one():
    n = np.array([50, 5000, 645, 645, 139])
    order = np.array([3, 1, 4, 0, 2])
    found = paper.cluster_numbers(n, u=10, rounding="nearest")
    assert paper.cluster_numbers(n[order], u=10, rounding="nearest").tolist() == found[order].tolist()
    assert paper.cluster_numbers(np.full(4, 7), u=10, rounding="nearest").tolist() == [1, 1, 1, 1]


def test_a_half_goes_up():
    assert paper.cluster_numbers(np.array([0, 1, 2, 3, 4]), u=3, rounding="nearest").tolist() == [1, 2, 2, 3, 3]


def test_weights_of_clusters_are_those_of_their_sizes():
    counts, beta = np.array([1000, 100, 10]), 0.999
    u_c = [10, 2, 1]
    raw = [(1 - beta) / (1 - beta ** (n / u)) for n, u in zip(counts, u_c, strict=True)]
    found = paper.cluster_weights(counts, 0, beta=beta, u=10, rounding="nearest")
    assert found.tolist() == pytest.approx([3 * w / sum(raw) for w in raw])
