"""The answer before the tables: each printed number and each claim counted once, and what the sentences say."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.paper import Paper
from common.report.answer import (
    answer_of,
    claims_words,
    column_taus,
    numbers_once,
    sentence_of,
    sentence_of_all,
    within,
    within_words,
)
from common.report.claims import evaluate
from common.report.compare import Cell, cells
from common.report.order import ColumnOrder
from common.report.results import Results
from tests.common.report.test_claims import BETTER
from tests.common.report.test_tables import ERRORS
from tests.records import PUBLISHED, toy_paper, toy_records


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "toy", BETTER)


def cell(reading: str, verdict: str | None = None, state: str = "mean", delta: float | None = None) -> Cell:
    return Cell("1", "A", "a", "", reading, "c", "c", "top1_error", "20.0", 20.0, True, verdict=verdict, state=state, delta=delta,
                values=(20.0, 20.1) if verdict else ())


@pytest.mark.parametrize(("written", "released", "counted"), [
    (cell("written", "near"), cell("released", "reproduced"), "written"),  # never the better of the two
    (cell("written", state="no run yet"), cell("released", "worse"), "released"),
    (cell("written", state="stale: 1"), cell("released", state="no run yet"), "written"),
    (cell("written", state="no run yet"), cell("released", state="stale"), "released"),
    (cell("written", state="no run yet"), cell("released", state="no run yet"), "written"),
])
def test_a_number_counts_once_by_the_text_where_that_has_runs(written: Cell, released: Cell, counted: str) -> None:
    for order in ((written, released), (released, written)):
        assert [one.reading for one in numbers_once(order)] == [counted]


def test_every_printed_number_of_the_papers_counts_once() -> None:
    from papers.catalog import PAPERS

    assert sum(len(numbers_once(cells(Results(paper, {}, "paper")))) for paper in PAPERS) == 747


def test_within_leaves_out_what_is_not_comparable() -> None:
    found = [cell("", "near", delta=1.5), cell("", "worse", delta=-1.51), cell("", "not comparable", delta=0.1), cell("", None)]
    assert within(found) == (1, 2)


def test_numbers_that_lie_near_without_a_verdict_are_said() -> None:
    found = [cell("", "near", delta=1.5), cell("", "undecided", delta=0.1), cell("", "undecided", delta=-3.0), cell("", None)]
    assert within_words(found) == "67 % of 3 numbers with runs within 1.5 points (2 undecided)"
    assert within_words(found[:1]) == "100 % of 1 number with runs within 1.5 points"


def test_two_variants_of_a_column_are_one_tau() -> None:
    one = ColumnOrder("toy", "1", "c", "top1_error", "", "written", 0.2, None, "", "", 3, 2, (), ())
    several = [one, replace(one, table="2", tau=None)]
    several += [replace(one, reading="released", tau=0.6), replace(one, column="d", tau=1.0)]
    assert column_taus(several) == (pytest.approx(0.4), 1.0)


def test_the_sentences_of_a_paper_with_and_without_runs(paper: Paper) -> None:
    def answer(records: dict):
        return answer_of(paper, cells(Results(paper, records, "paper")), [], evaluate(Results(paper, records, "paper")))

    full, empty = answer(toy_records(paper, ERRORS)), answer({})
    assert full.claims == ("held",)  # the written variant holds, the released one is undecided
    assert sentence_of(full) == (
        "Headline: reported 22.00, ours 20.10 ± 0.10 (3), better; 57 % of 7 numbers with runs within 1.5 points; claims: 1 held, "
        "0 failed, 0 undecided; 5 of 12 reported numbers not run.")
    assert sentence_of(empty).startswith("Headline: reported 22.00, no run yet; no number has runs of ours; claims: 0 held")
    assert len(full.numbers) == len(PUBLISHED)
    assert sentence_of_all([full, empty]) == (
        "Headlines: 0 of 2 reproduced (1 better, 1 not run); 57 % of 7 numbers with runs within 1.5 points; ranking tau: too few "
        "runs; claims: 1 held, 0 failed, 0 undecided, 1 not run; 0 stale; 17 of 24 reported numbers not run.")


def test_claims_always_say_held_failed_and_undecided() -> None:
    assert claims_words(["failed", "not run"]) == "0 held, 1 failed, 0 undecided, 1 not run"
    assert claims_words([]) == "none stated"
