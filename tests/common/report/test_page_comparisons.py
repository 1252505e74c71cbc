"""What the page shows across papers: leaderboards, "Numbers or order?", and the same cell in several papers, as text."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.paper import Paper
from common.report import boards
from common.report.intervals import Interval
from common.report.order import Order, Place
from common.report.page.comparisons import board_view, by_size, order_answer, order_view, same_view
from common.report.page.views import Places
from common.report.results import results_of
from common.report.same_cell import Ours, Print, SameCell
from tests.common.report.test_claims import BETTER
from tests.common.report.test_page import build, read
from tests.common.report.test_tables import ERRORS
from tests.records import made_hits, toy_paper, toy_records


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "papers" / "toy", BETTER)


def test_a_leaderboard_row_in_text(paper: Paper) -> None:
    """ce on cifar10-lt-100: 70.3, 70.1 and 69.9; t(0.975, 2) = 4.3027, so the half width is 4.3027 x 0.2 / sqrt(3) = 0.4968."""
    records = toy_records(paper, ERRORS)
    views = [board_view(board, Places(records)) for board in boards.boards(results_of([paper], records, "paper"))]
    [row] = [row for view in views if view.column == "cifar10-lt-100" for row in view.rows if row.label == "ce@written"]
    shown = {name: value.text for name, value in row.values.items()}
    assert (shown["mean"], shown["sd"], shown["n"], shown["interval"]) == ("70.10", "0.20", "3", "69.60 to 70.60")
    assert (shown["best"], shown["many"], shown["medium"], shown["seconds"]) == ("70.35", "70.10", "–", "30.00")
    assert (row.name, row.reading, row.words, row.runs) == ("ce", "written", (), (6, 7, 8))  # the third by rank
    [own] = [row for view in views if view.column == "cifar10-lt-100" for row in view.rows if row.label == "own@written"]
    assert own.words == ("TOY's own",)


def test_a_row_is_set_against_the_first_of_its_board(paper: Paper) -> None:
    records = toy_records(paper, ERRORS)
    results = results_of([paper], records, "paper", made_hits(records))
    [view, *_] = [board_view(board, Places(records)) for board in boards.boards(results)]
    assert view.paired
    texts = {row.label: [row.values[name].text for name in ("behind", "p", "only")] for row in view.rows}
    assert texts["own@written"] == ["–", "–", "–"]  # the first
    [behind] = [row.behind for board in boards.boards(results) for row in board.rows
                if board.column.name == view.column and row.label == "ce@written"]
    test = behind.test
    assert texts["ce@written"] == [f"{test.difference:+.2f} ({test.low:+.2f} to {test.high:+.2f})", f"{behind.p:.3g}",
                                   f"{test.wins} / {test.losses}"]
    assert test.difference == pytest.approx(-9.9, abs=0.1)
    assert not board_view(boards.boards(results_of([paper], records, "paper"))[0], Places(records)).paired


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
    found = boards.boards(results_of([paper], step, "paper"))
    assert [board.column.name for board in found] == ["cifar10-lt-100", "cifar10-step-100"]
    assert [board.column.name for board in by_size(found)] == ["cifar10-step-100", "cifar10-lt-100"]


def test_order_is_summed_up_and_drawn_to_scale() -> None:
    place = Place("A", "45.4", 45.4, 44.123, 2, 1, 2, ())
    one = Order("toy_paper", "1", "cifar10-lt-100", "top1_error", "", "written", 0.5, Interval(-0.2, 1.0), "", "", 6, 4, (place,),
                ("X: no run yet",))
    two = replace(one, column="cifar10-lt-10", tau=0.9, interval=Interval(0.4, 1.0))
    released = replace(one, tau=0.7, interval=Interval(0.1, 1.0), reading="released")  # in the column of `one`: median 0.6
    without = replace(one, tau=None, interval=None, why="only one method has runs")
    view = order_view(one)
    assert view.strip == pytest.approx((40.0, 75.0, 100.0))  # of -1 to 1 as 0 to 100
    assert (view.where, view.tau.text, view.pairs.text) == ("TOY-PAPER Table 1, cifar10-lt-100, Top-1 error", "+0.50", "4 of 6")
    assert view.notes == ("left out: X: no run yet",)
    assert view.places == (("A", 1, 2, "45.4", "44.12"),)
    assert order_answer([one, released, two, without]) == (
        "In 2 columns (1 in both readings) at least three methods have runs. The median rank correlation of printed and our "
        "order is +0.75, a column with both readings counted once; in 1 of them the interval lies above zero in every reading.")
    assert order_answer([two]) == ("In 1 column at least three methods have runs. The rank correlation of printed and our order "
                                   "is +0.90; its interval lies above zero.")


def test_the_same_cell_shows_errors_as_accuracies(paper: Paper) -> None:
    prints = (Print("toy", "1", "ERM", "29.60", 70.4, True, "[4]"), Print("two", "3", "CE", "70.1", 70.1, False, ""))
    sources = (("two_head", "ce@written"), ("kps", "ce@written"), ("mm", "ce[x=1]@released"))
    ours = (Ours("200 epochs", sources, "mean", 3, 70.25, 0.2, Interval(69.3, 71.2), ()),
            Ours("90 epochs", (("mm", "ce@released"),), "no run yet", 0, None, None, None, ()))
    cell = SameCell("cifar10", "lt", "100", "resnet-32", "cifar10-lt-100", "ce", "", prints, 0.3, True, ours, "")
    view = same_view(cell, Places({}))
    assert [(one.where, one.printed) for one in view.prints] == [("TOY Table 1", "70.40 (error 29.60)"), ("TWO Table 3", "70.1")]
    interval = "one more run: 69.30 to 71.20"
    assert [(one.text, one.more) for one in view.ours] == [("70.25 ± 0.20 (3)", interval), ("no run yet", "")]
    assert [one.whose for one in view.ours] == ["TWO-HEAD and KPS, written; MM [x=1], released", "MM, released"]
    assert view.ours[1].about == "ce · cifar10-lt-100 · MM, released"
    assert view.spread == "0.30"
