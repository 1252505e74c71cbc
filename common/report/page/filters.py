"""What the templates say of a cell, an outcome, a row of a leaderboard, an order: filters, which take what the report computes
and give text. The templates escape it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from common.report.answer import cell_word, claim_word
from common.report.boards import Behind
from common.report.claims import Outcome
from common.report.compare import Cell
from common.report.intervals import Interval, prediction_interval, within_percent
from common.report.layout import METRICS
from common.report.order import ColumnOrder
from common.report.same_cell import Print
from common.report.text import mean_text, number, signed
from common.report.verdict import APART, NEAR, VERDICTS

NOTHING = "–"
CELL_WORDS = (*VERDICTS, "stale", "diverged", "no run yet", "not run", "not decidable")
CLAIM_WORDS = ("holds", "undecided", "fails", "not run", "not decidable")
SIGNS = {"reproduced": "=", "near": "≈", "better": "▲", "worse": "▼", APART: "≠", "diverged": "✗",
         "holds": "✓", "undecided": "?", "fails": "✗"}
LETTERS = {r"\alpha": "α", r"\beta": "β", r"\gamma": "γ", r"\delta^-": "δ⁻", r"\rho": "ρ"}
TONES = {"reproduced": "reproduced", "near": "near", "undecided": "near", "better": "better", "worse": "worse", APART: "apart",
         "diverged": "off", "holds": "reproduced", "fails": "off"}


class Count(NamedTuple):
    """How often a verdict occurs."""

    word: str
    number: int


def counts(words: Iterable[str], order: Sequence[str]) -> tuple[Count, ...]:
    """How often each word occurs, in this order; words that do not occur are left out."""
    occurrences = Counter(words)
    return tuple(Count(word, occurrences[word]) for word in order if occurrences[word])


# ---------------------------------------------------------------- words and numbers


def tone(word: str) -> str:
    """The class that colours a verdict of a cell or a claim."""
    return TONES.get(word, "none")


def sign(word: str) -> str:
    return SIGNS.get(word, "·")


def thousands(value: float) -> str:
    """
    >>> thousands(12345.6)
    '12 346'
    """
    return f"{value:,.0f}".replace(",", " ")


def short(paper: str) -> str:
    """A paper's name as the page writes it."""
    return paper.upper().replace("_", "-")


def figure(value: float | None) -> str:
    """Two decimals, or a dash."""
    return NOTHING if value is None else number(value)


def span(interval: Interval | None) -> str:
    return NOTHING if interval is None else f"{number(interval.low)} to {number(interval.high)}"


def width(interval: Interval | None) -> str:
    """What a column of intervals is sorted by."""
    return "" if interval is None else f"{interval.high - interval.low:.6g}"


def letters(quote: str) -> str:
    r"""A quote with its few TeX symbols as letters.

    >>> letters(r"$\beta > 1.0$ and $\delta^-$")
    'β > 1.0 and δ⁻'
    """
    for symbol, letter in LETTERS.items():
        quote = quote.replace(symbol, letter)
    return re.sub(r"\$([^$]*)\$", r"\1", quote)


def coded(text: str) -> Any:
    """HTML of a sentence, with what stands between backticks as code; all else in it is escaped.

    >>> str(coded("`a < b` & c"))
    '<code>a &lt; b</code> &amp; c'
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


# ---------------------------------------------------------------- a cell


def slug(*parts: str) -> str:
    """An address within the page: lower case, with hyphens for all but letters, digits and dots.

    >>> slug("toy", "1", "Own-DRW", "", "written", "cifar10-lt-100")
    'toy-1-own-drw-written-cifar10-lt-100'
    """
    return "-".join(words for part in parts if (words := re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-")))


def address(cell: Cell, paper: str) -> str:
    """The permanent address of a cell: paper, table, method, its setting, variant, column, group, and a metric that is not the
    usual one. It is made of what published.csv and the method's row say, so no other cell and no new run changes it."""
    metric = "" if cell.metric in ("top1_error", "top1_accuracy", "per_class_accuracy") else cell.metric
    return slug(paper, cell.table, cell.method, cell.variant, cell.reading, cell.stands_for, cell.group, metric)


def table_name(number: str) -> str:
    """
    >>> table_name("4.2"), table_name("text")
    ('Table 4.2', 'In the text')
    """
    return f"Table {number}" if number[:1].isdigit() else f"In the {number}"


def about(cell: Cell) -> str:
    """Where a cell stands, as a heading."""
    parts = [table_name(cell.table), cell.row, cell.variant, cell.reading, cell.column, cell.group]
    return " · ".join(part for part in parts if part)


def beside(cell: Cell) -> str:
    """The cell in words, with where one further run of ours would lie, and whether the printed number does."""
    ours = mean_text(cell.values) if cell.n else cell.state
    sentence = f"Printed {cell.shown}, ours {ours}" + (f": {signed(cell.delta)}, {cell.verdict}." if cell.verdict else ".")
    interval = prediction_interval(cell.values)
    if interval is None or cell.quick:
        return sentence
    inside = "inside" if interval.low <= cell.published <= interval.high else "outside"
    low, high = within_percent(interval)
    return (f"{sentence} One further run would lie in {number(low)} to {number(high)} (95 % prediction interval); "
            f"the printed number is {inside}.")


def notes(cell: Cell, reading: str) -> list[str]:
    """What a cell must be read with. reading: of the row, where it may be another than the cell's."""
    remarks = [f"{cell.diverged} diverged"] if cell.diverged and cell.n else []
    remarks += [f"as {cell.reading}"] if cell.reading and reading and cell.reading != reading else []
    return [*remarks, *cell.flags]


def best_text(cell: Cell) -> str:
    """Our number at the best test epoch."""
    return mean_text(cell.best) if cell.best else "last epoch only"


def best_delta(cell: Cell) -> float | None:
    """The best test epoch less the printed number, which has no verdict."""
    return None if cell.delta is None or not cell.best else sum(cell.best) / len(cell.best) - cell.published


def best_tone(cell: Cell) -> str:
    """The class that colours a cell while best test epochs are shown."""
    gap = best_delta(cell)
    return "" if gap is None else "best-near" if abs(gap) <= NEAR + 1e-9 else "best-far"


def rank(cell: Cell) -> str:
    """What a column of a table is sorted by: the verdict, then how far off the number is."""
    word = cell_word(cell)
    place = CELL_WORDS.index(word) if word in CELL_WORDS else len(CELL_WORDS)
    return f"{1000 * place + min(999.0, abs(cell.delta or 0.0)):.6g}"


def words_of(cells: Iterable[Cell | None]) -> str:
    """The verdicts of a row, which the filter looks at."""
    return "|".join(dict.fromkeys(cell_word(cell) for cell in cells if cell))


# ---------------------------------------------------------------- a claim


def p_values(outcome: Outcome) -> tuple[str, str, str]:
    """p of the claim, of its opposite, and paired."""
    return tuple(NOTHING if p is None else f"{p:.3g}" for p in (outcome.p, outcome.p_against, outcome.p_paired))


def lead(outcome: Outcome) -> str:
    return NOTHING if outcome.gap is None else f"{signed(outcome.gap)} in {outcome.where}"


# ---------------------------------------------------------------- across papers


def planned_by(sources: Iterable[tuple[str, str]], here: str) -> str:
    """The papers of runs, each with its own label where that is another than `here`.

    >>> planned_by([("one", "ce@written"), ("two", "erm@written")], "ce@written")
    'ONE, TWO (erm@written)'
    """
    return ", ".join(short(paper) + ("" if label == here else f" ({label})") for paper, label in sources)


def whose(sources: Iterable[tuple[str, str]]) -> str:
    """(paper, label) of runs in words: papers by variant, and a setting where the label has one.

    >>> whose([("one", "ce@written"), ("two_b", "ce@written"), ("three", "own[beta=1]@released")])
    'ONE and TWO-B, written; THREE [beta=1], released'
    """
    by_reading: dict[str, dict[str, None]] = {}
    for paper, label in sources:
        name, _, reading = label.rpartition("@")
        setting = name.partition("[")[1] + name.partition("[")[2]
        by_reading.setdefault(reading, {})[short(paper) + (f" {setting}" if setting else "")] = None
    return "; ".join(f"{' and '.join(names)}, {reading}" for reading, names in by_reading.items())


def behind_texts(behind: Behind | None) -> dict[str, tuple[str, str]]:
    """The comparison with the first row, as text and as what is sorted by: points behind it with their interval, p, and how
    often only one of both is right."""
    if behind is None:
        return dict.fromkeys(("behind", "p", "only"), (NOTHING, ""))
    test = behind.test
    return {"behind": (f"{signed(test.difference)} ({signed(test.low)} to {signed(test.high)})", f"{test.difference:.6g}"),
            "p": (f"{behind.p:.3g}", f"{behind.p:.6g}"), "only": (f"{test.wins} / {test.losses}", str(test.wins))}


def where(one: ColumnOrder) -> str:
    """The column of a table whose order is looked at."""
    metric = METRICS.get(one.metric, one.metric) if one.metric != "top1_accuracy" else ""
    return ", ".join(part for part in (f"{short(one.paper)} Table {one.table}", one.column, one.group, metric) if part)


def strip(one: ColumnOrder) -> tuple[float, float, float]:
    """Low end, tau and high end on a scale of 0 to 100."""
    low, high = one.interval or (one.tau, one.tau)
    return 50 * (1 + low), 50 * (1 + one.tau), 50 * (1 + high)


def accuracy_text(one: Print) -> str:
    """A printed number as an accuracy."""
    return f"{number(one.accuracy)} (error {one.printed})" if one.is_error else one.printed


FILTERS: Mapping[str, Any] = {
    f.__name__: f for f in (
        tone, sign, thousands, short, figure, span, width, letters, coded, slug, address, table_name, about, beside, notes,
        best_text, best_delta, best_tone, rank, words_of, p_values, lead, planned_by, whose, behind_texts, where, strip,
        accuracy_text, mean_text, number, signed, cell_word, claim_word)
}
