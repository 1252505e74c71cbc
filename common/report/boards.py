"""Leaderboards that no paper prints: in each column all methods of all papers that were trained under one protocol.

A method of two stages belongs to the protocol of the stage that trains the whole network: the second stage of a decoupled
classifier is part of the method. A run that several papers print is one row.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import NamedTuple

from common.estimate import Speed, known_speeds, not_run
from common.paper import Paper
from common.plan import Run
from common.report.compare import NO_RUN, Arm, Record, Records, arms, drawn_lists, flags, made, published, standing_columns
from common.report.duels import holm
from common.report.intervals import Interval, central, confidence_interval, resampled_means, spread, within_percent
from common.report.paired import NO_HITS, Hits, Paired, compare
from common.spec import Column, Profile, Protocol

RULE = (
    "Ranked by mean last-epoch accuracy on the test set; 95 % confidence interval of that mean (Student t), 95 % interval of the "
    "rank (bootstrap over seeds; a method with a single run has none). Ranked are papers' own methods and the rows of their main "
    "tables (of all their tables, in a column that no main table prints). Other rows, points of grids and switches stand below "
    "without a rank: the best of many, chosen on the test set, would always win. Calibration is the expected calibration error "
    "of the last epoch. Cost is device-seconds a run, earlier stages included, to be compared within one device only: the runs "
    "of a pack are trained side by side and bear equal shares of its time, so methods of one pack cost the same. Where runs have "
    "their predictions, a ranked method is compared with the first one on the same images and the seeds of both: points behind "
    "it with 95 % interval, and the two-sided p of no difference (analysis of variance over seeds and images, Hillis 2007), "
    "Holm-corrected over the methods of the board. The first is chosen by these very runs, so its lead is somewhat too large."
)


class Behind(NamedTuple):
    """A ranked method against the first one of its board. test: of it minus the first; p: two-sided, Holm-corrected over the
    methods of the board that are compared."""

    test: Paired
    p: float


@dataclass(frozen=True)
class Standing:
    """A method in a board; numbers are means over its finished runs, accuracies in percent, None where there are none.

    label, name, reading, variant: as the first paper calls it, a plain row before a point of a grid. sources: (paper, label)
    for every paper that the runs serve; own: the papers whose own method it is. is_main: whether it may have a rank (`RULE`).
    state: "mean", "no run yet", "diverged" or "not run: ...". interval: 95 % confidence interval of the mean, within 0 to 100.
    rank: 1 is the best, equal means share a rank; None for ablations and variants, and where no run is. ranks: its 95 %
    interval over seeds. behind: the comparison with the first one, None where runs have no predictions.
    seconds: device-seconds a run, its share of its pack, earlier stages included; None where the record of one is missing.
    """

    label: str
    name: str
    reading: str
    variant: str
    sources: tuple[tuple[str, str], ...]
    own: tuple[str, ...]
    is_main: bool
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
    behind: Behind | None = None


@dataclass(frozen=True)
class Board:
    """All methods of one column and protocol: ranked ones first, then the others by their means, then those without runs.

    flags: what makes its runs unlike each other (devices, precisions), first stages included, and lists that were drawn here.
    """

    column: Column
    protocol: Protocol
    rows: tuple[Standing, ...]
    flags: tuple[str, ...]

    @property
    def setting(self) -> str:
        return protocol_words(self.protocol)


class Entrant(NamedTuple):
    """A method as it is trained in a column, whatever the papers call it.

    is_main: whether a paper calls it its own or prints it in a main table. waiting: what stands where it has no run.
    costs: device-seconds of each finished run.
    """

    column: Column
    protocol: Protocol
    arm: Arm
    sources: tuple[tuple[str, str], ...]
    own: tuple[str, ...]
    is_main: bool
    waiting: str
    costs: tuple[float | None, ...]


def boards(papers: Sequence[Paper], records: Records, profile: Profile, hits: Mapping[str, Hits] = NO_HITS) -> tuple[Board, ...]:
    """A board for every column and protocol under which the papers plan two plain rows or more: columns in the order of the
    papers, the protocol with most methods first. Run methods without a record are listed with why. hits: of the records that
    have predictions."""
    return boards_of(entrants(papers, records, profile), hits)


def boards_of(found: Iterable[Entrant], hits: Mapping[str, Hits] = NO_HITS) -> tuple[Board, ...]:
    """The boards of what the papers plan."""
    grouped: dict[Column, dict[Protocol, list[Entrant]]] = {}
    for entrant in found:
        grouped.setdefault(entrant.column, {}).setdefault(entrant.protocol, []).append(entrant)
    several = []
    for settings in grouped.values():
        fullest = sorted(settings.values(), key=_plain_rows, reverse=True)
        several += [_board(some, hits) for some in fullest if _plain_rows(some) > 1]
    return tuple(several)


def _plain_rows(found: Iterable[Entrant]) -> int:
    return sum(not entrant.arm.method.variant for entrant in found)


def entrants(papers: Iterable[Paper], records: Records, profile: Profile) -> list[Entrant]:
    """Everything that the papers plan in a profile and that classifies, each key once."""
    found: dict[str, Entrant] = {}
    for paper in papers:
        printed, speeds = main_rows(paper, profile), known_speeds(paper, records)
        for column in (c for c in paper.columns[profile] if not c.is_drawn):  # those have a section of their own
            for arm in arms(paper, records, profile, column):
                if arm.method.task != "classes":
                    continue
                key, one = _entrant(paper, profile, column, arm, printed, speeds, records)
                found[key] = _joined(found[key], one) if key in found else one
    return list(found.values())


def _entrant(paper: Paper, profile: Profile, column: Column, arm: Arm, printed: Container[tuple[str, str]],
             speeds: Sequence[Speed], records: Records) -> tuple[str, Entrant]:
    """The key of the method's first run, and the method as this paper alone knows it."""
    method = arm.method
    first = Run(paper.spec(profile, column, method, 0), method, paper.folder)
    is_own = method.name in paper.own
    is_main = not method.variant and (is_own or (column.name, method.name) in printed)
    waiting = not_run(paper, column, method, speeds) if column.name in paper.large else NO_RUN
    seeds = [record["spec"]["seed"] for record in arm.done]
    costs = tuple(_cost(replace(first, spec=replace(first.spec, seed=seed)), records) for seed in seeds)
    return first.spec.key, Entrant(column, whole_stage(first).spec.protocol, arm, ((paper.name, method.label),),
                                  (paper.name,) * is_own, is_main, waiting, costs)


def _joined(known: Entrant, other: Entrant) -> Entrant:
    """One method that two papers train: named by the first that has it as a plain row."""
    keep = known.arm if not known.arm.method.variant or other.arm.method.variant else other.arm
    return known._replace(arm=keep, sources=known.sources + other.sources, own=tuple(dict.fromkeys(known.own + other.own)),
                          is_main=known.is_main or other.is_main)


def main_rows(paper: Paper, profile: Profile) -> set[tuple[str, str]]:
    """(column, method) of what the main tables print; of all tables in a column that no main table prints."""
    standing, in_main, in_any = standing_columns(paper, profile), set(), set()
    for row in published(paper).itertuples():
        for column in standing.get(row.column, ()):
            in_any.add((column.name, row.method))
            if row.table in paper.main:
                in_main.add((column.name, row.method))
    columns = {name for name, _ in in_main}
    return in_main | {place for place in in_any if place[0] not in columns}


def whole_stage(item: Run) -> Run:
    """The latest stage of a run that trains the whole network."""
    whole = [stage for stage in item.chain if stage.spec.protocol.trains == "all" and stage.spec.protocol.epochs]
    return whole[-1] if whole else item.chain[0]


def _cost(item: Run, records: Records) -> float | None:
    """Device-seconds of a run and of all that it starts from; None where one of them has no record."""
    if any(stage.spec.key not in records for stage in item.chain):
        return None
    return sum(float(records[stage.spec.key]["made"].get("seconds") or 0.0) for stage in item.chain)


def _board(found: Sequence[Entrant], hits: Mapping[str, Hits]) -> Board:
    rows = [standing(entrant) for entrant in found]
    main = [(row, entrant) for row, entrant in zip(rows, found, strict=True) if row.n and row.is_main]
    ranked = _with_ranks([row for row, _ in main], [_last(entrant.arm) for _, entrant in main])
    ranked = _behind_the_first(ranked, {row.keys: entrant.arm.done for row, entrant in main}, hits)
    others = sorted((row for row in rows if row.n and not row.is_main), key=lambda row: -row.mean)
    used = [record for entrant in found for record in (*entrant.arm.done, *entrant.arm.starts)]
    return Board(found[0].column, found[0].protocol, (*ranked, *others, *(row for row in rows if not row.n)),
                 (*flags(used), *drawn_lists(used)))


def standing(entrant: Entrant) -> Standing:
    """The numbers of one method, without its rank."""
    method, done, lost = entrant.arm.method, entrant.arm.done, entrant.arm.diverged
    values = _last(entrant.arm)
    mean, sd = spread(values)
    groups = {name: _mean(done, lambda record, name=name: record["groups"][name]) for name in ("many", "medium", "few")}
    return Standing(
        method.label, method.name, method.reading, method.variant, entrant.sources, entrant.own, entrant.is_main,
        "mean" if done else "diverged" if lost else entrant.waiting, len(done), len(lost), mean, sd,
        within_percent(confidence_interval(values)),
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


def _behind_the_first(ranked: Sequence[Standing], runs: Mapping[tuple[str, ...], Sequence[Record]], hits: Mapping[str, Hits]
                      ) -> list[Standing]:
    """The ranked rows, compared with the first of them where both have predictions. runs: of a row, by its keys."""
    tests = {i: compare(runs[row.keys], runs[ranked[0].keys], hits) for i, row in enumerate(ranked[1:], 1)}
    tests = {i: test for i, test in tests.items() if test}
    corrected = dict(zip(tests, holm(test.p_either for test in tests.values()), strict=True))
    return [replace(row, behind=Behind(tests[i], corrected[i])) if i in tests else row for i, row in enumerate(ranked)]


def ranks_of(means):
    """Ranks [..., methods] of means [..., methods]: 1 + how many are larger."""
    return 1 + (means[..., None, :] > means[..., :, None]).sum(axis=-1)


def protocol_words(protocol: Protocol) -> str:
    """All that a protocol fixes, on one line; unequal protocols read differently."""
    words = [f"{protocol.epochs} epochs", f"batch {protocol.batch_size}{', last one dropped' if protocol.drop_last else ''}",
             f"{protocol.optimiser} {protocol.rate:g}, momentum {protocol.momentum:g}", f"weight decay {protocol.weight_decay:g}"]
    warm = protocol.warmup_epochs
    share = f" from {protocol.warmup_start:.3g} of it" if protocol.warmup_start else ""
    words += [f"{warm} warm-up epoch{'s' if warm > 1 else ''}{share}"] if warm else []
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
