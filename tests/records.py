"""Records as a run would leave them, for tests of everything that reads records. No torch."""

from typing import Any

from common.data.sets import SETS
from common.method import Planned
from common.store import SCHEMA, seal

MADE = {"seconds": 30.0, "device": "test device", "device_type": "cpu", "precision": "float32", "compiled": False,
        "torch": "2.11.0", "commit": "0" * 12, "runs_in_pack": 1, "finished": "2026-01-01T00:00:00+00:00"}


def class_counts(planned: Planned, largest: int = 100) -> list[int]:
    """Training images per class of a long-tailed, step or balanced column."""
    column, classes = planned.run.column, SETS[planned.run.column.dataset].classes
    if column.imbalance == "lt":
        return [int(largest * column.ratio ** (-i / (classes - 1))) for i in range(classes)]
    tail = largest // column.ratio if column.imbalance == "step" else largest
    return [largest] * (classes - classes // 2) + [tail] * (classes // 2)


def make_record(planned: Planned, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    """A sealed record of `planned` with this last-epoch accuracy in percent; None is a run that diverged.

    changes replace fields; a dictionary adds to the field of that name (`made={"device": "H200"}`).
    """
    epochs = planned.run.protocol.epochs
    record = {
        "schema": SCHEMA, "key": planned.run.key, "label": f"{planned.run.column.name} {planned.method.label}",
        "spec": planned.run.spec(), "counts": class_counts(planned), "made": MADE,
        "curves": {"train_loss": [1.0] * epochs, "test_accuracy": [accuracy or 10.0] * epochs, "tested": [1000] * epochs},
        **(_diverged() if accuracy is None else _done(accuracy, SETS[planned.run.column.dataset].classes, epochs)),
    }
    for name, value in changes.items():
        record[name] = {**record[name], **value} if isinstance(value, dict) else value
    return seal(record)


def _done(accuracy: float, classes: int, epochs: int) -> dict[str, Any]:
    right = round(accuracy)
    rows = [[right if i == j else (100 - right) * (j == (i + 1) % classes) for j in range(classes)] for i in range(classes)]
    return {
        "status": "done",
        "accuracy": {"last": accuracy, "best": min(100.0, accuracy + 0.25), "best_epoch": epochs - 1},
        "per_class_accuracy": [accuracy] * classes, "confusion": rows,
        "groups": {"many": accuracy, "medium": None, "few": accuracy},
        "calibration": {"ece": 1.0, "bins": [[0, 0.0, 0]] * 15},
        "norms": {"classifier": [1.0] * classes, "feature_epochs": [epochs - 1], "feature": [[1.0] * classes]},
    }


def _diverged() -> dict[str, Any]:
    return {
        "status": "diverged", "accuracy": {"last": None, "best": None, "best_epoch": None},
        "per_class_accuracy": [], "confusion": [], "groups": {"many": None, "medium": None, "few": None},
        "calibration": {"ece": None, "bins": []}, "norms": {"classifier": [], "feature_epochs": [], "feature": []},
    }
