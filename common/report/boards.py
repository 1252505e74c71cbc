"""Leaderboards that no paper prints: in each column all methods of all papers that were trained under one protocol.

A method of two stages belongs to the protocol of the stage that trains the whole network: the second stage of a decoupled
classifier is part of the method. A run that several papers print is one row.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

from common.cost import not_run
from common.plan import Run
from common.report.compare import NO_RUN, drawn_lists, flags, made
from common.report.intervals import Interval, central, confidence_interval, mean_of, resampled_means, spread, within_percent
from common.report.paired import NO_HITS, Hits, Paired, compare
from common.report.protocols import protocol_words
from common.report.results import MethodRuns, Record, Records, Results, once
from common.report.significance import holm
from common.spec import Column, Protocol

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
class LeaderboardRow:
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
    rows: tuple[LeaderboardRow, ...]
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
    runs: MethodRuns
    sources: tuple[tuple[str, str], ...]
    own: tuple[str, ...]
    is_main: bool
    waiting: str
    costs: tuple[float | None, ...]


def boards(results: Sequence[Results]) -> tuple[Board, ...]:
    """A board for every column and protocol under which the papers plan two plain rows or more: columns in the order of the
    papers, the protocol with most methods first. Run methods without a record are listed with why. results: of each paper,
    all of the same records and profile."""
    return boards_of(entrants(results), results[0].hits)


def boards_of(methods: Iterable[Entrant], hits: Mapping[str, Hits] = NO_HITS) -> tuple[Board, ...]:
    """The boards of what the papers plan."""
    grouped: dict[Column, dict[Protocol, list[Entrant]]] = {}
    for entrant in methods:
        grouped.setdefault(entrant.column, {}).setdefault(entrant.protocol, []).append(entrant)
    several = []
    for settings in grouped.values():
        fullest = sorted(settings.values(), key=_plain_rows, reverse=True)
        several += [_board(some, hits) for some in fullest if _plain_rows(some) > 1]
    return tuple(several)


def _plain_rows(methods: Iterable[Entrant]) -> int:
    return sum(not entrant.runs.method.variant for entrant in methods)


def entrants(results: Iterable[Results]) -> list[Entrant]:
    """Everything that the papers plan in a profile and that classifies, each key once."""
    by_key: dict[str, Entrant] = {}
    for one in results:
        for key, entrant in own_entrants(one):
            by_key[key] = _joined(by_key[key], entrant) if key in by_key else entrant
    return list(by_key.values())


@once
def own_entrants(results: Results) -> list[tuple[str, Entrant]]:
    """The methods that a paper plans and that classify, as it alone knows them, each with the key of its first run."""
    main = main_rows(results)
    columns = [column for column in results.paper.columns[results.profile] if not column.is_drawn]  # those have their own section
    return [(runs.planned[0].spec.key, _entrant(results, column, runs, main)) for column in columns
            for runs in results.runs(column) if runs.method.task == "classes"]


def _entrant(results: Results, column: Column, runs: MethodRuns, main: Container[tuple[str, str]]) -> Entrant:
    paper, method = results.paper, runs.method
    is_own = method.name in paper.own
    is_main = not method.variant and (is_own or (column.name, method.name) in main)
    waiting = not_run(paper, column, method, results.speeds) if column.name in paper.large else NO_RUN
    costs = tuple(_cost(runs.planned[record["spec"]["seed"]], results.records) for record in runs.done)
    return Entrant(column, whole_stage(runs.planned[0]).spec.protocol, runs, ((paper.name, method.label),),
                   (paper.name,) * is_own, is_main, waiting, costs)


def _joined(known: Entrant, other: Entrant) -> Entrant:
    """One method that two papers train: named by the first that has it as a plain row."""
    keep = known.runs if not known.runs.method.variant or other.runs.method.variant else other.runs
    return known._replace(runs=keep, sources=known.sources + other.sources, own=tuple(dict.fromkeys(known.own + other.own)),
                          is_main=known.is_main or other.is_main)


def main_rows(results: Results) -> set[tuple[str, str]]:
    """(column, method) of what the main tables print; of all tables in a column that no main table prints."""
    in_main, in_any = set(), set()
    for row in results.printed:
        for column in results.columns_shown.get(row.column, ()):
            in_any.add((column.name, row.method))
            if row.table in results.paper.main:
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


def _board(methods: Sequence[Entrant], hits: Mapping[str, Hits]) -> Board:
    rows = [leaderboard_row(entrant) for entrant in methods]
    main = [(row, entrant) for row, entrant in zip(rows, methods, strict=True) if row.n and row.is_main]
    ranked = _with_ranks([row for row, _ in main], [_last(entrant.runs) for _, entrant in main])
    ranked = _behind_the_first(ranked, {row.keys: entrant.runs.done for row, entrant in main}, hits)
    others = sorted((row for row in rows if row.n and not row.is_main), key=lambda row: -row.mean)
    used = [record for entrant in methods for record in (*entrant.runs.done, *entrant.runs.starts)]
    return Board(methods[0].column, methods[0].protocol, (*ranked, *others, *(row for row in rows if not row.n)),
                 (*flags(used), *drawn_lists(used)))


def leaderboard_row(entrant: Entrant) -> LeaderboardRow:
    """The numbers of one method, without its rank."""
    method, done, lost = entrant.runs.method, entrant.runs.done, entrant.runs.diverged
    values = _last(entrant.runs)
    mean, sd = spread(values)
    groups = {name: mean_of([record["groups"][name] for record in done]) for name in ("many", "medium", "few")}
    return LeaderboardRow(
        method.label, method.name, method.reading, method.variant, entrant.sources, entrant.own, entrant.is_main,
        "mean" if done else "diverged" if lost else entrant.waiting, len(done), len(lost), mean, sd,
        within_percent(confidence_interval(values)),
        **groups, ece=mean_of([record["calibration"]["ece"] for record in done]),
        best=mean_of([record["accuracy"]["best"] for record in done]),
        seconds=fmean(entrant.costs) if entrant.costs and None not in entrant.costs else None,
        devices=made(done, "device"), keys=tuple(record["key"] for record in done),
    )


def _last(runs: MethodRuns) -> tuple[float, ...]:
    return tuple(record["accuracy"]["last"] for record in runs.done)


def _with_ranks(rows: Sequence[LeaderboardRow], runs: Sequence[tuple[float, ...]]) -> list[LeaderboardRow]:
    """The rows by rank, with the rank of each among the means and its interval over seeds."""
    import numpy as np

    if not rows:
        return []
    drawn = resampled_means(runs)
    ranks = ranks_of(drawn)
    ranked = []
    for i, (row, rank) in enumerate(zip(rows, ranks_of(np.array([[row.mean for row in rows]]))[0], strict=True)):
        low, high = central(ranks[:, i])
        ranked.append(replace(row, rank=int(rank), ranks=(int(low), int(high)) if row.n > 1 else None))
    return sorted(ranked, key=lambda row: row.rank)


def _behind_the_first(ranked: Sequence[LeaderboardRow], runs: Mapping[tuple[str, ...], Sequence[Record]], hits: Mapping[str, Hits]
                      ) -> list[LeaderboardRow]:
    """The ranked rows, compared with the first of them where both have predictions. runs: of a row, by its keys."""
    tests = {i: compare(runs[row.keys], runs[ranked[0].keys], hits) for i, row in enumerate(ranked[1:], 1)}
    tests = {i: test for i, test in tests.items() if test}
    corrected = dict(zip(tests, holm(test.p_either for test in tests.values()), strict=True))
    return [replace(row, behind=Behind(tests[i], corrected[i])) if i in tests else row for i, row in enumerate(ranked)]


def ranks_of(means):
    """Ranks [..., methods] of means [..., methods]: 1 + how many are larger."""
    return 1 + (means[..., None, :] > means[..., :, None]).sum(axis=-1)
