"""Test-set metrics from integer counts, per run of a pack, all on the device.

A `Tally` adds up what a batch of the test set gives; `summary` turns the counts of one run into percentages.
"""

import numpy as np
import torch
from torch import Tensor

BINS = 15  # equal-width confidence bins of the expected calibration error (Guo et al., 2017)
MANY, FEW = 100, 20  # many-shot: more than 100 training images; few-shot: fewer than 20; medium otherwise


class Tally:
    """Counts of M runs over a test set: confusion, calibration bins, summed feature norms per class."""

    def __init__(self, runs: int, classes: int, device: torch.device | str):
        self.classes = classes
        self.confusion = torch.zeros(runs, classes, classes, dtype=torch.int64, device=device)  # rows: true class
        self.bins = torch.zeros(runs, BINS, 3, dtype=torch.float64, device=device)  # count, confidence, correct
        self.norms = torch.zeros(runs, classes, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, features: Tensor, labels: Tensor) -> None:
        """logits [runs, batch, classes] (scaled as the loss scales them), features [runs, batch, width], labels [batch]."""
        runs, batch, _ = logits.shape
        confidence, predicted = logits.float().softmax(-1).max(-1)
        cell = labels.expand(runs, batch) * self.classes + predicted
        self.confusion.view(runs, -1).scatter_add_(1, cell, torch.ones_like(cell))
        column = (confidence * BINS).nan_to_num().long().clamp(max=BINS - 1).unsqueeze(-1).expand(-1, -1, 3)
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).float()], -1).double()
        self.bins.scatter_add_(1, column, values)
        self.norms.scatter_add_(1, labels.expand(runs, batch), features.double().norm(dim=-1))

    def accuracy(self) -> Tensor:
        """Top-1 accuracy of each run in percent, [runs] float64."""
        return 100 * self.confusion.diagonal(dim1=1, dim2=2).sum(1).double() / self.confusion.sum((1, 2))


def summary(confusion: np.ndarray, bins: np.ndarray, counts: np.ndarray) -> dict:
    """Accuracy, per-class accuracy, many/medium/few and calibration of one run, in percent.

    confusion [classes, classes] (rows: true class), bins [BINS, 3], counts [classes] training images. A group
    without a class is None; a group's accuracy is the mean of its classes' accuracies.
    """
    return {
        "accuracy": round(100 * float(confusion.diagonal().sum()) / int(confusion.sum()), 4),
        **class_summary(confusion.diagonal(), confusion.sum(1), bins, counts),
        "confusion": confusion.tolist(),
    }


def class_summary(hits: np.ndarray, tested: np.ndarray, bins: np.ndarray, counts: np.ndarray) -> dict:
    """The part of `summary` that hits and tested images of each class [classes] are enough for."""
    per_class = 100 * hits / tested
    groups = {"many": counts > MANY, "medium": (counts >= FEW) & (counts <= MANY), "few": counts < FEW}
    gap = np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum()
    return {
        "per_class_accuracy": [round(float(a), 4) for a in per_class],
        "groups": {name: round(float(per_class[of].mean()), 4) if of.any() else None for name, of in groups.items()},
        "calibration": {"ece": round(100 * float(gap), 4), "bins": [[round(float(v), 4) for v in row] for row in bins]},
    }
