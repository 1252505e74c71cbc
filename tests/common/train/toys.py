"""A column that trains in a second on the CPU: scikit-learn's digits, some methods of every kind."""

from functools import partial
from pathlib import Path

from common.methods.losses import focal, ldam, sigmoid_focal, softmax_cross_entropy
from common.methods.method import COSINE, Head, Method, run_spec
from common.methods.sampling import class_balanced, deferred, effective_number_weights, shuffled, uniform_weights
from common.plan import Run
from common.spec import Column, Protocol
from common.train.device import Device
from common.train.loop import end_epoch, train_epoch
from common.train.record import Curves
from common.train.resident import ResidentSteps
from common.train.state import Course
from common.train.tally import BestAnswers

COLUMN = Column("digits", "lt", 20, "resnet8", "hash")
PROTOCOL = Protocol(epochs=3, batch_size=50, rate=0.1, momentum=0.9, weight_decay=0.0002, warmup_epochs=1,
                    decay_epochs=(2,), decay_factor=0.01, drop_last=False)
ROTATION = Method("rotation", "written", softmax_cross_entropy, task="rotation")
METHODS = (
    Method("ce", "written", softmax_cross_entropy),
    Method("ldam-drw", "written", partial(ldam, s=30.0, largest=0.5), COSINE,
           weights=partial(deferred, before=uniform_weights, then=effective_number_weights, start=2)),
    Method("drs", "written", partial(focal, gamma=1.0), sampler=partial(deferred, before=shuffled, then=class_balanced, start=1)),
    Method("cb-focal", "written", partial(sigmoid_focal, gamma=1.0), Head("linear", bias=-2.2, decay_bias=False),
           weights=effective_number_weights, reduction="batch"),
    ROTATION,
)


def planned(method: Method, folder: Path, seed: int = 0, protocol: Protocol = PROTOCOL, column: Column = COLUMN) -> Run:
    """A run whose record goes where a paper's would, under `folder` in the place of `papers/`."""
    return Run(run_spec(column, protocol, method, seed), method, folder / "toy" / "results" / "quick" / column.name)


def broken(outputs, labels, context):
    """Cross-entropy until epoch 1, then not a number."""
    bad = (context.epoch >= 1).to(outputs.logits.dtype)
    return softmax_cross_entropy(outputs, labels, context) + (bad - bad) / (1 - bad)


BROKEN = Method("broken", "written", broken)


def train_between(middle: Method, digits, folder: Path, device: Device) -> ResidentSteps:
    """Three epochs of a pack of three, `middle` between two sound runs."""
    steps = ResidentSteps([planned(m, folder) for m in (METHODS[0], middle, METHODS[1])], digits, device)
    course = Course(Curves(3), BestAnswers(3))
    for epoch in range(3):
        train_epoch(steps, epoch)
        end_epoch(steps, course)
    return steps
