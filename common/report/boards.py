"""Leaderboards that no paper prints: in each column all methods of all papers that were trained under one protocol.

A method of two stages belongs to the protocol of the stage that trains the whole network: the second stage of a decoupled
classifier is part of the method. A run that several papers print is one row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import NamedTuple

from common.method import Paper, Planned
from common.report.compare import NO_RUN, Arm, Record, Records, arms, flags, made, spread
from common.report.intervals import Interval, central, confidence_interval, resampled_means
from common.spec import Column, Profile, Protocol

RULE = (
    "Ranked by mean last-epoch accuracy on the test set; 95 % confidence interval of that mean (Student t), 95 % interval of the "
    "rank (bootstrap over seeds; a method with a single run has none). Points of grids and switches stand below without a rank: "
    "the best of many, chosen on the test set, would always win. Calibration is the expected calibration error of the last "
    "epoch. Cost is device-seconds a run, earlier stages included, and to be compared within one device only."
)


@dataclass(frozen=True)
class Standing:
    """A method in a board; numbers are means over its finished runs, accuracies in percent, None where there are none.

    label, name, reading, variant: as the first paper calls it, a plain row before a point of a grid. sources: (paper, label)
    for every paper that the runs serve; own: the papers whose own method it is.
    state: "mean", "no run yet" or "diverged". interval: 95 % confidence interval of the mean.
    rank: 1 is the best, equal means share a rank; None for variants and where no run is. ranks: its 95 % interval over seeds.
    seconds: device-seconds a run, earlier stages included; None where the record of one is missing.
    """

    label: str
    name: str
    reading: str
    variant: str
    sources: tuple[tuple[str, str], ...]
    own: tuple[str, ...]
    state: str
    n: int
    diverged: int
    mean: float | None
    sd: float | None
    interval: Interval | None
    many: float | None
    medium: float | None
    few: float | None
    ece: float | None
    best: float | None
    seconds: float | None
    devices: str
    keys: tuple[str, ...]
    rank: int | None = None
    ranks: tuple[int, int] | None = None


@dataclass(frozen=True)
class Board:
    """All methods of one column and protocol: ranked ones first, then variants by their means, then those without runs.

    flags: what makes its runs unlike each other (devices, precisions).
    """

    column: Column
    protocol: Protocol
    rows: tuple[Standing, ...]
    flags: tuple[str, ...]

    @property
    def setting(self) -> str:
        return protocol_words(self.protocol)


class Entrant(NamedTuple):
    """A method as it is trained in a column, whatever the papers call it. costs: device-seconds of each finished run."""

    column: Column
    protocol: Protocol
    arm: Arm
    sources: tuple[tuple[str, str], ...]
    own: tuple[str, ...]
    costs: tuple[float | None, ...]


def boards(papers: Sequence[Paper], records: Records, profile: Profile) -> tuple[Board, ...]:
    """A board for every column and protocol under which the papers plan two plain rows or more: columns in the order of the
    papers, the protocol with most methods first. Planned methods without a record are listed with why."""
    grouped: dict[Column, dict[Protocol, list[Entrant]]] = {}
    for entrant in entrants(papers, records, profile):
        grouped.setdefault(entrant.column, {}).setdefault(entrant.protocol, []).append(entrant)
    found = []
    for settings in grouped.values():
        fullest = sorted(settings.values(), key=_plain_rows, reverse=True)
        found += [_board(some) for some in fullest if _plain_rows(some) > 1]
    return tuple(found)


def _plain_rows(found: Iterable[Entrant]) -> int:
    return sum(not entrant.arm.method.variant for entrant in found)


def entrants(papers: Iterable[Paper], records: Records, profile: Profile) -> list[Entrant]:
    """Everything that the papers plan in a profile and that classifies, each key once."""
    found: dict[str, Entrant] = {}
    for paper in papers:
        for column in paper.columns[profile]:
            for arm in arms(paper, records, profile, column):
                method = arm.method
                if method.task != "classes":
                    continue
                first = Planned(paper.run(profile, column, method, 0), method, paper.folder)
                source, own = ((paper.name, method.label),), (paper.name,) * (method.name in paper.own)
                if known := found.get(first.run.key):
                    keep = known.arm if not known.arm.method.variant or method.variant else arm
                    own = tuple(dict.fromkeys(known.own + own))
                    found[first.run.key] = known._replace(arm=keep, sources=known.sources + source, own=own)
                else:
                    costs = tuple(_cost(replace(first, run=replace(first.run, seed=record["spec"]["seed"])), records)
                                  for record in arm.done)
                    found[first.run.key] = Entrant(column, whole_stage(first).run.protocol, arm, source, own, costs)
    return list(found.values())


def whole_stage(item: Planned) -> Planned:
    """The latest stage of a run that trains the whole network."""
    while (item.run.protocol.trains != "all" or not item.run.protocol.epochs) and item.start:
        item = item.start
    return item


def _cost(item: Planned, records: Records) -> float | None:
    """Device-seconds of a run and of all that it starts from; None where one of them has no record."""
    total, stage = 0.0, item
    while stage:
        if stage.run.key not in records:
            return None
        total, stage = total + float(records[stage.run.key]["made"].get("seconds") or 0.0), stage.start
    return total


def _board(found: Sequence[Entrant]) -> Board:
    rows = [standing(entrant) for entrant in found]
    plain = [(row, entrant) for row, entrant in zip(rows, found, strict=True) if row.n and not row.variant]
    ranked = _with_ranks([row for row, _ in plain], [_last(entrant.arm) for _, entrant in plain])
    variants = sorted((row for row in rows if row.n and row.variant), key=lambda row: -row.mean)
    used = [record for entrant in found for record in entrant.arm.done]
    return Board(found[0].column, found[0].protocol, (*ranked, *variants, *(row for row in rows if not row.n)), flags(used))


def standing(entrant: Entrant) -> Standing:
    """The numbers of one method, without its rank."""
    method, done, lost = entrant.arm
    values = _last(entrant.arm)
    mean, sd = spread(values)
    groups = {name: _mean(done, lambda record, name=name: record["groups"][name]) for name in ("many", "medium", "few")}
    return Standing(
        method.label, method.name, method.reading, method.variant, entrant.sources, entrant.own,
        "mean" if done else "diverged" if lost else NO_RUN, len(done), len(lost), mean, sd, confidence_interval(values),
        **groups, ece=_mean(done, lambda record: record["calibration"]["ece"]),
        best=_mean(done, lambda record: record["accuracy"]["best"]),
        seconds=fmean(entrant.costs) if entrant.costs and None not in entrant.costs else None,
        devices=made(done, "device"), keys=tuple(record["key"] for record in done),
    )


def _last(arm: Arm) -> tuple[float, ...]:
    return tuple(record["accuracy"]["last"] for record in arm.done)


def _mean(done: Sequence[Record], take: Callable[[Record], float | None]) -> float | None:
    """Mean over the runs; None where one does not have it, such as an accuracy over classes that the column lacks."""
    values = [take(record) for record in done]
    return fmean(values) if values and None not in values else None


def _with_ranks(rows: Sequence[Standing], runs: Sequence[tuple[float, ...]]) -> list[Standing]:
    """The rows by rank, with the rank of each among the means and its interval over seeds."""
    import numpy as np

    if not rows:
        return []
    drawn = resampled_means(runs)
    ranks = ranks_of(drawn)
    found = []
    for i, (row, rank) in enumerate(zip(rows, ranks_of(np.array([[row.mean for row in rows]]))[0], strict=True)):
        low, high = central(ranks[:, i])
        found.append(replace(row, rank=int(rank), ranks=(int(low), int(high)) if row.n > 1 else None))
    return sorted(found, key=lambda row: row.rank)


def ranks_of(means):
    """Ranks [..., methods] of means [..., methods]: 1 + how many are larger."""
    return 1 + (means[..., None, :] > means[..., :, None]).sum(axis=-1)


def protocol_words(protocol: Protocol) -> str:
    """All that a protocol fixes, on one line; unequal protocols read differently."""
    words = [f"{protocol.epochs} epochs", f"batch {protocol.batch_size}{', last one dropped' if protocol.drop_last else ''}",
             f"{protocol.optimiser} {protocol.rate:g}, momentum {protocol.momentum:g}", f"weight decay {protocol.weight_decay:g}"]
    words += [f"{protocol.warmup_epochs} warm-up epochs"] if protocol.warmup_epochs else []
    if protocol.schedule == "cosine":
        words.append("cosine")
    elif protocol.decay_epochs:
        words.append(f"× {protocol.decay_factor:g} at {', '.join(map(str, protocol.decay_epochs))}")
    words += {"all": [], "head": ["head only"], "last": ["last block and head only"]}[protocol.trains]
    words += ["moving statistics"] if protocol.moving_statistics else []
    usual = {field.name for field in fields(Protocol)}
    for field in fields(protocol):  # what protocols of large sets fix beside
        value, name = getattr(protocol, field.name), field.name.replace("_", " ")
        if field.name not in usual and value != field.default:
            words.append(name if value is True else f"{name} {value}")
    return ", ".join(words)
