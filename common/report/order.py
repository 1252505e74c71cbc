"""Numbers or order? Whether our runs put a table's methods in the order that the paper prints, column by column.

Kendall's tau-b: of all pairs of methods, those in the printed order less those in the opposite one, as a share of all
(pairs that are equal on one side lower it). Printed numbers and ours are in the same metric, so errors need no turning.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.paper import Paper
from common.report.compare import Cell, cells, why_not_measured
from common.report.intervals import Interval, central, resampled_means
from common.report.results import Results
from common.report.verdict import APART, LESS_IS_BETTER

if TYPE_CHECKING:
    import numpy as np

ENOUGH = 3  # fewer methods have no order worth a number
RULE = (
    "Kendall's tau-b between the printed numbers of a table's column and the means of our last-epoch numbers: 1 is the printed "
    "order, 0 none, -1 its opposite. Its 95 % interval is a bootstrap over seeds, each method on its own: it says how sure our "
    "order is, and nothing on how sure the printed one is; it needs two runs or more of every method. Columns that print fewer "
    f"than {ENOUGH} methods are not listed."
)


@dataclass(frozen=True)
class OrderedRow:
    """A method in both orders: its row of the table, the printed number (as text too) and ours in the printed metric, runs
    behind ours, and its rank in either (1 is the best)."""

    label: str
    printed: str
    published: float
    ours: float
    runs: int
    published_rank: int
    our_rank: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class ColumnOrder:
    """One printed column (of a table; for one group of classes and metric) in one reading.

    tau: None where it cannot be computed, and `why` says so in a sentence. interval: over seeds, None where a method has a
    single run. pairs, agree: pairs of methods, and those that both orders agree on. left_out: rows without a number of
    ours, with the reason. note: which rows take part in the only reading they have, and which are
    not comparable with their source.
    """

    paper: str
    table: str
    column: str
    metric: str
    group: str
    reading: str
    tau: float | None
    interval: Interval | None
    why: str
    note: str
    pairs: int
    agree: int
    places: tuple[OrderedRow, ...]
    left_out: tuple[str, ...]

    @property
    def n(self) -> int:
        return len(self.places)


def orders(results: Iterable[Results]) -> tuple[ColumnOrder, ...]:
    """One for every reading of every printed column of `ENOUGH` methods or more, as the papers and their tables stand."""
    all_orders = []
    for one in results:
        paper = one.paper
        numbers = [table.number for table in paper.tables]
        in_tables = [cell for cell in cells(one) if cell.table in numbers]
        places = list(dict.fromkeys(map(_printed_column, in_tables)))
        by_place = {place: [cell for cell in in_tables if _printed_column(cell) == place] for place in places}
        for place in sorted(places, key=lambda place: numbers.index(place[0])):
            if len({(cell.row, cell.variant) for cell in by_place[place]}) >= ENOUGH:
                all_orders += [_order(paper, by_place[place], reading) for reading in _readings(by_place[place])]
    return tuple(all_orders)


def _printed_column(cell: Cell) -> tuple[str, ...]:
    return cell.table, cell.stands_for, cell.metric, cell.group


def _readings(column: Sequence[Cell]) -> list[str]:
    """The readings that some row has, "written" first; "" where nothing of the column is trained."""
    return sorted({cell.reading for cell in column} - {""}, key=lambda reading: reading != "written") or [""]


def _order(paper: Paper, column: Sequence[Cell], reading: str) -> ColumnOrder:
    """A column's rows in this reading, or in the only one that a row has, as in the test of a claim."""
    rows: dict[tuple[str, ...], list[Cell]] = {}
    for cell in column:
        rows.setdefault((cell.row, cell.method, cell.variant, cell.printed), []).append(cell)
    in_reading = [next((cell for cell in same if cell.reading == reading), same[0]) for same in rows.values()]
    there = [cell for cell in in_reading if cell.n]
    tau, interval, why = _compare(there, column[0], len(in_reading))
    ranks = zip(_ranks(there, [cell.published for cell in there]), _ranks(there, [cell.mean for cell in there]), strict=True)
    places = tuple(OrderedRow(_label(cell), cell.printed, cell.published, cell.mean, cell.n, theirs, ours, cell.keys)
                   for cell, (theirs, ours) in zip(there, ranks, strict=True))
    pairs = [(a, b) for i, a in enumerate(there) for b in there[:i]]
    agree = sum((a.published - b.published) * (a.mean - b.mean) > 0 for a, b in pairs)
    single = [cell for cell in there if cell.reading != reading]
    notes = [f"in their only reading, {single[0].reading}: {', '.join(map(_label, single))}"] if single else []
    apart = [_label(cell) for cell in there if cell.verdict == APART]
    notes += [f"{APART} with their source: {', '.join(apart)}"] if apart else []
    left_out = tuple(f"{_label(cell)}: {cell.state}" for cell in in_reading if not cell.n)
    return ColumnOrder(paper.name, *_printed_column(column[0]), reading, tau, interval, why, "; ".join(notes), len(pairs), agree,
                 places, left_out)


def _label(cell: Cell) -> str:
    return f"{cell.row} [{cell.variant}]" if cell.variant else cell.row


def _ranks(column: Sequence[Cell], values: Sequence[float]) -> list[int]:
    """1 + how many are better, in the metric of the column."""
    sign = -1 if column and column[0].metric in LESS_IS_BETTER else 1
    return [1 + sum(sign * other > sign * value for other in values) for value in values]


def _compare(there: Sequence[Cell], first: Cell, printed: int) -> tuple[float | None, Interval | None, str]:
    """tau-b, its interval, and a sentence where there is none."""
    import numpy as np

    if why := why_not_measured(first.metric, first.group):
        return None, None, f"Not decidable: {why}."
    if len(there) < ENOUGH:
        return None, None, f"Methods with runs: {len(there)} of {printed}; an order needs {ENOUGH}."
    theirs = np.array([cell.published for cell in there])
    tau = float(tau_b(theirs, np.array([[cell.mean for cell in there]]))[0])
    if np.isnan(tau):
        return None, None, "All numbers of a side are equal, so there is no order."
    if min(cell.n for cell in there) < 2:
        return tau, None, ""
    drawn = tau_b(theirs, resampled_means([cell.values for cell in there]))
    return tau, central(drawn[~np.isnan(drawn)]), ""


def tau_b(one: "np.ndarray", others: "np.ndarray") -> "np.ndarray":
    """Kendall's tau-b of `one` [methods], or of each of its rows [draws, methods], with each row of `others` [draws, methods];
    NaN where a side has no order."""
    import numpy as np

    first, second = np.triu_indices(one.shape[-1], 1)
    a, b = np.sign(one[..., first] - one[..., second]), np.sign(others[:, first] - others[:, second])
    with np.errstate(invalid="ignore"):
        return (b * a).sum(axis=1) / np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=1))
