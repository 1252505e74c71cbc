"""The generated parts of the READMEs: all numbers come from records, none from fingers."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from common.errors import UserError
from common.paper import Table
from common.report.answer import Answer, answer_of, cell_word, claims_words, headline_place, sentence_of_all, within
from common.report.claims import Outcome, evaluate
from common.report.compare import Cell, cells
from common.report.layout import cell_text
from common.report.order import orders
from common.report.results import Results
from common.report.tables import behind, table_body
from common.report.text import escape, markdown_table, mean_text, signed
from common.store import write_atomically


def fill(path: Path, name: str, text: str) -> None:
    """Replace what stands between the two `generated: NAME` comments of a Markdown file, which must be there once each."""
    head, tail = read_marked(path, name)
    write_atomically(path, f"{head}\n{text.strip()}\n{tail}".encode())


def read_marked(path: Path, name: str) -> tuple[str, str]:
    """What stands before the generated part of a Markdown file, its comment included, and what stands after it."""
    begin, end = f"<!-- begin generated: {name} -->", f"<!-- end generated: {name} -->"
    try:
        page = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise UserError(f"{path} needs the two lines {begin!r} and {end!r}, once each and in this order.")
    head, rest = page.split(begin)
    return head + begin, end + rest.split(end)[1]


def front_table(results: Sequence[Results]) -> str:
    """The answer in a sentence, then a row a paper: its headline, and each printed number and claim counted once."""
    answers = [answer_of(one.paper, cells(one), orders([one]), evaluate(one)) for one in results]
    header = ["paper", "headline", "published → ours (seeds)", "verdict", "numbers within 1.5 points", "ranking tau", "claims",
              "not run", "command"]
    return f"{sentence_of_all(answers)}\n\n{markdown_table(header, map(_front_row, answers))}"


def _front_row(answer: Answer) -> list[str]:
    near, there = within(answer.numbers)
    waiting = sum(cell_word(cell) in ("no run yet", "not run") for cell in answer.numbers)  # as in `sentence_of_all`
    return [
        answer.title, headline_place(answer),
        _by_variant((cell, _ours(cell)) for cell in answer.heads),
        _by_variant((cell, cell.verdict or "none yet") for cell in answer.heads),
        f"{near} of {there} with runs" if there else "no runs", signed(median(answer.taus)) if answer.taus else "too few runs",
        claims_words(answer.claims), f"{waiting} of {len(answer.numbers)}", f"make reproduce-{answer.paper}",
    ]


def _ours(cell: Cell) -> str:
    """`21.37 → 21.70 ± 0.15 (3)`, and what it must be read with."""
    return f"{cell.shown} → {mean_text(cell.values) if cell.n else cell.state}" + "".join(f" ({flag})" for flag in cell.flags)


def _by_variant(texts: Iterable[tuple[Cell, str]]) -> str:
    """Each text behind its variant; one alone where the variants say the same."""
    pairs = list(texts)
    if len({text for _, text in pairs}) == 1:
        return pairs[0][1]
    return "; ".join(f"{cell.reading}: {text}" for cell, text in pairs) or "no run yet"


def tally(words: Iterable[str]) -> str:
    """`12 reproduced, 3 near, 1 no run yet`: the verdicts by how often they occur, equal ones by name."""
    counts = Counter(words)
    return ", ".join(f"{n} {word}" for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))) or "none"


def claims_tally(outcomes: Sequence[Outcome]) -> str:
    """Claims by verdict, each reading counted, ours apart, without those that follow from others; numbers in brackets are
    dropped, as they differ from claim to claim."""
    counted = [o for o in outcomes if not o.follows]
    words = [tally(re.sub(r"^not run.*", "not run", o.verdict) for o in counted if o.claim.ours == is_ours)
             for is_ours in (False, True)]
    return "; ours: ".join(words if any(o.claim.ours for o in counted) else words[:1])


def paper_line(results: Results, figures: Sequence[str] = ()) -> str:
    """One line on a paper under a profile: its cells that have runs with their verdicts, its claims, its figures. figures: what
    `save_figures` says of each."""
    all_cells, outcomes = cells(results), evaluate(results)
    done = [cell for cell in all_cells if cell.n]
    verdicts = f" ({tally(map(cell_word, done))})" if any(cell.verdict for cell in done) else ""
    claims = f"; claims: {claims_tally(outcomes)}" if outcomes else ""
    drawn = f"; {sum('.svg' in line for line in figures)} of {len(figures)} figures drawn" if figures else ""
    have = f"{len(done)} of {len(all_cells)} cells have runs"
    return f"{results.paper.name}, profile {results.profile}: {have}{verdicts}{claims}{drawn}"


def results_block(results: Results) -> str:
    """The paper-profile tables in short for the paper's README: every cell, then the verdicts of cells and claims."""
    all_cells, outcomes = cells(results), evaluate(results)
    more = sum(bool(outcome.follows) for outcome in outcomes)
    parts = [_short_table(table, [cell for cell in all_cells if cell.table == table.number]) for table in results.paper.tables]
    parts += [
        f"Cells by verdict (each reading counted): {tally(cell_word(cell) for cell in all_cells)}.",
        f"Claims by verdict (each reading counted): {claims_tally(outcomes)}."
        + (f" Follow from these and are not counted: {more}." if more else ""),
        behind(all_cells, results.records),
        "Verdict rules, what each † means, best-epoch numbers and p values stand in the tables that `make tables` writes.",
    ]
    return "\n\n".join(parts)


def _short_table(table: Table, own_cells: Sequence[Cell]) -> str:
    if not own_cells:
        raise UserError(f"published.csv prints no number of table {table.number}.")
    return (f"**Table {escape(table.number)}.** {escape(table.caption)} (percent, last epoch; published → mean ± sd (seeds), "
            f"delta, verdict)\n\n{table_body(list(own_cells), cell_text)}")
