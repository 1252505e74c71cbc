"""What a run costs, and how long it will take on a device that has left records. No torch."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
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


def step_work(column: Column, protocol: Protocol) -> float:
    """Multiplications of one training step of one run."""
    facts = SETS[column.dataset]
    return BACKWARD * multiplications(column.backbone, facts.side, facts.channels) * protocol.batch_size


def work(column: Column, protocol: Protocol) -> float:
    """Multiplications of one run, in units of 10^12."""
    return step_work(column, protocol) / protocol.batch_size * training_images(column) * protocol.epochs / 1e12


def speeds(records: Iterable[Mapping[str, Any]], measured: Path) -> dict[str, dict[str, float]]:
    """Device -> backbone -> seconds per unit of `work`: the median over the records that the device made; where it made
    none, the fastest pack among the benchmark results in the folder `measured`."""
    found = _benchmarks(measured)
    seconds: dict[tuple[str, str], list[float]] = {}
    for record in records:
        column = build(record["spec"]["column"], Column, "column")
        protocol = build(record["spec"]["protocol"], Protocol, "protocol")
        place = record["made"]["device"], column.backbone
        seconds.setdefault(place, []).append(record["made"]["seconds"] / work(column, protocol))
    for (device, backbone), values in seconds.items():
        found.setdefault(device, {})[backbone] = median(values)
    return found


def _benchmarks(folder: Path) -> dict[str, dict[str, float]]:
    """What benchmarks/packs.py stored: milliseconds a step and run of ResNet-32 on 32 x 32 images."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        packs = [row["ms_per_run"] for row in result["rows"] if row["name"].startswith("pack of")]
        if packs:
            each = BACKWARD * multiplications("resnet32", 32, 3) * result["batch"] / 1e12
            found.setdefault(result["device"], {})["resnet32"] = min(packs) / 1e3 / each
    return found


def expected_seconds(runs: Iterable[tuple[Column, Protocol]], speed: Mapping[str, float]) -> float | None:
    """How long the runs take one pack after another, or None where the device is not known to have run such a backbone."""
    runs = list(runs)
    if any(column.backbone not in speed for column, _ in runs):
        return None
    return sum(work(column, protocol) * speed[column.backbone] for column, protocol in runs)


def clock(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3.5 h, 4.0 days."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
