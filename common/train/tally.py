"""What a run counts over a test set, on the device: confusion, calibration, feature norms, and the answer to every image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.metrics import BINS


class Tally:
    """Counts of M runs over a test set. `common.metrics.summary` turns those of one run into percentages.

    labels: per batch, [batch]. answers: per batch the predicted classes and the floored confidence in 255ths, each [runs, batch];
    and, where logits are adjusted at test time, the same without that.
    """

    def __init__(self, runs: int, classes: int, device: torch.device | str):
        self.classes = classes
        self.confusion = torch.zeros(runs, classes, classes, dtype=torch.int64, device=device)  # rows: true class
        self.bins = torch.zeros(runs, BINS, 3, dtype=torch.float64, device=device)  # count, confidence, correct
        self.norms = torch.zeros(runs, classes, dtype=torch.float64, device=device)
        self.answers: list[tuple[Tensor, ...]] = []
        self.labels: list[Tensor] = []

    def add(self, logits: Tensor, features: Tensor, labels: Tensor, unadjusted: Tensor | None = None) -> None:
        """logits [runs, batch, classes] (scaled as the loss scales them), features [runs, batch, width], labels [batch];
        unadjusted: the logits before something was added to them for the test."""
        runs, batch, _ = logits.shape
        confidence, predicted = logits.float().softmax(-1).max(-1)
        cell = labels.expand(runs, batch) * self.classes + predicted
        self.confusion.view(runs, -1).scatter_add_(1, cell, torch.ones_like(cell))
        column = (confidence * BINS).nan_to_num().long().clamp(max=BINS - 1).unsqueeze(-1).expand(-1, -1, 3)
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).float()], -1).double()
        self.bins.scatter_add_(1, column, values)
        self.norms.scatter_add_(1, labels.expand(runs, batch), features.double().norm(dim=-1))
        self.labels.append(labels)
        kept = answer(predicted, confidence)
        self.answers.append(kept if unadjusted is None else (*kept, *answer(*reversed(unadjusted.float().softmax(-1).max(-1)))))

    def accuracy(self) -> Tensor:
        """Top-1 accuracy of each run in percent, [runs] float64."""
        return 100 * self.confusion.diagonal(dim1=1, dim2=2).sum(1).double() / self.confusion.sum((1, 2))

    def answered(self) -> list[Tensor]:
        """The answers to all images, on the CPU: classes int16 [runs, images] and confidence uint8; twice where adjusted."""
        return [torch.cat(parts, 1).cpu() for parts in zip(*self.answers, strict=True)]


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
