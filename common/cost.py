"""What a run costs, and how long it will take on a device that has left records. No torch."""

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
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
    if column.imbalance == "counts":
        return sum(column.counts)
    return int(class_counts(column.imbalance, column.ratio, facts.train // facts.classes, facts.classes).sum())


def step_work(column: Column, protocol: Protocol, streams: int = 1) -> float:
    """Multiplications of one training step of one run, nearly. streams: images of a step for each of its own ones."""
    facts = SETS[column.dataset]
    passes = streams * (BACKWARD if protocol.trains == "all" else 1)
    return passes * multiplications(column.backbone, facts.side, facts.channels) * protocol.batch_size


def work(column: Column, protocol: Protocol, streams: int = 1) -> float:
    """Multiplications of one run, in units of 10^12."""
    return step_work(column, protocol, streams) / protocol.batch_size * training_images(column) * protocol.epochs / 1e12


Speed = Mapping[str, Mapping[int, float]]  # backbone -> runs side by side -> seconds of a run per unit of `work`


def speeds(records: Iterable[Mapping[str, Any]], *measured: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Device and precision -> Speed: the median over the records that were made there; sizes of packs that have left no
    record are as benchmarks or probes (the JSON files in the folders `measured`) found them."""
    found = _measured(measured)
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for record in records:
        column = build(record["spec"]["column"], Column, "column")
        if column.dataset not in SETS:
            continue  # a large set is fed from files, which is another speed
        protocol = build(record["spec"]["protocol"], Protocol, "protocol")
        made = record["made"]
        if not protocol.epochs:
            continue  # it was only tested
        place = place_name(made["device"], made["precision"]), column.backbone, made["runs_in_pack"]
        streams = 1 + len(record["spec"]["method"].get("companions", ()))
        seconds.setdefault(place, []).append(made["seconds"] / work(column, protocol, streams))
    for (place, backbone, runs), values in seconds.items():
        found.setdefault(place, {}).setdefault(backbone, {})[runs] = median(values)
    return found


def place_name(device: str, precision: str) -> str:
    """What a speed holds for: the same card is another one in another precision."""
    return f"{device}, {precision}"


def _measured(folders: Iterable[Path]) -> dict[str, dict[str, dict[int, float]]]:
    """What benchmarks/packs.py (milliseconds a step and run of ResNet-32 on 32 x 32 images) and probes have stored."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    each = BACKWARD * multiplications("resnet32", 32, 3) / 1e12
    for path in (p for folder in folders for p in sorted(folder.glob("*.json"))):
        result = json.loads(path.read_text())
        place = found.setdefault(place_name(result["device"], result["precision"]), {})
        for row in result["rows"]:
            if row["name"].startswith("pack of"):
                seconds = row["ms_per_run"] / 1e3 / (each * result["batch"])
                place.setdefault("resnet32", {})[row["runs"]] = seconds
            elif row["name"] == "probe":
                place.setdefault(row["backbone"], {})[row["runs"]] = row["seconds_per_work"]
    return found


def expected_seconds(column: Column, protocol: Protocol, runs: int, speed: Speed, streams: int = 1) -> float | None:
    """How long a pack takes, or None where the device is not known to have run such a backbone.

    A run's share of a pack of M is read off what is known as a line in 1 / M (a fixed cost of the pack and one of each
    run). Beyond the largest known pack it stays; a pack smaller than all known ones takes as long as the smallest.
    """
    if not protocol.epochs:
        return 0.0  # it is only tested
    known = sorted(speed.get(column.backbone, {}).items())
    if not known:
        return None
    total = runs * work(column, protocol, streams)
    for (fewer, slow), (more, fast) in pairwise(known):
        if fewer <= runs <= more:
            part = (1 / fewer - 1 / runs) / (1 / fewer - 1 / more)
            return total * (slow + part * (fast - slow))
    smallest, share = known[0]
    return total * (share * smallest / runs if runs < smallest else known[-1][1])


def clock(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3.5 h, 4.0 days."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
