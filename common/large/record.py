"""What an evaluation and a run on a large set leave: counts per class in the place of a confusion matrix, and the record."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.large.processes import Processes, add_up
from common.metrics import BINS, class_summary
from common.train.record import Curves, best_epoch, common_fields, surroundings
from common.train.tally import answer

if TYPE_CHECKING:
    from common.large.engine import LargeRun

TOP = 5


class LargeTally:
    """Counts of one run over a test set: images and hits of each class, images whose class is among the first TOP,
    calibration bins, summed feature norms of each class. (A confusion matrix of 8,142 classes would take half a gibibyte.)

    answers: as of a `Tally`, at the place of each image in the test set, where it was on this process, else 0.
    """

    def __init__(self, classes: int, device: torch.device | str, images: int, adjusted: bool = False):
        self.tested = torch.zeros(classes, dtype=torch.int64, device=device)
        self.hits = torch.zeros_like(self.tested)
        self.near = torch.zeros((), dtype=torch.int64, device=device)
        self.bins = torch.zeros(BINS, 3, dtype=torch.float64, device=device)
        self.norms = torch.zeros(classes, dtype=torch.float64, device=device)
        self.answers = [torch.zeros(images, dtype=torch.int32, device=device) for _ in range(4 if adjusted else 2)]

    def add(self, logits: Tensor, features: Tensor, labels: Tensor, at: Tensor, unadjusted: Tensor | None = None) -> None:
        """logits [1, batch, classes] (scaled as the loss scales them), features [1, batch, width], labels [batch]; at: the places
        of the images in the test set. unadjusted: the logits before something was added to them for the test."""
        confidence, predicted = logits[0].float().softmax(-1).max(-1)
        kept = [*answer(predicted, confidence)]
        kept += answer(*reversed(unadjusted[0].float().softmax(-1).max(-1))) if unadjusted is not None else ()
        for mine, part in zip(self.answers, kept, strict=True):
            mine[at] = part.int()
        hit = predicted == labels
        self.tested += torch.bincount(labels, minlength=len(self.tested))
        self.hits += torch.bincount(labels[hit], minlength=len(self.tested))
        nearest = logits[0].topk(min(TOP, logits.shape[-1]), -1).indices
        self.near += (nearest == labels[:, None]).sum()
        column = (confidence * BINS).nan_to_num().long().clamp(max=BINS - 1)
        values = torch.stack([torch.ones_like(confidence), confidence, hit.float()], -1).double()
        self.bins.index_add_(0, column, values)
        self.norms.index_add_(0, labels, features[0].double().norm(dim=-1))

    def add_up(self, processes: Processes) -> None:
        """The counts of all processes, on each: hits are whole numbers, so the accuracy does not depend on how many there are."""
        add_up(processes, [self.tested, self.hits, self.near, self.bins, self.norms, *self.answers])

    def answered(self) -> list[Tensor]:
        """As `Tally.answered` gives them, of one run."""
        return [part[None].to(torch.uint8 if place % 2 else torch.int16).cpu() for place, part in enumerate(self.answers)]

    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * int(self.hits.sum()) / int(self.tested.sum())

    def top5(self) -> float:
        """How often the class is among the five largest logits, in percent."""
        return 100 * int(self.near) / int(self.tested.sum())


class LargeCurves(Curves):
    """`Curves` of one run, with the top-5 accuracy; feature norms are kept of the last epoch only, being thousands."""

    def __init__(self):
        super().__init__(1)
        self.top5: list[float] = []

    def add_epoch(self, epoch: int, epochs: int, loss: float, tally: LargeTally) -> None:
        self.loss[0].append(round(loss, 6))
        self.accuracy[0].append(round(tally.accuracy(), 4))
        self.top5.append(round(tally.top5(), 4))
        self.tested.append(int(tally.tested.sum()))
        if epoch + 1 == epochs:
            self.norm_epochs.append(epoch)
            self.norms[0].append([float(f"{n:.4g}") for n in (tally.norms / tally.tested.clamp(min=1)).tolist()])


def make_large_record(run: "LargeRun", curves: LargeCurves, tally: LargeTally, made: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a finished run: the fields of a small one with an empty confusion, and `top5` with the top-5 accuracy of
    the last epoch and of the best one in top-1 accuracy. `tally` is of the whole test set."""
    counts = run.feed.counts
    parts = class_summary(*(t.cpu().numpy() for t in (tally.hits, tally.tested, tally.bins)), counts)
    accuracy = curves.accuracy[0]
    best = best_epoch(accuracy, curves.tested)
    norms = run.run_state(0)["head.weight"][0].norm(dim=0).cpu().double().numpy()
    more: dict[str, Any] = {}
    if parent := run.groups[0].parent:  # a class has the mean of its clusters' norms
        each = np.bincount(parent)
        more = {"clusters": {"counts": each.tolist(), "norms": [float(f"{n:.5g}") for n in norms]}}
        norms = np.bincount(parent, norms) / each
    return common_fields(run, 0, curves, made) | parts | more | {
        "status": "done",
        "confusion": [],
        "accuracy": {"last": accuracy[-1], "best": accuracy[best], "best_epoch": best},
        "top5": {"last": curves.top5[-1], "best": curves.top5[best]},
        "norms": {"classifier": [float(f"{n:.5g}") for n in norms], "feature_epochs": list(curves.norm_epochs),
                  "feature": curves.norms[0]},
        "counts": counts.tolist(),
    }


def large_surroundings(run: "LargeRun", images_per_second: float) -> dict[str, Any]:
    """What made a record, beside its spec: as of a small run, and the processes, the images of each in one pass, the lists,
    where weights came from, and training images a second and device, the tests' time included."""
    return surroundings(run) | {
        "processes": run.processes.world, "images_a_pass": run.per_device, "batch_norm": run.protocol.batch_norm,
        "weights": run.weights_from, "lists": run.images.digest, "official": run.images.official,
        "images_per_second": round(images_per_second, 2),
    }
