"""The one training loop, from a pack's first batch, or where it stopped, to its records.

Its position is (epoch, batch); its world is one process, or those of torchrun, which all run this loop.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data.sets import Images
from common.metrics import EARLY_EVAL_STRIDE
from common.plan import Run
from common.train.device import Device
from common.train.distributed import broadcast_tensors
from common.train.pack import Pack
from common.train.record import Curves, finish
from common.train.resident import ResidentSteps
from common.train.state import Course, Keeper, Workspace, restore
from common.train.steps import Steps
from common.train.tally import Tally


@dataclass(frozen=True)
class Progress:
    """What an observer is told after each epoch."""

    epoch: int
    epochs: int
    loss: float
    best: float
    worst: float


def train_pack(members: Sequence[Run], images: Images, device: Device, work: Workspace,
               observe: Callable[[Progress], None] = lambda progress: None) -> bool:
    """Train the pack from where it stopped, and leave a record and a checkpoint for every run.

    Returns False if the workspace's deadline ended it early; the next call then goes on from there. A call trains at
    least one epoch, so it always gets further.
    """
    steps = ResidentSteps(members, images, device)
    try:
        return train_on(steps, work, observe)
    finally:
        steps.close()


def train_on(steps: Steps, work: Workspace, observe: Callable[[Progress], None]) -> bool:
    """Train the batches that the pack still lacks, and leave its records. Returns False if the deadline came first."""
    pack, course = steps.pack, restore(steps, work)
    keeper, epochs = Keeper(steps, work, course), pack.protocol.epochs
    tallies = [] if epochs else test_epoch(steps, course, [math.nan] * pack.runs, stride=1)
    while course.epoch < epochs and any(pack.alive):
        for images in train_batches(steps, course.epoch, course.batch):
            course.batch, course.images = course.batch + 1, course.images + images
            if steps.pausable and keeper.pauses_within_epoch():
                return False
        tallies = end_epoch(steps, course)
        if steps.processes.first:
            tell(pack, course, work, observe)
        if course.epoch < epochs and any(pack.alive) and keeper.pauses_after_epoch():
            return False
    finish(steps, course.curves, course.best, tallies, keeper.seconds(time.monotonic()), course.images)
    keeper.discard()
    return True


def train_batches(steps: Steps, epoch: int, first: int = 0) -> Iterator[int]:
    """Train on an epoch's batches from the one numbered `first`; yields the images of each one."""
    steps.begin_epoch(epoch, first)
    for batch in steps.train_batches(epoch, first):
        yield steps.train_batch(epoch, batch)


def train_epoch(steps: Steps, epoch: int) -> Tensor:
    """Train a whole epoch. Returns each run's mean loss per sample, float64 [runs] on the CPU."""
    for _ in train_batches(steps, epoch):
        pass
    return steps.pack.mean_losses()


def end_epoch(steps: Steps, course: Course) -> list[Tally]:
    """Test the epoch that was trained, and go on to the next; a run whose loss has left the finite range is stopped."""
    pack = steps.pack
    broadcast_tensors(steps.processes, [*pack.net.buffers(), *pack.heads.buffers(), pack.loss_sum])
    losses = pack.mean_losses().tolist()
    for run, loss in enumerate(losses):
        if pack.alive[run] and not math.isfinite(loss):
            pack.stop_run(run, course.epoch)
    tallies = test_epoch(steps, course, losses, evaluation_stride(pack, course.epoch))
    course.epoch, course.batch = course.epoch + 1, 0
    return tallies


def test_epoch(steps: Steps, course: Course, losses: Sequence[float], stride: int) -> list[Tally]:
    """Test all runs; their curves and best answers grow. losses: of the epoch, [runs]."""
    tallies = steps.evaluate(stride)
    course.curves.add(course.epoch, max(1, steps.pack.protocol.epochs), losses, tallies)
    if stride == 1:
        course.best.add([tally.answered() for tally in tallies], torch.cat([tally.accuracy() for tally in tallies]).cpu())
    return tallies


def evaluation_stride(pack: Pack, epoch: int) -> int:
    """1 (the whole test set) from the first decay on and in the last epoch, else every EARLY_EVAL_STRIDE-th image."""
    first = min(pack.protocol.decay_epochs, default=0)
    return 1 if epoch >= first or epoch + 1 == pack.protocol.epochs else EARLY_EVAL_STRIDE


def tell(pack: Pack, course: Course, work: Workspace, observe: Callable[[Progress], None]) -> None:
    """Report the epoch just finished to the log and to the observer."""
    curves: Curves = course.curves
    alive = [r for r in range(pack.runs) if pack.alive[r]] or [0]
    accuracies = [curves.accuracy[r][-1] for r in alive]
    loss = sum(curves.loss[r][-1] for r in alive) / len(alive)
    observe(Progress(course.epoch, pack.protocol.epochs, loss, max(accuracies), min(accuracies)))
    runs = {m.spec.key: [None if not pack.alive[r] else curves.loss[r][-1], curves.accuracy[r][-1]]
            for r, m in enumerate(pack.members)}
    work.log(column=pack.column.name, epoch=course.epoch, loss_and_accuracy=runs)
