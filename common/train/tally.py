"""What runs count over a test set, on the device: hits, calibration, feature norms, and the answer to every image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.metrics import BINS, class_summary, summary
from common.train.distributed import Ranks, add_up

TOP = 5


class Confusion:
    """How often each class was taken for each. matrix: int64 [runs, classes, classes], rows: true class."""

    def __init__(self, runs: int, classes: int, device: torch.device | str):
        self.matrix = torch.zeros(runs, classes, classes, dtype=torch.int64, device=device)
        self.tensors = [self.matrix]

    def add(self, logits: Tensor, predicted: Tensor, labels: Tensor) -> None:
        cell = labels * self.matrix.shape[-1] + predicted
        self.matrix.view(len(cell), -1).scatter_add_(1, cell, torch.ones_like(cell))

    @property
    def hits(self) -> Tensor:
        return self.matrix.diagonal(dim1=1, dim2=2)

    @property
    def tested(self) -> Tensor:
        return self.matrix.sum(2)


class ClassCounts:
    """Images and hits of each class, int64 [runs, classes], and images whose class is among the first TOP, [runs]: a confusion
    matrix of 8,142 classes would take half a gibibyte."""

    def __init__(self, runs: int, classes: int, device: torch.device | str):
        self.tested = torch.zeros(runs, classes, dtype=torch.int64, device=device)
        self.hits, self.near = torch.zeros_like(self.tested), torch.zeros(runs, dtype=torch.int64, device=device)
        self.tensors = [self.tested, self.hits, self.near]

    def add(self, logits: Tensor, predicted: Tensor, labels: Tensor) -> None:
        self.tested.scatter_add_(1, labels, torch.ones_like(labels))
        self.hits.scatter_add_(1, labels, (predicted == labels).long())
        nearest = logits.topk(min(TOP, logits.shape[-1]), -1).indices
        self.near += (nearest == labels.unsqueeze(-1)).sum((1, 2))


class Tally:
    """Counts of M runs over a test set of so many images. `summary` turns those of one run into percentages.

    large: of a large set, with the top-5 accuracy in the place of a confusion matrix. adjusted: whether logits are adjusted at
    test time. labels: int64 [images]. answers: the predicted classes and the floored confidence in 255ths, each [runs, images];
    and, where logits are adjusted, the same without that. What is on another process is 0 until all are added up.
    """

    def __init__(self, runs: int, classes: int, images: int, device: torch.device | str, *, adjusted: bool = False,
                 large: bool = False):
        self.large = large
        self.counts = (ClassCounts if large else Confusion)(runs, classes, device)
        self.bins = torch.zeros(runs, BINS, 3, dtype=torch.float64, device=device)  # count, confidence, correct
        self.norms = torch.zeros(runs, classes, dtype=torch.float64, device=device)
        self.answers = [torch.zeros(runs, images, dtype=torch.int32, device=device) for _ in range(4 if adjusted else 2)]
        self.labels = torch.zeros(images, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, features: Tensor, labels: Tensor, at: slice | Tensor, unadjusted: Tensor | None = None) -> None:
        """logits [runs, batch, classes] (scaled as the loss scales them), features [runs, batch, width], labels [batch]; at: the
        places of the images in the test set. unadjusted: the logits before something was added to them for the test."""
        confidence, predicted = logits.float().softmax(-1).max(-1)
        each = labels.expand(predicted.shape)
        self.counts.add(logits, predicted, each)
        column = (confidence * BINS).nan_to_num().long().clamp(max=BINS - 1).unsqueeze(-1).expand(-1, -1, 3)
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).float()], -1).double()
        self.bins.scatter_add_(1, column, values)
        self.norms.scatter_add_(1, each, features.double().norm(dim=-1))
        self.labels[at] = labels
        kept = [*answer(predicted, confidence)]
        kept += answer(*reversed(unadjusted.float().softmax(-1).max(-1))) if unadjusted is not None else ()
        for mine, part in zip(self.answers, kept, strict=True):
            mine[:, at] = part.int()

    def add_up(self, processes: Ranks) -> None:
        """The counts of all processes, on each: hits are whole numbers, so the accuracy does not depend on how many there are."""
        add_up(processes, [*self.counts.tensors, self.bins, self.norms, self.labels, *self.answers])

    @property
    def confusion(self) -> Tensor:
        """How often each class was taken for each, int64 [runs, classes, classes]; of a small set."""
        return self.counts.matrix

    @property
    def hits(self) -> Tensor:
        """Test images of each class that were taken for it, int64 [runs, classes]."""
        return self.counts.hits

    @property
    def tested(self) -> Tensor:
        """Test images of each class, int64 [runs, classes]."""
        return self.counts.tested

    def accuracy(self) -> Tensor:
        """Top-1 accuracy of each run in percent, [runs] float64."""
        return 100 * self.hits.sum(1).double() / self.tested.sum(1)

    def top5(self) -> Tensor:
        """How often the class is among the five largest logits, in percent, [runs] float64; of a large set."""
        return 100 * self.counts.near.double() / self.tested.sum(1)

    def summary(self, run: int, counts: np.ndarray) -> dict[str, Any]:
        """What `common.metrics.summary` says of a run; of a large set without a confusion matrix. counts: training images."""
        bins = self.bins[run].cpu().numpy()
        if not self.large:
            return summary(self.confusion[run].cpu().numpy(), bins, counts)
        hits, tested = (part[run].cpu().numpy() for part in (self.hits, self.tested))
        return {"accuracy": round(float(self.accuracy()[run]), 4), **class_summary(hits, tested, bins, counts), "confusion": []}

    def answered(self) -> list[Tensor]:
        """The answers to all images, on the CPU: classes int16 [runs, images] and confidence uint8; twice where adjusted."""
        return [part.to(torch.uint8 if place % 2 else torch.int16).cpu() for place, part in enumerate(self.answers)]


def answer(predicted: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """In few bytes. Confidence is floored, so that its bin of 15 is exact: 255 = 15 * 17."""
    return predicted.to(torch.int16), (confidence * 255).nan_to_num().clamp(0, 255).to(torch.uint8)


class BestAnswers:
    """The predicted classes in each run's best epoch: the first of highest accuracy among those that saw all test images.

    It travels in the resume state (`tensors`, `load`).
    """

    def __init__(self, runs: int):
        self.accuracy = torch.full((runs,), -1.0, dtype=torch.float64)
        self.predicted: list[Tensor] = []  # int16 [runs, images]; of some runs again without their adjustment, else the same

    def add(self, answered: Sequence[Sequence[Tensor]], accuracy: Tensor) -> None:
        """An epoch over the whole test set: what the tally of each group has `answered`, and the accuracy of each run [runs]."""
        now = [torch.cat([parts[place] for parts in answered]) for place in (0, -2)]
        better = accuracy > self.accuracy
        old = self.predicted or now
        self.predicted = [torch.where(better[:, None], new, kept) for new, kept in zip(now, old, strict=True)]
        self.accuracy = torch.where(better, accuracy, self.accuracy)

    def tensors(self) -> dict[str, Tensor]:
        return {"accuracy": self.accuracy, **{f"predicted{i}": part for i, part in enumerate(self.predicted)}}

    def load(self, tensors: dict[str, Tensor], places: list[int]) -> None:
        """Take over what `tensors` had, of the runs at these places."""
        self.accuracy = tensors["accuracy"][places].clone()
        self.predicted = [tensors[f"predicted{i}"][places].clone() for i in range(len(tensors) - 1)]
