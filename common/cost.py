"""What a run costs, and how long it will take on a device that has left records. No torch."""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from common.data.imbalance import class_counts
from common.data.sets import SETS
from common.models.sizes import multiplications
from common.spec import Column, Protocol, build

BACKWARD = 3  # a training step costs about three forward passes


def training_images(column: Column) -> int:
    """Images of one epoch of a column (for sets with unequal classes, nearly)."""
    facts = SETS[column.dataset]
    if column.imbalance == "none":
        return facts.train
    return int(class_counts(column.imbalance, column.ratio, facts.train // facts.classes, facts.classes).sum())


def work(column: Column, protocol: Protocol) -> float:
    """Multiplications of one run, in units of 10^12."""
    facts = SETS[column.dataset]
    each = multiplications(column.backbone, facts.side, facts.channels)
    return BACKWARD * each * training_images(column) * protocol.epochs / 1e12


def speeds(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Device name -> seconds per unit of `work`: the median over the records that the device made."""
    seconds: dict[str, list[float]] = {}
    for record in records:
        column = build(record["spec"]["column"], Column, "column")
        protocol = build(record["spec"]["protocol"], Protocol, "protocol")
        seconds.setdefault(record["made"]["device"], []).append(record["made"]["seconds"] / work(column, protocol))
    return {device: median(values) for device, values in seconds.items()}


def clock(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3.5 h, 4.0 days."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
