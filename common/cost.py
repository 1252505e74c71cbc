"""What a run costs, and how long it will take on a device that has left records. No torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from common.data.imbalance import class_counts
from common.data.large_sets import find_large
from common.data.sets import SETS
from common.errors import UserError
from common.methods.method import Method
from common.metrics import EARLY_EVAL_STRIDE
from common.models.sizes import NETWORKS, multiplications
from common.paper import Paper
from common.plan import Run
from common.spec import Column, Protocol, build, canonical_json

ASSUMED = 1000.0  # training images of ResNet-50 a second and GPU, where no GPU has been measured
BACKWARD = 3  # a training step costs about three forward passes
SPEEDS, PROTOTYPES = "speeds", "prototypes"  # folders, beside benchmarks, of what campaigns timed and of what a prototype did


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
    """Multiplications of training one run, in units of 10^12."""
    return step_work(column, protocol, streams) / protocol.batch_size * training_images(column) * protocol.epochs / 1e12


@lru_cache(maxsize=4096)
def epoch_work(column: Column, protocol: Protocol, streams: int = 1, watched: bool = False) -> float:
    """Multiplications of an epoch of one run and of the test after it, of every tenth image where the epoch is only watched."""
    facts = SETS[column.dataset]
    images = facts.test / (EARLY_EVAL_STRIDE if watched else 1)
    tested = images * multiplications(column.backbone, facts.side, facts.channels) / 1e12
    return tested + (work(column, protocol, streams) / protocol.epochs if protocol.epochs else 0.0)


def watched_epochs(protocol: Protocol) -> int:
    """Epochs before the rate first decays, which are tested on every tenth image."""
    return min(min(protocol.decay_epochs, default=0), max(0, protocol.epochs - 1))


def whole_work(column: Column, protocol: Protocol, streams: int = 1) -> float:
    """Multiplications of one run with its tests, in units of 10^12; a run of no epochs is tested once."""
    watched = watched_epochs(protocol)
    tested_whole = max(1, protocol.epochs - watched)
    return watched * epoch_work(column, protocol, streams, True) + tested_whole * epoch_work(column, protocol, streams)


@dataclass(frozen=True)
class Speed:
    """What is known of a device in one precision.

    each: backbone -> runs side by side -> seconds of a run per unit of `whole_work`. compiled: whether packs are compiled there.
    prototype: backbones of which only the speeds of a prototype are known, perhaps of a card of the same kind. slower: how many
    times as long as `READY` says packs took to get ready.
    """

    each: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    compiled: bool = False
    prototype: frozenset[str] = frozenset()
    slower: float = 1.0


def speeds(records: Iterable[Mapping[str, Any]], *measured: Path) -> dict[str, Speed]:
    """Device and precision -> Speed: of each size of pack the weighted median over the records that were made there; sizes
    that have left no record are as benchmarks (the JSON files in the folders `measured`) found them. Epochs that a
    campaign timed on this device come before both. records: whole ones, or those of `common.store.thin_records`."""
    results = [read_speeds(path) for folder in measured for path in sorted(folder.glob("*.json"))]
    by_place: dict[str, dict[str, dict[int, float]]] = {}
    compiled = {place_name(r["device"], r["precision"]) for r in results if r.get("compiled")}
    for result in results:
        _add_rows(by_place, result, "pack of")
    seconds: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for record in records:
        units, made = _units(canonical_json(record["spec"]["column"]), canonical_json(record["spec"]["protocol"]),
                             1 + len(record["spec"]["method"].get("companions", ()))), record["made"]
        if not units:
            continue  # it was only tested, or is of a large set, which is fed from files: another speed
        place, runs = place_name(made["device"], made["precision"]), made["runs_in_pack"]
        compiled |= {place} if made.get("compiled") else set()
        ready = READY.other_method / runs if made.get("compiled") else 0.0
        if made["seconds"] > ready:
            backbone = record["spec"]["column"]["backbone"]
            seconds.setdefault((place, backbone, runs), []).append(((made["seconds"] - ready) / units, units))
    for (place, backbone, runs), values in seconds.items():
        by_place.setdefault(place, {}).setdefault(backbone, {})[runs] = _median(values)
    slower: dict[str, list[float]] = {}
    for result in results:
        _add_rows(by_place, result, "epochs")
        slower.setdefault(place_name(result["device"], result["precision"]), []).extend(
            row["ready_seconds"] / row["ready_expected"] for row in result["rows"] if row.get("ready_expected"))
    return {place: Speed(each, place in compiled, slower=median(slower.get(place) or [1.0])) for place, each in by_place.items()}


@lru_cache(maxsize=4096)
def _units(column: bytes, protocol: bytes, streams: int) -> float:
    """`whole_work` of a record's column and protocol; 0 where it says nothing of the speed of packs."""
    built = build(json.loads(column), Column, "column")
    if built.dataset not in SETS:
        return 0.0
    p = build(json.loads(protocol), Protocol, "protocol")
    return whole_work(built, p, streams) if p.epochs else 0.0


def _median(values: Sequence[tuple[float, float]]) -> float:
    """The weighted median of (value, weight)."""
    half, seen = sum(weight for _, weight in values) / 2, 0.0
    for value, weight in sorted(values):
        seen += weight
        if seen >= half:
            return value
    raise ValueError("there is no value")


def _add_rows(by_place: dict[str, dict[str, dict[int, float]]], result: Mapping[str, Any], kind: str) -> None:
    """Add what benchmarks/packs.py ("pack of": milliseconds a step and run of ResNet-32 on 32 x 32 images), or a campaign
    ("epochs") has stored."""
    unit = BACKWARD * multiplications("resnet32", 32, 3) / 1e12
    place = by_place.setdefault(place_name(result["device"], result["precision"]), {})
    for row in result["rows"]:
        if row["name"].startswith(kind) and kind == "pack of":
            place.setdefault("resnet32", {})[row["runs"]] = row["ms_per_run"] / 1e3 / (unit * result["batch"])
        elif row["name"] == kind:
            place.setdefault(row["backbone"], {})[row["runs"]] = row["seconds_per_work"]


def read_speeds(path: Path) -> dict[str, Any]:
    """A file of measured speeds; one that is damaged is a UserError."""
    try:
        return check_speeds(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); move it away, and packs are timed again.") from None


def check_speeds(content: bytes, where: str) -> dict[str, Any]:
    """What a file of measured speeds holds, if every row that is read has positive numbers; else a UserError naming `where`."""
    try:
        result = json.loads(content)
        good = isinstance(result, dict) and all(isinstance(result[name], str) for name in ("device", "precision")) and all(
            _is_speed(row, result) for row in result["rows"])
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise UserError(f"{where} holds no measured speeds; delete it, and packs are timed again.")
    return result


def _is_speed(row: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    positive = []
    if row["name"] == "epochs":
        positive = [row["runs"], row["seconds_per_work"]]
        if not isinstance(row["backbone"], str) or any(
                not isinstance(row.get(name, 0), int | float) for name in ("ready_seconds", "ready_expected")):
            return False
    elif row["name"].startswith("pack of"):
        positive = [row["runs"], row["ms_per_run"], result["batch"]]
    return all(type(number) in (int, float) and 0 < number < float("inf") for number in positive)


def place_name(device: str, precision: str) -> str:
    """What a speed holds for: the same card is another one in another precision."""
    return f"{device}, {precision}"


def speed_of(device: str, precision: str, known: Mapping[str, Speed], prototypes: Path) -> Speed:
    """The Speed of a device. What has not been measured there is as in a file of the folder `prototypes` whose `cards` it
    belongs to, in the ratio of what has been measured of the same backbone."""
    mine = known.get(place_name(device, precision), Speed())
    for path in sorted(prototypes.glob("*.json")):
        result = read_speeds(path)
        if result["precision"] != precision or not any(device.startswith(card) for card in result["cards"]):
            continue
        lent: dict[str, dict[str, dict[int, float]]] = {}
        _add_rows(lent, result, "pack of")
        each = {name: dict(sizes) for name, sizes in mine.each.items()}
        for backbone, sizes in lent[place_name(result["device"], precision)].items():
            here = each.setdefault(backbone, {})
            ratio = _ratio(here, sizes)
            each[backbone] = {runs: ratio * value for runs, value in sizes.items()} | here
        mine = replace(mine, each=each, compiled=True,
                       prototype=frozenset(lent[place_name(result["device"], precision)]) - set(mine.each))
    return mine


def _ratio(here: Mapping[int, float], lent: Mapping[int, float]) -> float:
    """How much longer than the prototype a device takes, by the largest pack that was measured there."""
    if not here:
        return 1.0
    largest = max(here)
    return here[largest] / seconds_per_work(lent, largest)


def seconds_per_work(known: Mapping[int, float], runs: int) -> float:
    """A run's share of a pack of M is read off what is known as a line in 1 / M (a fixed cost of the pack and one of each
    run). Beyond the largest known pack it stays; a pack smaller than all known ones takes as long as the smallest."""
    sizes = sorted(known.items())
    for (fewer, slow), (more, fast) in pairwise(sizes):
        if fewer <= runs <= more:
            part = (1 / fewer - 1 / runs) / (1 / fewer - 1 / more)
            return slow + part * (fast - slow)
    smallest, share = sizes[0]
    return share * smallest / runs if runs < smallest else sizes[-1][1]


def expected_seconds(column: Column, protocol: Protocol, runs: int, speed: Speed, streams: int = 1) -> float | None:
    """How long a pack trains and tests, or None where the device is not known to have run such a backbone."""
    known = speed.each.get(column.backbone)
    return runs * whole_work(column, protocol, streams) * seconds_per_work(known, runs) if known else None


@dataclass(frozen=True)
class Ready:
    """Seconds until a compiled pack trains: the first one, one of another size, one of other methods in a size that was
    compiled before, whose kernels are found on disk again. ends: of leaving a run's record and weights.

    The first three were measured on one machine without a GPU, the last on an H200, all with a prototype.
    """

    first: float = 57.6
    other_size: float = 22.8
    other_method: float = 5.4
    ends: float = 5.8 / 64


READY = Ready()


@dataclass(frozen=True)
class Costs:
    """What packs cost on a device: its speed, and the backbones and sizes that were compiled there."""

    speed: Speed
    seen: frozenset[tuple[str, int]] = frozenset()

    def of(self, pack: Sequence[Run]) -> float | None:
        """Seconds from the start of a pack until its records are there; None where nobody knows."""
        column, protocol, method = pack[0].spec.column, pack[0].spec.protocol, pack[0].method
        trained = expected_seconds(column, protocol, len(pack), self.speed, method.streams.number)
        return None if trained is None else self.ready(pack) * self.speed.slower + trained + len(pack) * READY.ends

    def ready(self, pack: Sequence[Run]) -> float:
        """Seconds until the pack trains, as `READY` has them."""
        backbone = pack[0].spec.column.backbone
        if not self.speed.compiled:
            return 0.0
        if (backbone, len(pack)) in self.seen:
            return READY.other_method
        return READY.other_size if any(name == backbone for name, _ in self.seen) else READY.first

    def after(self, pack: Sequence[Run]) -> "Costs":
        """The same when the pack has been compiled."""
        return replace(self, seen=self.seen | {(pack[0].spec.column.backbone, len(pack))})


def clock(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3.5 h, 4.0 days."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


# ---------------------------------------------------------------- large sets: GPU-hours from images per second

class Throughput(NamedTuple):
    """Training images a second of a backbone on one device, and when that was measured (ISO 8601)."""

    device: str
    backbone: str
    images_per_second: float
    finished: str


def training_equivalents(column: Column, protocol: Protocol, streams: int = 1) -> float:
    """Images of a run in units of a training image of the whole network: a forward pass alone costs a third of one.

    streams: images of a step for each of its own. Before the rate first decays an epoch is tested on every tenth image.
    """
    facts, p = find_large(column.dataset), protocol
    whole = p.epochs - min(min(p.decay_epochs, default=0), max(0, p.epochs - 1))
    tested = facts.test.images * (whole + (p.epochs - whole) / EARLY_EVAL_STRIDE) if p.epochs else facts.test.images
    passes = BACKWARD if p.trains == "all" else 1
    return (facts.train.images * p.epochs * streams * passes + tested) / BACKWARD


def measured(records: Iterable[Mapping[str, Any]], folder: Path) -> list[Throughput]:
    """What GPUs did, best evidence first: runs on large sets, the last one first, then benchmarks (`large/*.json` in folder)."""
    runs = [Throughput(r["made"]["device"], r["spec"]["column"]["backbone"], r["made"]["images_per_second"],
                       r["made"]["finished"])
            for r in records if r["made"]["device_type"] == "cuda" and r["made"].get("images_per_second")]
    stored = []
    for path in sorted((folder / "large").glob("*.json")):
        result = json.loads(path.read_text())
        rows = [row for row in result["rows"] if row["name"] == "ours, JPEG"]
        if result["device_type"] == "cuda" and rows:
            stored.append(Throughput(result["device"], result["backbone"], rows[0]["images_per_second"], result["finished"]))
    return [s for group in (runs, stored) for s in sorted(group, key=lambda s: s.finished, reverse=True)]


def gpu_hours(column: Column, protocol: Protocol, speed: Throughput, streams: int = 1) -> float:
    """Hours of one such device; of another backbone than the measured one by its multiplications."""
    cost = NETWORKS[column.backbone].multiplications / NETWORKS[speed.backbone].multiplications
    return training_equivalents(column, protocol, streams) * cost / speed.images_per_second / 3600


def basis(speeds: Sequence[Throughput]) -> Throughput:
    """The first of what `measured` found, or what is assumed where no GPU has been measured."""
    return speeds[0] if speeds else Throughput("a GPU", "resnet50", ASSUMED, "")


def known_speeds(paper: Paper, records: Mapping[str, Mapping[str, Any]]) -> list[Throughput]:
    """What GPUs have been seen to do, where the paper has large columns; best evidence first."""
    return measured(records.values(), paper.folder.parents[1] / "benchmarks" / "results") if paper.large else []


def hours(paper: Paper, column: Column, method: Method, speeds: Sequence[Throughput]) -> float:
    """GPU-hours of a run, with the stages that it starts from."""
    protocol = method.protocol or paper.settings("paper", column)[method.reading]
    own = gpu_hours(column, protocol, basis(speeds), method.streams.number)
    return own + (hours(paper, column, method.first_stage, speeds) if method.first_stage else 0.0)


def not_run(paper: Paper, column: Column, method: Method, speeds: Sequence[Throughput]) -> str:
    """What a cell of a large column without a run says."""
    return f"not run: needs {column.dataset}; about {hours(paper, column, method, speeds):,.2g} GPU-hours a run"


def head_bytes(batch: int, width: int, outputs: int) -> int:
    """The most memory that a head with its momenta, and its loss with all gradients, take in float32 beside the backbone.

    batch: images of a global batch, all streams together. No loss makes a tensor of more than one number for each image and
    output; twelve such tensors, and twenty of the size of the weights, are enough for all of them: 1.5 GB at batch 512 with
    2,048 features and 8,142 classes, on each process, however many there are.
    """
    return 4 * outputs * (12 * batch + 20 * width)
