"""The answer before the tables: a paper in one sentence and all papers in one, each printed number and each claim counted once.

A number whose method is trained in two variants has two cells; counted is the paper's text (`written`) where it has runs, else
the released code.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from common.paper import Paper
from common.report.claims import Outcome
from common.report.compare import Cell
from common.report.layout import METRICS
from common.report.order import ColumnOrder
from common.report.text import mean_text, signed
from common.report.verdict import APART, NEAR

LATER = ("stale", "diverged", "not decidable")  # why a number has no verdict though it may be run
CLAIM_WORDS = {"holds": "held", "fails": "failed", "undecided": "undecided", "not run": "not run",
               "not decidable": "not decidable"}


@dataclass(frozen=True)
class Answer:
    """A paper in numbers. head: its headline's cell, counted once, None where it prints nothing; heads: the same in every
    variant; numbers: a cell for each printed number; taus: Kendall's tau of each column of a table that has one (`column_taus`);
    claims: a word of `CLAIM_WORDS` for each claim that the paper makes, without those that follow from others."""

    paper: str
    title: str
    head: Cell | None
    heads: tuple[Cell, ...]
    numbers: tuple[Cell, ...]
    taus: tuple[float, ...]
    claims: tuple[str, ...]


def answer_of(paper: Paper, cells: Sequence[Cell], tested: Iterable[ColumnOrder], outcomes: Iterable[Outcome]) -> Answer:
    """cells: all cells of the published protocol; tested: `orders`, of this paper or of more; outcomes: of its claims."""
    numbers = numbers_once(cells)
    own = headline(paper, cells)
    heads = tuple(cell for cell in cells if own and _number(cell) == _number(own))
    claims = tuple(CLAIM_WORDS[claim_word(outcome)] for outcome in claims_once(outcomes) if not outcome.claim.ours)
    return Answer(paper.name, paper.title, numbers_once(heads)[0] if heads else None, heads, numbers,
                  column_taus(one for one in tested if one.paper == paper.name), claims)


def headline(paper: Paper, cells: Sequence[Cell]) -> Cell | None:
    """The paper's own last row in its first table, in that table's first column: what it would be quoted for."""
    first = [cell for cell in cells if not paper.tables or cell.table == paper.tables[0].number]
    own = [cell for cell in first if cell.ours] or first
    return next((cell for cell in own if (cell.method, cell.variant) == (own[-1].method, own[-1].variant)), None)


def cell_word(cell: Cell) -> str:
    """The verdict of a cell, or in a word why it has none: "no run yet", "not run", "stale", "diverged", "not decidable"."""
    return cell.verdict or cell.state.partition(":")[0]


def claim_word(outcome: Outcome) -> str:
    """The verdict of a claim without what follows it in brackets or after a colon."""
    return re.split(r" \(|:", outcome.verdict)[0]


def numbers_once(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """One cell for each printed number, in the order of the table: the written one where it has runs, else the other."""
    return _first_of_each(cells, _number, lambda cell: (_waits(cell_word(cell)), cell.reading != "written"))


def claims_once(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """One outcome for each claim that follows from no other, chosen likewise."""
    own = [outcome for outcome in outcomes if not outcome.follows]
    return _first_of_each(own, lambda outcome: outcome.claim.id,
                          lambda outcome: (_waits(claim_word(outcome)), outcome.reading != "written"))


def _number(cell: Cell) -> tuple[str, ...]:
    return cell.table, cell.row, cell.method, cell.variant, cell.stands_for, cell.metric, cell.group


def _waits(word: str) -> int:
    """0 where there is something to say, 1 where runs do not count, 2 where there are none."""
    return 2 if word in ("no run yet", "not run", "not decidable") else int(word in ("stale", "diverged"))


def _first_of_each(items: Iterable[Any], name: Callable[[Any], object], order: Callable[[Any], tuple]) -> tuple[Any, ...]:
    grouped: dict[object, list[Any]] = {}
    for one in items:
        grouped.setdefault(name(one), []).append(one)
    return tuple(min(same, key=order) for same in grouped.values())


def column_taus(tested: Iterable[ColumnOrder]) -> tuple[float, ...]:
    """Kendall's tau of each column of a table in which enough methods have runs; of two variants the median."""
    columns: dict[tuple[str, ...], list[float]] = {}
    for one in tested:
        if one.tau is not None:
            columns.setdefault((one.paper, one.table, one.column, one.metric, one.group), []).append(one.tau)
    return tuple(median(same) for same in columns.values())


# ---------------------------------------------------------------- in words


def sentence_of_all(answers: Sequence[Answer]) -> str:
    """All papers together, for example "Headlines: 2 of 6 reproduced; 61 % of 402 numbers with runs within 1.5 points; ..."."""
    words = [cell_word(answer.head) for answer in answers if answer.head]
    heads = Counter("not run" if word == "no run yet" else word for word in words)
    others = ", ".join(f"{number} {word}" for word, number in sorted(heads.items()) if word != "reproduced")
    numbers = [cell for answer in answers for cell in answer.numbers]
    taus, claims = ([one for answer in answers for one in getattr(answer, name)] for name in ("taus", "claims"))
    words = Counter(map(cell_word, numbers))
    order = f"{signed(median(taus))} (median of {len(taus)} columns)" if taus else "too few runs"
    waiting = f"{words['no run yet'] + words['not run']} of {len(numbers)} reported numbers not run"
    rest = [f"{words[word]} {word}" for word in LATER if words[word] and word != "stale"]
    return "; ".join((f"Headlines: {heads['reproduced']} of {len(answers)} reproduced" + (f" ({others})" if others else ""),
                      within_words(numbers), f"ranking tau: {order}", f"claims: {claims_words(claims)}",
                      f"{words['stale']} stale", waiting, *rest)) + "."


def sentence_of(answer: Answer) -> str:
    """One paper: what became of its headline, and the rest as in `sentence_of_all`."""
    words = Counter(map(cell_word, answer.numbers))
    waiting = words["no run yet"] + words["not run"]
    rest = [f"{words[word]} {word}" for word in LATER if words[word]]
    tau = f"ranking tau {signed(median(answer.taus))}" if answer.taus else ""
    parts = (headline_words(answer), within_words(answer.numbers), tau, f"claims: {claims_words(answer.claims)}",
             f"{waiting} of {len(answer.numbers)} reported numbers not run", *rest)
    return "; ".join(part for part in parts if part) + "."


def headline_words(answer: Answer) -> str:
    cell = answer.head
    if cell is None:
        return "No number is printed"
    ours = f"ours {mean_text(cell.values)}, {cell.verdict or cell.state}" if cell.n else cell.state
    return f"Headline: reported {cell.shown}, {ours}"


def headline_place(answer: Answer) -> str:
    """Which number the headline is."""
    cell = answer.head
    if cell is None:
        return "nothing printed"
    return f"Table {cell.table}, {cell.row}, {cell.column}, {METRICS.get(cell.metric, cell.metric)}"


def within(numbers: Iterable[Cell]) -> tuple[int, int]:
    """How many of the numbers with runs of ours lie within `NEAR` points of the printed one, and how many have runs."""
    gaps = [abs(cell.delta) for cell in numbers if cell.delta is not None and cell.verdict != APART]
    return sum(gap <= NEAR + 1e-9 for gap in gaps), len(gaps)


def within_words(numbers: Sequence[Cell]) -> str:
    (near, there), undecided = within(numbers), sum(cell.verdict == "undecided" for cell in numbers)
    if not there:
        return "no number has runs of ours"
    few = f" ({undecided} undecided)" if undecided else ""
    return f"{100 * near / there:.0f} % of {there} number{'s' if there > 1 else ''} with runs within {NEAR:g} points{few}"


def claims_words(claims: Sequence[str]) -> str:
    """`10 held, 2 failed, 5 undecided, 3 not run`: the first three always, the others where there are any."""
    counted = Counter(claims)
    shown = [word for word in CLAIM_WORDS.values() if counted[word] or word in ("held", "failed", "undecided")]
    return ", ".join(f"{counted[word]} {word}" for word in shown) if claims else "none stated"
