"""The same cell in several papers: what two papers or more print for one method and column, beside our runs.

Errors are converted to accuracies. Two numbers agree if the one with more decimals, rounded to the decimals of the other, is
the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from itertools import combinations
from typing import Any

from common.report.boards import Entrant, entrants
from common.report.compare import measure
from common.report.groups import WHOLE, is_group
from common.report.intervals import Interval, prediction_interval, spread, within_percent
from common.report.protocols import protocol_words
from common.report.results import Results

METRICS = ("top1_accuracy", "top1_error")
RULE = (
    "All cells that two papers or more print: one dataset, imbalance, backbone, method and group of classes. Errors are shown as "
    "accuracies, and numbers of unlike precision agree if rounding makes them equal. Spread is the largest printed "
    "number less the smallest. Ours is a mean over seeds of last-epoch accuracies under each protocol, with the 95 % prediction "
    "interval of one more run."
)


@dataclass(frozen=True)
class Print:
    """A number as a paper prints it, and as an accuracy in percent. reference: whom the paper quotes ("ours", "[4]", "")."""

    paper: str
    table: str
    row: str
    printed: str
    accuracy: float
    is_error: bool
    reference: str


@dataclass(frozen=True)
class Ours:
    """Our runs of the cell under one protocol, accuracies in percent. sources: (paper, label) of those that plan them.

    state: "mean", "no run yet", "diverged", "not run: ...", or that the records have no such classes; only "mean" has numbers.
    interval: where the accuracy of one more run would fall, within 0 to 100.
    """

    setting: str
    sources: tuple[tuple[str, str], ...]
    state: str
    n: int
    mean: float | None
    sd: float | None
    interval: Interval | None
    keys: tuple[str, ...]


@dataclass(frozen=True)
class SameCell:
    """A cell of several papers. spread: in points; differ: whether some two numbers do not agree to their precision.

    why: why nothing of ours stands beside it; "" where `ours` does.
    """

    dataset: str
    imbalance: str
    ratio: str
    backbone: str
    column: str
    method: str
    group: str
    prints: tuple[Print, ...]
    spread: float
    differ: bool
    ours: tuple[Ours, ...]
    why: str


def same_cells(results: Sequence[Results]) -> tuple[SameCell, ...]:
    """Every cell that two papers or more print: those that differ first, the largest spread before the others."""
    by_place: dict[tuple[str, ...], list[Any]] = {}
    for one in results:
        for row in one.printed:
            if row.metric in METRICS and is_group(row.group):
                place = (row.dataset, row.imbalance_type, row.imbalance_ratio, row.backbone, row.column, row.method, row.variant,
                         "" if row.group in WHOLE else row.group)
                by_place.setdefault(place, []).append(row)
    runs = entrants(results)
    shared = [(place, rows) for place, rows in by_place.items() if len({row.paper for row in rows}) > 1]
    cells = [_same_cell(place, rows, results, runs) for place, rows in shared]
    return tuple(sorted(cells, key=lambda cell: (not cell.differ, -cell.spread)))


def _same_cell(place: tuple[str, ...], rows: Sequence[Any], results: Sequence[Results], runs: Iterable[Entrant]) -> SameCell:
    dataset, *rest, column, method, variant, group = place
    name = f"{method}[{variant}]" if variant else method
    prints = tuple(_print(row) for row in rows)
    accuracies = [_accuracy(row) for row in rows]
    columns = {shown for one in results for shown in one.columns_shown.get(column, ())}
    there = [run for run in runs if run.column in columns]
    ours = tuple(_ours(run, group) for run in there if name in {label.rsplit("@", 1)[0] for _, label in run.sources})
    why = "" if ours else _why_not(dataset, results, bool(columns))
    differ = not all(map(agree, *zip(*combinations(accuracies, 2), strict=True)))
    return SameCell(dataset, *rest, column, name, group, prints, float(max(accuracies) - min(accuracies)), differ, ours, why)


def _print(row: Any) -> Print:
    return Print(row.paper, row.table, row.row, row.value, float(_accuracy(row)), row.metric == "top1_error", row.method_ref)


def _accuracy(row: Any) -> Decimal:
    """The printed number as an accuracy with the decimals that it is printed with."""
    return 100 - Decimal(row.value) if row.metric == "top1_error" else Decimal(row.value)


def agree(one: Decimal, other: Decimal) -> bool:
    """Whether two printed numbers are equal to the precision of the coarser one.

    >>> agree(Decimal("73.1"), Decimal("73.06")), agree(Decimal("55.8"), Decimal("55.70"))
    (True, False)
    """
    coarse = max(one, other, key=lambda value: value.as_tuple().exponent)
    return one.quantize(coarse, ROUND_HALF_UP) == other.quantize(coarse, ROUND_HALF_UP)


def _ours(run: Entrant, group: str) -> Ours:
    done = run.runs.done
    values = tuple(measure(record, "top1_accuracy", group) for record in done)
    state = "mean" if done else "diverged" if run.runs.diverged else run.waiting
    if None in values:
        values, state = (), f"no {group} classes"
    mean, sd = spread(values)
    keys = tuple(record["key"] for record in done)
    further = within_percent(prediction_interval(values))
    return Ours(protocol_words(run.protocol), run.sources, state, len(values), mean, sd, further, keys)


def _why_not(dataset: str, results: Iterable[Results], is_planned: bool) -> str:
    """In the words of `compare.Cell.state`."""
    if is_planned:
        return "not run: no such method here"
    known = {column.dataset for one in results for column in one.paper.columns["paper"]}
    return "not run: column not planned" if dataset in known else f"not run: needs {dataset}"
