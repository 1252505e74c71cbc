"""What the page shows across papers: the leaderboards, "Numbers or order?", and the same cell in several papers, as text."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.report import boards, order, same_cell
from common.report.boards import Behind, Board, Entrant, LeaderboardRow
from common.report.intervals import Interval
from common.report.layout import METRICS
from common.report.order import Order
from common.report.page import pairs
from common.report.page.views import Places, planned_by, short, whose
from common.report.results import Results
from common.report.same_cell import Ours, Print, SameCell
from common.report.text import number, signed

NOTHING = "–"


class Value(NamedTuple):
    """A cell of a sortable table: what it shows, and by what it is sorted where that is something else."""

    text: str
    key: str = ""


class StandingView(NamedTuple):
    """A row of a leaderboard. label: of the command line; name, reading: its parts; words: whose own, what is missing.

    values: by the names of `LeaderboardRow`'s fields.
    """

    label: str
    name: str
    reading: str
    words: tuple[str, ...]
    papers: str
    runs: tuple[int, ...]
    about: str
    values: Mapping[str, Value]


class BoardView(NamedTuple):
    column: str
    setting: str
    trained: int
    rows: tuple[StandingView, ...]
    flags: tuple[str, ...]
    paired: bool  # whether any row is compared with the first on the same images


class OrderView(NamedTuple):
    """A column of a paper's table in one reading. strip: low end, tau and high end, from 0 to 100."""

    where: str
    reading: str
    tau: Value
    interval: str
    strip: tuple[float, ...]
    pairs: Value
    methods: Value
    notes: tuple[str, ...]
    places: tuple[tuple[str, int, int, str, str], ...]


class PrintView(NamedTuple):
    where: str
    printed: str
    reference: str


class OursView(NamedTuple):
    """Our runs under one setting. whose: the papers that plan them, and as which reading."""

    text: str
    whose: str
    setting: str
    more: str
    runs: tuple[int, ...]
    about: str


class SameView(NamedTuple):
    column: str
    method: str
    prints: tuple[PrintView, ...]
    spread: str
    ours: tuple[OursView, ...]
    why: str


def comparison_views(results: Sequence[Results], places: Places, entrants: Sequence[Entrant]) -> dict[str, Any]:
    """Everything across papers for the templates, under the published protocol. entrants: all methods of it."""
    hits = results[0].hits
    found = boards.boards_of(entrants, hits)
    tested = order.orders(results)
    cells = same_cell.same_cells(results)
    shown = [same_view(cell, places) for cell in cells]
    return {
        "boards": [board_view(board, places) for board in by_size(found) if _trained(board)],
        "untrained": [(board.column.name, board.setting, len(board.rows)) for board in found if not _trained(board)],
        "orders": [order_view(one) for one in tested if one.tau is not None],
        "order_answer": order_answer(tested),
        "no_orders": [(_where(one), one.reading, one.why) for one in tested if one.tau is None],
        "same": [view for view, cell in zip(shown, cells, strict=True) if cell.differ],
        "alike": [view for view, cell in zip(shown, cells, strict=True) if not cell.differ],
        "has_pairs": any(record["key"] in hits for entrant in entrants for record in entrant.runs.done),
        "comparison_rules": {"boards": boards.RULE, "pairs": pairs.RULE, "order": order.RULE, "same": same_cell.RULE},
    }


# ---------------------------------------------------------------- leaderboards


def by_size(found: Sequence[Board]) -> list[Board]:
    """The boards of one column together, the column of the largest board first."""
    largest: dict[str, int] = {}
    for board in found:
        largest[board.column.name] = max(largest.get(board.column.name, 0), _trained(board))
    return sorted(found, key=lambda board: (-largest[board.column.name], board.column.name, -_trained(board)))


def _trained(board: Board) -> int:
    return sum(row.n > 0 for row in board.rows)


def board_view(board: Board, places: Places) -> BoardView:
    rows = tuple(_standing_view(row, board, places) for row in board.rows)
    paired = any(row.behind for row in board.rows)
    return BoardView(board.column.name, board.setting, _trained(board), rows, board.flags, paired)


def _standing_view(row: LeaderboardRow, board: Board, places: Places) -> StandingView:
    values = {name: _value(getattr(row, name)) for name in ("mean", "sd", "many", "medium", "few", "ece", "best", "seconds")}
    rank = NOTHING if row.rank is None else str(row.rank) + (f" ({row.ranks[0]} to {row.ranks[1]})" if row.ranks else "")
    values |= {"rank": Value(rank, "" if row.rank is None else str(row.rank)), "n": Value(str(row.n)),
               "interval": Value(*_interval_texts(row.interval)), **_behind_values(row.behind)}
    lacks = row.state if row.n == 0 else f"{row.diverged} diverged" if row.diverged else ""
    own = f"{' and '.join(map(short, row.own))}'s own" if row.own else ""
    other = "" if row.is_main or row.variant else "in no main table"
    name, _, reading = row.label.rpartition("@")
    return StandingView(row.label, name, reading, tuple(text for text in (own, other, lacks) if text),
                        planned_by(row.sources, row.label), places.of(row.keys),
                        f"{row.label} · {board.column.name}", values)


def _behind_values(behind: Behind | None) -> dict[str, Value]:
    """The comparison with the first row: points behind it with their interval, p, and how often only one of both is right."""
    if behind is None:
        return dict.fromkeys(("behind", "p", "only"), Value(NOTHING))
    test = behind.test
    return {"behind": Value(f"{signed(test.difference)} ({signed(test.low)} to {signed(test.high)})", f"{test.difference:.6g}"),
            "p": Value(f"{behind.p:.3g}", f"{behind.p:.6g}"), "only": Value(f"{test.wins} / {test.losses}", str(test.wins))}


def _value(value: float | None) -> Value:
    return Value(NOTHING if value is None else number(value))


def _interval_texts(interval: Interval | None) -> tuple[str, str]:
    """As it is shown, and its width, by which it is sorted."""
    if interval is None:
        return NOTHING, ""
    return f"{number(interval.low)} to {number(interval.high)}", f"{interval.high - interval.low:.6g}"


# ---------------------------------------------------------------- order


def order_view(one: Order) -> OrderView:
    low, high = one.interval or (one.tau, one.tau)
    ranks = sorted(one.places, key=lambda place: place.published_rank)
    return OrderView(
        _where(one), one.reading, Value(signed(one.tau)),
        f"{signed(low)} to {signed(high)}" if one.interval else "needs two seeds of each method",
        tuple(50 * (1 + t) for t in (low, one.tau, high)),
        Value(f"{one.agree} of {one.pairs}", f"{one.agree / one.pairs if one.pairs else 0:.6g}"), Value(str(one.n)),
        tuple(text for text in (one.note, f"left out: {', '.join(one.left_out)}" if one.left_out else "") if text),
        tuple((at.label, at.published_rank, at.our_rank, at.printed, number(at.ours)) for at in ranks))


def _where(one: Order) -> str:
    metric = METRICS.get(one.metric, one.metric) if one.metric != "top1_accuracy" else ""
    return ", ".join(part for part in (f"{short(one.paper)} Table {one.table}", one.column, one.group, metric) if part)


def order_answer(tested: Sequence[Order]) -> str:
    """The one sentence that "Numbers or order?" comes down to."""
    columns: dict[tuple[str, ...], list[Order]] = {}
    for one in tested:
        if one.tau is not None:
            columns.setdefault((one.paper, one.table, one.column, one.metric, one.group), []).append(one)
    if not columns:
        return "No column has three methods with runs yet, so no order can be compared."
    several, both = len(columns), sum(len(same) > 1 for same in columns.values())
    median = statistics.median(statistics.median(one.tau for one in same) for same in columns.values())
    sure = sum(all(one.interval is not None and one.interval.low > 0 for one in same) for same in columns.values())
    if several == 1:
        return (f"In 1 column{' (in both readings)' if both else ''} at least three methods have runs. The rank correlation of "
                f"printed and our order is {signed(median)}; its interval {'lies' if sure else 'does not lie'} above zero.")
    return (f"In {several} columns ({both} in both readings) at least three methods have runs. The median rank correlation of "
            f"printed and our order is {signed(median)}, a column with both readings counted once; in {sure} of them the "
            "interval lies above zero in every reading.")


# ---------------------------------------------------------------- the same cell


def same_view(cell: SameCell, places: Places) -> SameView:
    about = " · ".join(part for part in (cell.method, cell.column, cell.group) if part)
    ours = tuple(_ours_view(one, about, places) for one in cell.ours)
    name = cell.column + (f", {cell.group}" if cell.group else "")
    return SameView(name, cell.method, tuple(map(_print_view, cell.prints)), number(cell.spread), ours, cell.why)


def _print_view(one: Print) -> PrintView:
    printed = f"{number(one.accuracy)} (error {one.printed})" if one.is_error else one.printed
    return PrintView(f"{short(one.paper)} Table {one.table}", printed, one.reference)


def _ours_view(one: Ours, about: str, places: Places) -> OursView:
    text = one.state if one.mean is None else f"{number(one.mean)}{'' if one.sd is None else f' ± {number(one.sd)}'} ({one.n})"
    more = f"one more run: {_interval_texts(one.interval)[0]}" if one.interval else ""
    lines = whose(one.sources)
    return OursView(text, lines, one.setting, more, places.of(one.keys), f"{about} · {lines}")
