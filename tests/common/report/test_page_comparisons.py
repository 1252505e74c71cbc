"""What the page shows across papers: leaderboards, "Numbers or order?", and the same cell in several papers."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.paper import Paper
from common.report import boards
from common.report.intervals import Interval
from common.report.order import ColumnOrder, OrderedRow
from common.report.page.comparisons import boards_of_columns, by_size, departs, order_answer
from common.report.page.filters import accuracy_text, behind_texts, span, strip, where, whose
from common.report.results import results_of
from common.report.same_cell import Print
from common.spec import LargeProtocol
from tests.common.report.test_claims import BETTER
from tests.common.report.test_page import Reader, build, read
from tests.common.report.test_tables import ERRORS
from tests.records import made_hits, toy_paper, toy_records


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "papers" / "toy", BETTER)


def row_cells(reader: Reader, label: str) -> list[str]:
    """The cells of the first leaderboard row of a method, from the rank on."""
    rows = [i for i, (_, has, _) in enumerate(reader.elements) if has.get("data-method", "").startswith(label)]
    row = rows[0]
    texts = []
    for tag, _, text in reader.elements[row + 1:]:
        if tag == "tr":
            break
        texts += ["".join(text).strip()] if tag == "td" else []
    return texts


def test_a_leaderboard_row_in_text(paper: Paper) -> None:
    """ce on cifar10-lt-100: 70.3, 70.1 and 69.9; t(0.975, 2) = 4.3027, so the half width is 4.3027 x 0.2 / sqrt(3) = 0.4968."""
    reader = read(build(paper, toy_records(paper, ERRORS)))
    _, mean, best, interval, sd, seeds, setting, many, medium, _, _, seconds, papers = row_cells(reader, "ce@written")
    assert (mean, sd, seeds, interval) == ("70.10", "0.20", "3", "69.60 to 70.60")
    assert (best, many, medium, seconds, setting, papers) == ("70.35", "70.10", "–", "30.00", "usual", "TOY")
    assert any("TOY's own" in text for has, text in reader.all("tr") if has.get("data-method") == "own@written TOY")


def test_a_row_is_set_against_the_first_of_its_board(paper: Paper) -> None:
    records = toy_records(paper, ERRORS)
    entrants = boards.entrants(results_of([paper], records, "paper"))
    [one, *_] = boards_of_columns([paper], entrants, made_hits(records))
    assert one.is_paired
    rows = {row.label: row.behind for row in one.board.rows}
    assert rows["own@written"] is None  # the first
    behind = rows["ce@written"]
    texts, test = behind_texts(behind), behind.test
    assert [texts[name][0] for name in ("behind", "p", "only")] == [
        f"{test.difference:+.2f} ({test.low:+.2f} to {test.high:+.2f})", f"{behind.p:.3g}", f"{test.wins} / {test.losses}"]
    assert test.difference == pytest.approx(-9.9, abs=0.1)
    assert not boards_of_columns([paper], entrants)[0].is_paired


def test_settings_of_equal_length_share_a_board_and_say_where_they_differ(paper: Paper) -> None:
    """ce in a smaller batch and with another decay stands with the rest; trained for longer, on a board of its own."""
    records = toy_records(paper, ERRORS, columns=("cifar10-lt-100",))
    entrants = [one for one in boards.entrants(results_of([paper], records, "paper")) if one.column.name == "cifar10-lt-100"]
    usual = entrants[0].protocol
    paper = replace(paper, own=("own", "ce"))

    def changed(**fields: object) -> list:
        return [one._replace(protocol=replace(usual, **fields)) if one.runs.method.name == "ce" else one for one in entrants]

    [one] = boards_of_columns([paper], changed(batch_size=16, decay_factor=0.5))
    settings = {row.label: setting for row, setting in zip(one.board.rows, one.settings, strict=True)}
    assert settings["ce@written"] == "batch 16; × 0.5 at 2, 3"
    assert settings["own@written"] == ""
    assert (one.board.rows[0].rank, one.missing) == (1, ())
    [several] = boards_of_columns([paper], changed(epochs=7))  # a single row is no board
    assert "ce" not in {row.name for row in several.board.rows}
    assert several.missing == ("TOY ce: trained in this column too, under a setting that is not comparable",)


def test_a_missing_method_is_said_with_why(paper: Paper) -> None:
    records = toy_records(paper, ERRORS)
    other = replace(paper, name="other", own=("theirs",), columns={**paper.columns, "paper": paper.columns["paper"][:1]})
    found = boards_of_columns([paper, other], boards.entrants(results_of([paper], records, "paper")))
    assert [one.missing for one in found] == [("OTHER theirs: the paper does not train it in this column",),
                                              ("OTHER theirs: the paper does not use this column",)]


def test_a_departure_names_every_field() -> None:
    usual = LargeProtocol(90, 256, 0.1, 0.9, 5e-4, 0, (30, 60), 0.1, False)
    assert departs(usual, usual) == ""
    other = replace(usual, optimiser="adamw", weight_decay=1e-4, warmup_epochs=5, warmup_start=0.25, drop_last=True,
                    schedule="cosine", decay_epochs=(), crop="resize-crop")
    assert departs(other, usual) == (
        "adamw; weight decay 0.0001; last batch dropped; warm-up of 5 epochs from 0.25; cosine; crop resize-crop")


def test_boards_without_a_run_are_a_list(paper: Paper) -> None:
    records = toy_records(paper, ERRORS, columns=("cifar10-step-100",))
    reader = read(build(paper, records))
    assert len(reader.all("details", class_="board")) == 1
    [(_, text)] = reader.all("section", id="boards")
    rows = len([has for has, _ in reader.all("tr") if "data-method" in has])
    assert f"{rows} rows" in text
    assert "Leaderboards without a run (1) cifar10-lt-100: 4 epochs, batch 32" in text
    assert text.endswith("× 0.1 at 2, 3; 8 methods")


def test_the_column_of_the_largest_board_comes_first(paper: Paper) -> None:
    step = toy_records(paper, ERRORS, columns=("cifar10-step-100",))
    found = boards_of_columns([paper], boards.entrants(results_of([paper], step, "paper")))
    assert [one.board.column.name for one in found] == ["cifar10-lt-100", "cifar10-step-100"]
    assert [one.board.column.name for one in by_size(found)] == ["cifar10-step-100", "cifar10-lt-100"]


def test_order_is_summed_up_and_drawn_to_scale() -> None:
    place = OrderedRow("A", "45.4", 45.4, 44.123, 2, 1, 2, ())
    one = ColumnOrder("toy_paper", "1", "cifar10-lt-100", "top1_error", "", "written", 0.5, Interval(-0.2, 1.0), "",
                      "", 6, 4, (place,), ("X: no run yet",))
    two = replace(one, column="cifar10-lt-10", tau=0.9, interval=Interval(0.4, 1.0))
    released = replace(one, tau=0.7, interval=Interval(0.1, 1.0), reading="released")  # in the column of `one`: median 0.6
    without = replace(one, tau=None, interval=None, why="only one method has runs")
    assert strip(one) == pytest.approx((40.0, 75.0, 100.0))  # of -1 to 1 as 0 to 100
    assert strip(replace(one, interval=None)) == (75.0, 75.0, 75.0)
    assert where(one) == "TOY-PAPER Table 1, cifar10-lt-100, Top-1 error"
    assert order_answer([one, released, two, without]) == (
        "In 2 columns (1 in both variants) at least three methods have runs. The median rank correlation of printed and our "
        "order is +0.75, a column with both variants counted once; in 1 of them the interval lies above zero in every variant.")
    assert order_answer([two]) == ("In 1 column at least three methods have runs. The rank correlation of printed and our order "
                                   "is +0.90; its interval lies above zero.")


def test_the_same_cell_shows_errors_as_accuracies() -> None:
    prints = (Print("toy", "1", "ERM", "29.60", 70.4, True, "[4]"), Print("two", "3", "CE", "70.1", 70.1, False, ""))
    assert [accuracy_text(one) for one in prints] == ["70.40 (error 29.60)", "70.1"]
    sources = (("two_head", "ce@written"), ("kps", "ce@written"), ("mm", "ce[x=1]@released"))
    assert whose(sources) == "TWO-HEAD and KPS, written; MM [x=1], released"
    assert (span(Interval(69.3, 71.2)), span(None)) == ("69.30 to 71.20", "–")
