"""What the page's templates show of each paper: its answer, its tables as laid out, its claims; and the matrix of all."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from common.paper import Table
from common.report.answer import Answer, answer_of, cell_word, claim_word, sentence_of, sentence_of_all
from common.report.claims import Claim, Outcome, evaluate
from common.report.compare import Cell, cells, minutes
from common.report.layout import METRICS, Grid, grid, pieces
from common.report.order import ColumnOrder
from common.report.page.filters import CELL_WORDS, CLAIM_WORDS, Count, address, counts
from common.report.results import Records, Results
from common.report.tables import behind, claim_test


class Row(NamedTuple):
    """A row of a table in one variant. again: whether the row above is another variant of it. cells: each with its address,
    which is empty where the cell stands in a row above too."""

    label: str
    reading: str
    again: bool
    says_variant: bool
    cells: tuple[tuple[Cell | None, str], ...]


class Piece(NamedTuple):
    """A table, or the part of it that is about one column."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]


class Laid(NamedTuple):
    """A table as it is laid out. remarks: rows, and what was noted on reading their numbers."""

    number: str
    caption: str
    metric: str
    pieces: tuple[Piece, ...]
    remarks: tuple[tuple[str, str], ...]
    behind: str


class Tested(NamedTuple):
    """A claim in one variant, and the test that it became."""

    claim: Claim
    test: str
    outcome: Outcome


class Square(NamedTuple):
    """Papers by datasets: the printed numbers of a paper on a dataset, each as verdict and address, and their counts."""

    dataset: str
    numbers: tuple[tuple[str, str], ...]
    counts: tuple[Count, ...]


class PaperPart(NamedTuple):
    """A paper. ours: counts of the claims that are ours, not the paper's; following: how many claims follow from others; words:
    its verdicts, for the filter; squares: one for each dataset of the page."""

    name: str
    title: str
    answer: Answer
    sentence: str
    tables: tuple[Laid, ...]
    tested: tuple[Tested, ...]
    ours: tuple[Count, ...]
    following: int
    words: tuple[str, ...]
    squares: tuple[Square, ...]
    runs: int
    minutes: float
    keys: tuple[str, ...]


def paper_part(results: Results, tested: Sequence[ColumnOrder]) -> PaperPart:
    """Everything of a paper under the published protocol. tested: its orders."""
    paper, records, all_cells, outcomes = results.paper, results.records, cells(results), evaluate(results)
    answer = answer_of(paper, all_cells, tested, outcomes)
    used = dict.fromkeys(key for cell in all_cells for key in cell.keys)
    words = [count.word for count in counts(map(cell_word, all_cells), CELL_WORDS)]
    words += [count.word for count in counts(map(claim_word, outcomes), CLAIM_WORDS)]
    return PaperPart(
        paper.name, paper.title, answer, sentence_of(answer),
        tuple(laid_out(table, [c for c in all_cells if c.table == table.number], records, paper.name)
              for table in (*paper.tables, *loose_numbers(results))),
        tuple(Tested(one.claim, claim_test(one.claim), one) for one in outcomes),
        counts((claim_word(one) for one in outcomes if one.claim.ours and not one.follows), CLAIM_WORDS),
        len({one.claim.id for one in outcomes if one.follows}), tuple(dict.fromkeys(words)), squares(results, answer),
        len(used), minutes(records[key] for key in used), tuple(used))


def loose_numbers(results: Results) -> tuple[Table, ...]:
    """What published.csv prints outside the tables that are replicated: in the text, or in a figure."""
    captions = {row.table: row.caption_short for row in results.printed}
    known = {table.number for table in results.paper.tables}
    return tuple(Table(number, caption) for number, caption in captions.items() if number not in known)


def squares(results: Results, answer: Answer) -> tuple[Square, ...]:
    """The printed numbers by dataset, as published.csv names them."""
    datasets, by_dataset = {row.column: row.dataset for row in results.printed}, {}
    for cell in answer.numbers:
        by_dataset.setdefault(datasets[cell.stands_for], []).append((cell_word(cell), address(cell, results.paper.name)))
    return tuple(Square(name, tuple(numbers), counts((word for word, _ in numbers), CELL_WORDS))
                 for name, numbers in by_dataset.items())


# ---------------------------------------------------------------- tables


def laid_out(table: Table, own_cells: list[Cell], records: Records, paper: str) -> Laid:
    """A table as the paper lays it out."""
    parts, seen = pieces(own_cells), set()
    shown = tuple(_piece(grid(part), "" if len(parts) == 1 else part[0].column, paper, seen) for part in parts)
    metrics = dict.fromkeys(METRICS.get(cell.metric, cell.metric) for cell in own_cells)
    facts = html.unescape(behind(own_cells, records))  # it is made for Markdown
    return Laid(table.number, table.caption, " / ".join(metrics), shown, _remarks(own_cells), facts)


def _piece(laid: Grid, title: str, paper: str, seen: set[str]) -> Piece:
    """seen: the addresses that this table has given out."""
    header = tuple(laid.header(place, "" if title else place.column) for place in laid.columns)
    rows, label, readings = [], "", set()
    for row in laid.rows:
        shown = []
        for cell in row.cells:
            place = address(cell, paper) if cell else ""
            shown.append((cell, "" if place in seen else place))
            seen.add(place)
        again = row.label == label and row.reading not in readings
        label, readings = row.label, {*(readings if again else ()), row.reading}
        rows.append(Row(row.label, row.reading, again, row.says_variant, tuple(shown)))
    return Piece(title, header, tuple(rows))


def _remarks(own_cells: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    by_remark: dict[str, dict[str, None]] = {}
    for cell in own_cells:
        if cell.remark:
            by_remark.setdefault(cell.remark, {})[cell.row] = None
    return tuple((", ".join(rows), remark) for remark, rows in by_remark.items())


# ---------------------------------------------------------------- all papers


def whole(papers: Sequence[PaperPart], records: Records) -> dict[str, Any]:
    """All papers in a sentence and in counts: each number, each claim and each run once."""
    keys = dict.fromkeys(key for paper in papers for key in paper.keys)
    datasets = dict.fromkeys(square.dataset for paper in papers for square in paper.squares)
    numbers = [cell for paper in papers for cell in paper.answer.numbers]
    matrix = [(paper, [next((one for one in paper.squares if one.dataset == name), None) for name in datasets])
              for paper in papers]
    return {"sentence": sentence_of_all([paper.answer for paper in papers]), "datasets": tuple(datasets), "matrix": matrix,
            "numbers": counts(map(cell_word, numbers), CELL_WORDS), "runs": len(keys),
            "minutes": minutes(records[key] for key in keys)}
