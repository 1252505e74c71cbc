"""What the page's templates show of each paper: its counts, its tables cell by cell, and its claims.

Everything here is plain text; the templates escape it.
"""

import html
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from common.paper import Table
from common.report.claims import Claim, Outcome, evaluate
from common.report.compare import Cell, cells, minutes
from common.report.intervals import prediction_interval, within_percent
from common.report.layout import METRICS, Grid, GridRow, grid, pieces
from common.report.readme import headline
from common.report.results import Records, Results
from common.report.tables import behind, claim_test
from common.report.text import mean_text, number, signed
from common.report.verdict import APART, VERDICTS

CELL_WORDS = (*VERDICTS, "stale", "diverged", "no run yet", "not run", "not decidable")
CLAIM_WORDS = ("holds", "undecided", "fails", "not run", "not decidable")
SIGNS = {"reproduced": "=", "near": "≈", "better": "▲", "worse": "▼", APART: "≠", "diverged": "✗",
         "holds": "✓", "undecided": "?", "fails": "✗"}
TONES = {"reproduced": "reproduced", "near": "near", "undecided": "near", "better": "better", "worse": "worse", APART: "apart",
         "diverged": "off", "holds": "reproduced", "fails": "off"}


class Count(NamedTuple):
    """How often a verdict occurs; tone is the class that colours it."""

    word: str
    number: int
    tone: str

    @property
    def sign(self) -> str:
        return SIGNS.get(self.word, "·")


@dataclass(frozen=True)
class CellView:
    """One cell as text: as printed, our last and best epoch, verdict, delta, remarks.

    runs: places of its records in the page's run data, finished ones first. about: the heading of the drill-down.
    beside: the comparison in words, with the prediction interval of our runs. is_run: whether it has a finished run.
    """

    printed: str
    setting: str
    ours: str
    best: str
    delta: str
    verdict: str
    tone: str
    notes: tuple[str, ...]
    runs: tuple[int, ...]
    about: str
    beside: str
    is_run: bool

    @property
    def sign(self) -> str:
        return SIGNS.get(self.verdict, "·")


class RowView(NamedTuple):
    """A row in one reading. span: how many rows, this one first, share the label; 0 below the first of them."""

    label: str
    span: int
    reading: str
    cells: tuple[CellView | None, ...]


class PieceView(NamedTuple):
    """A table, or the part of it that is about one column."""

    title: str
    header: tuple[str, ...]
    rows: tuple[RowView, ...]


@dataclass(frozen=True)
class TableView:
    number: str
    caption: str
    metric: str
    pieces: tuple[PieceView, ...]
    remarks: tuple[tuple[str, str], ...]  # rows, and what was noted on reading their numbers
    behind: str


class ClaimView(NamedTuple):
    claim: Claim
    test: str
    outcomes: tuple["OutcomeView", ...]


class OutcomeView(NamedTuple):
    reading: str
    printed: str
    verdict: str
    tone: str
    sign: str
    numbers: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PaperView:
    """One paper: counts for the front, tables, claims. head: place, and per reading the headline's cell. claims, ours: the
    counts of the paper's claims and of those that are ours; following: how many follow from others and are in neither."""

    name: str
    title: str
    head: str
    heads: tuple[tuple[str, CellView], ...]
    cells: tuple[Count, ...]
    claims: tuple[Count, ...]
    ours: tuple[Count, ...]
    following: int
    runs: int
    minutes: float
    tables: tuple[TableView, ...]
    tested: tuple[ClaimView, ...]
    keys: tuple[str, ...]


def counts(words: Iterable[str], order: Sequence[str]) -> tuple[Count, ...]:
    """How often each word occurs, in this order; words that do not occur are left out."""
    found = Counter(words)
    return tuple(Count(word, found[word], tone_of(word)) for word in order if found[word])


def tone_of(word: str) -> str:
    """The class that colours a verdict of a cell or a claim."""
    return TONES.get(word, "none")


def short(paper: str) -> str:
    """A paper's name as the page writes it."""
    return paper.upper().replace("_", "-")


def planned_by(sources: Iterable[tuple[str, str]], here: str) -> str:
    """The papers of runs, each with its own label where that is another than `here`.

    >>> planned_by([("one", "ce@written"), ("two", "erm@written")], "ce@written")
    'ONE, TWO (erm@written)'
    """
    return ", ".join(short(paper) + ("" if label == here else f" ({label})") for paper, label in sources)


def whose(sources: Iterable[tuple[str, str]]) -> str:
    """(paper, label) of runs in words: papers by reading, and a setting where the label has one.

    >>> whose([("one", "ce@written"), ("two_b", "ce@written"), ("three", "own[beta=1]@released")])
    'ONE and TWO-B, written; THREE [beta=1], released'
    """
    found: dict[str, dict[str, None]] = {}
    for paper, label in sources:
        name, _, reading = label.rpartition("@")
        variant = name.partition("[")[1] + name.partition("[")[2]
        found.setdefault(reading, {})[short(paper) + (f" {variant}" if variant else "")] = None
    return "; ".join(f"{' and '.join(names)}, {reading}" for reading, names in found.items())


def cell_word(cell: Cell) -> str:
    return cell.verdict or cell.state.partition(":")[0]


class Places:
    """Key -> place in the page's run data, given out in the order in which cells ask for them."""

    def __init__(self, records: Records):
        self.records = records
        self.keys: dict[str, int] = {}

    def of(self, keys: Iterable[str]) -> tuple[int, ...]:
        return tuple(self.keys.setdefault(key, len(self.keys)) for key in keys if key in self.records)


def paper_view(results: Results, places: Places) -> PaperView:
    """Everything of a paper under the published protocol."""
    paper, records, found = results.paper, results.records, cells(results)
    lost = _diverged(results, {cell.column for cell in found if cell.diverged})

    def view(cell: Cell, reading: str = "", says_variant: bool = False) -> CellView:
        keys = (*cell.keys, *lost.get((cell.column, cell.method, cell.variant, cell.reading), ()))
        return cell_view(cell, reading, says_variant, places.of(keys))

    outcomes = evaluate(results)
    head = headline(paper, found)
    place = [getattr(head, name) for name in HEAD_PLACE] if head else []
    heads = tuple((cell.reading, view(cell)) for cell in found if [getattr(cell, name) for name in HEAD_PLACE] == place)
    used = dict.fromkeys(key for cell in found for key in cell.keys)
    return PaperView(
        name=paper.name, title=paper.title,
        head=f"Table {head.table}, {head.row}, {head.column}, {METRICS.get(head.metric, head.metric)}" if head else "",
        heads=heads,
        cells=counts(map(cell_word, found), CELL_WORDS),
        claims=_claim_counts(outcomes, False), ours=_claim_counts(outcomes, True),
        following=sum(bool(outcome.follows) for outcome in outcomes),
        runs=len(used), minutes=minutes(records[key] for key in used),
        tables=tuple(table_view(table, [c for c in found if c.table == table.number], records, view) for table in paper.tables),
        tested=claim_views(outcomes), keys=tuple(used))


def _claim_counts(outcomes: Iterable[Outcome], is_ours: bool) -> tuple[Count, ...]:
    words = (o.verdict.partition(" (")[0] for o in outcomes if o.claim.ours == is_ours and not o.follows)
    return counts(words, CLAIM_WORDS)


HEAD_PLACE = ("table", "method", "variant", "column", "metric", "group")


def _diverged(results: Results, names: Collection[str]) -> dict[tuple[str, str, str, str], tuple[str, ...]]:
    """Column, method, variant, reading -> keys of the runs that diverged, which a cell only counts; of the columns in `names`."""
    columns = {column.name: column for column in results.paper.columns["paper"] if column.name in names}
    return {(name, runs.method.name, runs.method.variant, runs.method.reading): tuple(r["key"] for r in runs.diverged)
            for name, column in columns.items() for runs in results.runs(column) if runs.diverged}


def cell_view(cell: Cell, reading: str, says_variant: bool, runs: tuple[int, ...]) -> CellView:
    """reading: of the row, where it may be another than the cell's. says_variant: whether the row's cells differ in setting."""
    notes = [f"{cell.diverged} diverged"] if cell.diverged and cell.n else []
    notes += [f"as {cell.reading}"] if cell.reading and reading and cell.reading != reading else []
    notes += cell.flags
    parts = [f"Table {cell.table}", cell.row, cell.variant, cell.reading, cell.column, cell.group]
    return CellView(
        printed=cell.shown, setting=cell.variant if says_variant else "", ours=mean_text(cell.values) if cell.n else cell.state,
        best=mean_text(cell.best) if cell.best else "last epoch only" if cell.n else cell.state,
        delta="" if cell.delta is None else signed(cell.delta), verdict=cell.verdict or "",
        tone=tone_of(cell_word(cell)), notes=tuple(notes), runs=runs,
        about=" · ".join(part for part in parts if part), beside=_beside(cell),
        is_run=cell.n > 0)


def _beside(cell: Cell) -> str:
    """The cell in words, with where one further run of ours would lie, and whether the printed number does."""
    ours = mean_text(cell.values) if cell.n else cell.state
    found = f"Printed {cell.shown}, ours {ours}" + (f": {signed(cell.delta)}, {cell.verdict}." if cell.verdict else ".")
    interval = prediction_interval(cell.values)
    if interval is None or cell.quick:
        return found
    inside = "inside" if interval.low <= cell.published <= interval.high else "outside"
    low, high = within_percent(interval)
    return (f"{found} One further run would lie in {number(low)} to {number(high)} (95 % prediction interval); "
            f"the printed number is {inside}.")


def table_view(table: Table, chosen: list[Cell], records: Records, view: Any) -> TableView:
    """A table as the paper lays it out; view(cell, reading, says_variant) -> CellView."""
    found = pieces(chosen)
    shown = tuple(_piece(grid(piece), "" if len(found) == 1 else piece[0].column, view) for piece in found)
    metrics = dict.fromkeys(METRICS.get(cell.metric, cell.metric) for cell in chosen)
    facts = html.unescape(behind(chosen, records))  # it is made for Markdown
    return TableView(table.number, table.caption, " / ".join(metrics), shown, _remarks(chosen), facts)


def _piece(laid: Grid, title: str, view: Any) -> PieceView:
    header = tuple(laid.header(place, "" if title else place.column) for place in laid.columns)
    rows = []
    for _, same in groupby(_numbered(laid.rows), key=lambda pair: pair[0]):
        several = [row for _, row in same]
        for i, row in enumerate(several):
            shown = tuple(None if cell is None else view(cell, row.reading, row.says_variant) for cell in row.cells)
            rows.append(RowView(row.label, 0 if i else len(several), row.reading, shown))
    return PieceView(title, header, tuple(rows))


def _numbered(rows: Sequence[GridRow]) -> Iterable[tuple[int, GridRow]]:
    """Each row with the number of its group: the readings of one row of the paper."""
    group, seen = 0, ("", set())
    for row in rows:
        if row.label != seen[0] or row.reading in seen[1]:
            group, seen = group + 1, (row.label, set())
        seen[1].add(row.reading)
        yield group, row


def _remarks(chosen: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    found: dict[str, dict[str, None]] = {}
    for cell in chosen:
        if cell.remark:
            found.setdefault(cell.remark, {})[cell.row] = None
    return tuple((", ".join(rows), remark) for remark, rows in found.items())


def claim_views(outcomes: Sequence[Outcome]) -> tuple[ClaimView, ...]:
    """The claims in the order of claims.yaml, each with its outcome in every reading."""
    by_claim: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_claim.setdefault(outcome.claim.id, []).append(outcome)
    return tuple(ClaimView(found[0].claim, claim_test(found[0].claim), tuple(map(_outcome_view, found)))
                 for found in by_claim.values())


def _outcome_view(outcome: Outcome) -> OutcomeView:
    word = outcome.verdict.partition(" (")[0]
    numbers = [] if outcome.gap is None else [("smallest lead", f"{signed(outcome.gap)} in {outcome.where}")]
    if outcome.p is not None:
        found = (("p", outcome.p), ("p of the opposite", outcome.p_against), ("p, paired", outcome.p_paired))
        raw = ", not corrected" if outcome.follows else ""
        numbers += [(name + raw, f"{p:.3g}") for name, p in found if p is not None]
    return OutcomeView(outcome.reading, outcome.printed, outcome.verdict, tone_of(word), SIGNS.get(word, "·"), tuple(numbers),
                       outcome.notes)


def whole(papers: Sequence[PaperView], records: Records) -> Mapping[str, Any]:
    """The sums over all papers, each run counted once."""
    keys = dict.fromkeys(key for paper in papers for key in paper.keys)

    def total(name: str, order: Sequence[str]) -> tuple[Count, ...]:
        return counts((count.word for paper in papers for count in getattr(paper, name) for _ in range(count.number)), order)

    return {"cells": total("cells", CELL_WORDS), "claims": total("claims", CLAIM_WORDS),
            "ours": total("ours", CLAIM_WORDS), "following": sum(paper.following for paper in papers), "runs": len(keys),
            "minutes": minutes(records[key] for key in keys)}
