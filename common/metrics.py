"""Test-set metrics of one run from its counts, in percent. No torch."""

import numpy as np

BINS = 15  # equal-width confidence bins of the expected calibration error (Guo et al., 2017)
MANY, FEW = 100, 20  # many-shot: more than 100 training images; few-shot: fewer than 20; medium otherwise
# Before the rate first decays, an epoch is tested on every tenth test image: the whole set costs a quarter of an epoch.
EARLY_EVAL_STRIDE = 10


def summary(confusion: np.ndarray, bins: np.ndarray, counts: np.ndarray) -> dict:
    """Accuracy, per-class accuracy, many/medium/few and calibration of one run, in percent.

    confusion [classes, classes] (rows: true class), bins [BINS, 3], counts [classes] training images. A group
    without a class is None, and so is a class without a test image; a group's accuracy is the mean of its classes' accuracies.
    """
    return {
        "accuracy": round(100 * float(confusion.diagonal().sum()) / int(confusion.sum()), 4),
        **class_summary(confusion.diagonal(), confusion.sum(1), bins, counts),
        "confusion": confusion.tolist(),
    }


def class_summary(hits: np.ndarray, tested: np.ndarray, bins: np.ndarray, counts: np.ndarray) -> dict:
    """The part of `summary` that hits and tested images of each class [classes] are enough for."""
    seen = tested > 0
    per_class = 100 * hits / np.maximum(tested, 1)
    groups = {"many": counts > MANY, "medium": (counts >= FEW) & (counts <= MANY), "few": counts < FEW}
    groups = {name: of & seen for name, of in groups.items()}
    gap = np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum()
    return {
        "per_class_accuracy": [round(float(a), 4) if is_seen else None for a, is_seen in zip(per_class, seen, strict=True)],
        "groups": {name: round(float(per_class[of].mean()), 4) if of.any() else None for name, of in groups.items()},
        "calibration": {"ece": round(100 * float(gap), 4), "bins": [[round(float(v), 4) for v in row] for row in bins]},
    }
