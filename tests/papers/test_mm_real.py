"""The real path in small: CE and MM-DRW side by side on CIFAR-10-LT 100, a few steps. Skipped where CIFAR-10 is not here."""

import torch

from common.data.sets import load
from common.plan import plan
from common.train.device import Device
from common.train.resident import ResidentSteps
from papers.mm.replicate import PAPER


def test_ce_and_mm_drw_train_on_cifar10_lt_100(cifar10):
    """Six steps on one batch of the published feed lower the loss of both runs."""
    every = plan(PAPER, "paper", columns=("cifar10-lt-100",), seeds=1)
    runs = [m for m in every if m.method.label in ("ce@written", "mm-drw@written")]
    steps = ResidentSteps(runs, load("cifar10", cifar10), Device("cpu", "float32", False))
    assert [m.method.label for m in steps.pack.members] == ["ce@written", "mm-drw@written"]
    assert sum(steps.pack.batch_sizes) == 12_406
    assert steps.pack.batch_sizes[-1] == 118
    steps.begin_epoch(0)
    steps.pack.rate.fill_(0.05)
    batch = steps.pack.epoch_drawn.part(0, 64)
    losses = []
    for _ in range(6):
        before = steps.pack.loss_sum.clone()
        steps.step(batch)
        losses.append((steps.pack.loss_sum - before) / 64)
    assert torch.stack(losses).isfinite().all()
    assert (losses[-1] < losses[0]).all()
