"""What the page shows across papers: the leaderboards, "Numbers or order?", and the same cell in several papers."""

import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from common.paper import Paper
from common.report import boards, order, same_cell
from common.report.answer import column_taus
from common.report.boards import Board, Entrant
from common.report.order import ColumnOrder
from common.report.page import pairs
from common.report.page.filters import short, slug
from common.report.paired import NO_HITS, Hits
from common.report.results import Results
from common.report.text import signed
from common.spec import Column, Protocol

SETTING = (
    "A board has all methods that were trained equally long on the same images, from the same start. The column “setting” "
    "says where a method's setting departs from the most usual one, which stands in the heading: such methods are comparable "
    "in what they reach, and not in the loss alone."
)


class OnePerColumn(NamedTuple):
    """A leaderboard. settings: of each row, how its setting departs from the board's, "" where it does not; missing: papers
    whose own methods are not on it, and why."""

    board: Board
    address: str
    trained: int
    settings: tuple[str, ...]
    missing: tuple[str, ...]
    is_paired: bool  # whether any row is compared with the first on the same images


def comparisons(results: Sequence[Results], entrants: Sequence[Entrant], tested: Sequence[ColumnOrder]) -> dict[str, Any]:
    """Everything across papers for the templates, under the published protocol. entrants: all methods of it; tested: all
    orders."""
    hits = results[0].hits
    per_column = boards_of_columns([one.paper for one in results], entrants, hits)
    cells = same_cell.same_cells(results)
    return {
        "boards": by_size([one for one in per_column if one.trained]),
        "untrained": [one.board for one in per_column if not one.trained],
        "orders": [one for one in tested if one.tau is not None], "order_answer": order_answer(tested),
        "no_orders": [one for one in tested if one.tau is None],
        "same": [cell for cell in cells if cell.differ], "alike": [cell for cell in cells if not cell.differ],
        "has_pairs": any(record["key"] in hits for entrant in entrants for record in entrant.runs.done),
        "comparison_rules": {"boards": boards.RULE, "pairs": pairs.RULE, "order": order.RULE, "same": same_cell.RULE},
        "setting_rule": SETTING,
    }


# ---------------------------------------------------------------- leaderboards


def boards_of_columns(papers: Sequence[Paper], entrants: Iterable[Entrant], hits: Mapping[str, Hits] = NO_HITS
                      ) -> list[OnePerColumn]:
    """One board for every column, and a further one where settings are not comparable, as the papers have the columns."""
    entrants, grouped = list(entrants), {}
    for entrant in entrants:
        grouped.setdefault((entrant.column, comparable(entrant.protocol)), []).append(entrant)
    trained = {(entrant.column, paper, method_of(label)) for entrant in entrants for paper, label in entrant.sources}
    several = []
    for some in grouped.values():
        usual = Counter(entrant.protocol for entrant in some).most_common(1)[0][0]
        own = {entrant.sources: entrant.protocol for entrant in some}
        for board in boards.boards_of([entrant._replace(protocol=usual) for entrant in some], hits):
            settings = tuple(departs(own[row.sources], usual) for row in board.rows)
            several.append(_one(board, settings, missing(board, papers, trained)))
    return several


def method_of(label: str) -> str:
    """The name in a label.

    >>> method_of("own[beta=1]@written")
    'own'
    """
    return re.split(r"[\[@]", label)[0]


def comparable(protocol: Protocol) -> tuple:
    """What the settings of one board have in common: for how long they train, which layers, and from which weights."""
    return protocol.epochs, protocol.trains, getattr(protocol, "pretrained", False)


def departs(protocol: Protocol, usual: Protocol) -> str:
    """How a setting differs from another, field by field; "" where it does not."""
    names = {field.name for field in fields(protocol) if getattr(protocol, field.name) != getattr(usual, field.name, None)}
    words = {
        "batch_size": f"batch {protocol.batch_size}", "rate": f"rate {protocol.rate:g}", "optimiser": protocol.optimiser,
        "momentum": f"momentum {protocol.momentum:g}", "weight_decay": f"weight decay {protocol.weight_decay:g}",
        "drop_last": "last batch dropped" if protocol.drop_last else "last batch kept",
    }
    departures = [text for name, text in words.items() if name in names]
    if names & {"warmup_epochs", "warmup_start"}:
        departures.append(f"warm-up of {protocol.warmup_epochs} epochs from {protocol.warmup_start:.2g}")
    if names & {"schedule", "decay_epochs", "decay_factor"}:
        steps = f"× {protocol.decay_factor:g} at {', '.join(map(str, protocol.decay_epochs))}"
        departures.append("cosine" if protocol.schedule == "cosine" else steps if protocol.decay_epochs else "no decay")
    covered = {*words, "warmup_epochs", "warmup_start", "schedule", "decay_epochs", "decay_factor"}
    departures += [f"{name.replace('_', ' ')} {getattr(protocol, name)}" for name in sorted(names - covered)]
    return "; ".join(departures)


def _one(board: Board, settings: tuple[str, ...], absent: tuple[str, ...]) -> OnePerColumn:
    epochs, trains, pretrained = comparable(board.protocol)
    parts = [f"{epochs} epochs", trains if trains != "all" else "", "pretrained" if pretrained else ""]
    trained = sum(row.n > 0 for row in board.rows)
    return OnePerColumn(board, slug("board", board.column.name, *parts), trained, settings, absent,
                        any(row.behind for row in board.rows))


def missing(board: Board, papers: Sequence[Paper], trained: Collection[tuple[Column, str, str]]) -> tuple[str, ...]:
    """Each paper's own methods that are not on the board, with why. trained: column, paper and method of all that is planned."""
    there, lines = {(paper, method_of(label)) for row in board.rows for paper, label in row.sources}, []
    for paper in papers:
        reasons: dict[str, list[str]] = {}
        for name in paper.own:
            if (paper.name, name) not in there:
                why = ("trained in this column too, under a setting that is not comparable"
                       if (board.column, paper.name, name) in trained else "the paper does not train it in this column"
                       if board.column in paper.columns["paper"] else "the paper does not use this column")
                reasons.setdefault(why, []).append(name)
        lines += [f"{short(paper.name)} {', '.join(names)}: {why}" for why, names in reasons.items()]
    return tuple(lines)


def by_size(per_column: Sequence[OnePerColumn]) -> list[OnePerColumn]:
    """The boards of one column together, the column of the largest board first."""
    largest: dict[str, int] = {}
    for one in per_column:
        name = one.board.column.name
        largest[name] = max(largest.get(name, 0), one.trained)
    return sorted(per_column, key=lambda one: (-largest[one.board.column.name], one.board.column.name, -one.trained))


# ---------------------------------------------------------------- order


def order_answer(tested: Sequence[ColumnOrder]) -> str:
    """The one sentence that "Numbers or order?" comes down to."""
    columns: dict[tuple[str, ...], list[ColumnOrder]] = {}
    for one in tested:
        if one.tau is not None:
            columns.setdefault((one.paper, one.table, one.column, one.metric, one.group), []).append(one)
    if not columns:
        return "No column has three methods with runs yet, so no order can be compared."
    several, both = len(columns), sum(len(same) > 1 for same in columns.values())
    median = statistics.median(column_taus(tested))
    sure = sum(all(one.interval is not None and one.interval.low > 0 for one in same) for same in columns.values())
    if several == 1:
        return (f"In 1 column{' (in both variants)' if both else ''} at least three methods have runs. The rank correlation of "
                f"printed and our order is {signed(median)}; its interval {'lies' if sure else 'does not lie'} above zero.")
    return (f"In {several} columns ({both} in both variants) at least three methods have runs. The median rank correlation of "
            f"printed and our order is {signed(median)}, a column with both variants counted once; in {sure} of them the "
            "interval lies above zero in every variant.")
