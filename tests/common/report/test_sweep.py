"""A sweep shows the accuracy of every setting that has runs, the printed number beside it, and names the rest."""

from common.report.figures import Drawing
from common.report.results import Results
from common.report.sweep import Point, Sweep, sweep_figure
from tests.records import toy_paper, toy_records

PANELS = (Sweep("grid", "beta", [Point("1", "own[beta=1.0;delta=2.0]@written"), Point("2", "own[beta=1.1;delta=2.0]@written")]),
          Sweep("rows", "method", [Point("CE", "ce@written"), Point("rival", "rival@written")]))
ERRORS = {"own[beta=1.0;delta=2.0]@written": (20.0, 21.0, 22.0), "ce@written": (30.0,)}


def test_points_have_mean_spread_and_printed_number(tmp_path):
    paper = toy_paper(tmp_path / "toy")
    drawn = sweep_figure(Results(paper, toy_records(paper, ERRORS), "paper"), "cifar10-lt-100", PANELS)
    assert isinstance(drawn, Drawing)
    rows = drawn.data.set_index("setting")
    assert rows.index.tolist() == ["1", "CE"]
    assert rows.loc["1", ["accuracy_percent", "sd", "printed"]].tolist() == [79.0, 1.0, 100 - 22.3]
    assert rows.loc["CE", ["accuracy_percent", "printed"]].tolist() == [70.0, 100 - 29.6]
    words = " ".join(text.get_text() for part in drawn.figure.subfigs for text in part.texts).replace("\n", " ")
    assert "own[beta=1.1;delta=2.0]@written" in words
    assert "rival@written" in words


def test_a_stand_in_has_no_printed_number_beside_it(tmp_path):
    paper = toy_paper(tmp_path / "toy")
    drawn = sweep_figure(Results(paper, toy_records(paper, ERRORS, "quick"), "quick"), "cifar10-lt-100", PANELS)
    assert drawn.data["printed"].isna().all()


def test_a_sweep_without_runs_says_so(tmp_path):
    paper = toy_paper(tmp_path / "toy")
    said = sweep_figure(Results(paper, {}, "paper"), "cifar10-lt-100", PANELS)
    assert said.startswith("no run of own[beta=1.0;delta=2.0]@written or")
