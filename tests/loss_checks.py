"""What every loss must satisfy, for the loss tests of `common` and of the papers."""

from collections.abc import Callable

import torch

from common.methods.method import Context, Outputs

COUNTS = (5, 500, 50, 120)  # not sorted by size: a loss that assumes the order fails


def make(batch: int = 12, seed: int = 0, cosines: bool = True, counts=COUNTS):
    """Random outputs [batch, classes], labels [batch] and context in float64; every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    classes = len(counts)
    logits = torch.rand(batch, classes, generator=generator, dtype=torch.float64) * 2 - 1
    if not cosines:
        logits = logits * 5
    features = torch.randn(batch, 7, generator=generator, dtype=torch.float64)
    labels = torch.arange(batch) % classes
    labels = labels[torch.randperm(batch, generator=generator)]
    return Outputs(logits, features), labels, context(counts)


def context(counts, epoch: float = 0.0) -> Context:
    return Context(torch.tensor(counts, dtype=torch.float64), torch.tensor(epoch, dtype=torch.float64))


def check_literal(loss: Callable, literal: Callable, cosines: bool = True) -> None:
    """literal(z: list, y: int, n: list) -> float, with plain Python, sample by sample."""
    outputs, labels, ctx = make(cosines=cosines)
    found = loss(outputs, labels, ctx)
    wanted = [literal(z.tolist(), int(y), list(COUNTS)) for z, y in zip(outputs.logits, labels, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def check_class_permutation(loss: Callable, cosines: bool = True) -> None:
    """Renaming the classes, with their counts, changes nothing."""
    outputs, labels, ctx = make(cosines=cosines)
    order = torch.tensor([2, 0, 3, 1])
    renamed = Outputs(outputs.logits[:, order], outputs.features)
    new_labels = torch.argsort(order)[labels]
    found = loss(renamed, new_labels, Context(ctx.counts[order], ctx.epoch))
    torch.testing.assert_close(found, loss(outputs, labels, ctx), rtol=1e-12, atol=1e-12)


def batch_permutation_gap(loss: Callable, cosines: bool = True) -> float:
    """How much a sample's loss depends on its place in the batch: 0 for a loss of samples."""
    outputs, labels, ctx = make(cosines=cosines)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))
    assert labels[order[0]] != labels[0]  # else a loss that reads the first sample's class would pass
    permuted = loss(Outputs(outputs.logits[order], outputs.features[order]), labels[order], ctx)
    return float((permuted - loss(outputs, labels, ctx)[order]).abs().max())


def check_run_axes(loss: Callable, cosines: bool = True) -> None:
    """With leading run axes every run gets what it gets alone; gradients are finite, also in float32."""
    each = [make(seed=s, cosines=cosines) for s in range(3)]
    outputs = Outputs(torch.stack([e[0].logits for e in each]), torch.stack([e[0].features for e in each]))
    labels = torch.stack([e[1] for e in each])
    packed = loss(outputs, labels, each[0][2])
    assert packed.shape == labels.shape
    for i, (alone, y, ctx) in enumerate(each):
        torch.testing.assert_close(packed[i], loss(alone, y, ctx), rtol=1e-12, atol=1e-12)
    logits = outputs.logits.float().requires_grad_()
    ctx32 = Context(each[0][2].counts.float(), each[0][2].epoch.float())
    loss(Outputs(logits, outputs.features.float()), labels, ctx32).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0
