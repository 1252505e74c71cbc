"""The waterfall from text to code: planted errors give its numbers, and what has no run is waited for."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from common.methods.path import path, steps_of
from common.paper import Paper
from common.report.figures import Drawing, save_figures
from common.report.intervals import difference_interval
from common.report.page.page import build_page
from common.report.results import Results
from common.report.waterfall import (
    BEST,
    TEXT_TO_CODE,
    waterfall_block,
    waterfall_figure,
    waterfall_markdown,
    waterfall_of,
)
from tests.records import some_loss, toy_methods, toy_paper, toy_records

ERRORS = {"own@written": (24.0, 25.0, 26.0), "own[until=scale]@written": (22.0, 22.5, 23.0),
          "own[until=weights]@written": (23.0, 23.5, 24.0), "own@released": (20.0, 20.5, 21.0)}


def methods(column, protocols):
    """The toy rows, and on the long-tailed column of the published profile three steps between `own`'s two readings."""
    rows = toy_methods(column, protocols)
    if column.name != "cifar10-lt-100":
        return rows
    plain = {row.reading: row for row in rows if row.name == "own" and not row.variant}
    return (*rows, *path(plain["written"], ("scale", {"loss": partial(some_loss, kind="scale")}), ("weights", {"mixup": 1.0}),
                         ("rest", {"loss": plain["released"].loss, "mixup": 0.0})))


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return replace(toy_paper(tmp_path / "toy"), methods=methods, figures=(TEXT_TO_CODE,))


def records_of(paper: Paper, *without: str) -> dict:
    return toy_records(paper, {label: values for label, values in ERRORS.items() if label not in without},
                       columns=("cifar10-lt-100",))


def test_a_path_keeps_what_its_steps_have_changed(paper: Paper) -> None:
    column, protocols = paper.columns["paper"][0], paper.protocols["paper"]
    steps = steps_of(methods(column, protocols))
    assert [step.label for step in steps] == [f"own[until={name}]@written" for name in ("scale", "weights", "rest")]
    assert [step.describe()["loss"]["kind"] for step in steps] == ["scale", "scale", "own released "]
    assert [step.mixup for step in steps] == [0.0, 1.0, 0.0]


def test_planted_errors_are_the_steps(paper: Paper) -> None:
    found = waterfall_of(Results(paper, records_of(paper), "paper"))
    assert [(step.names, step.before, step.after) for step in found.steps] == [
        (("scale",), 25.0, 22.5), (("weights",), 22.5, 23.5), (("rest",), 23.5, 20.5),
        ((BEST,), 20.5, pytest.approx(20.25))]  # a made record's best epoch is better by 0.25
    assert sum(step.change for step in found.steps[:-1]) == pytest.approx(20.5 - 25.0)
    assert found.waits == ()
    assert found.printed == 22.0
    scale, best = found.steps[0].interval, found.steps[-1].interval
    wanted = ttest_ind((22.0, 22.5, 23.0), (24.0, 25.0, 26.0), equal_var=False).confidence_interval(0.95)
    assert (scale.low, scale.high) == pytest.approx((wanted.low, wanted.high))
    assert (best.low, best.high) == pytest.approx((-0.25, -0.25))  # of the same runs, so their spread is no part of it


def test_the_interval_of_a_difference_needs_two_runs_a_side_and_some_spread() -> None:
    assert difference_interval((1.0,), (2.0, 3.0)) is None
    assert difference_interval((1.0, 1.0), (2.0, 2.0)) is None
    for ones, others in (((1.0, 2.0, 4.0, 4.5), (7.0, 7.5)), ((1.0, 1.25), (2.0, 3.0, 3.5))):
        wanted = ttest_ind(ones, others, equal_var=False).confidence_interval(0.9)
        assert difference_interval(ones, others, 0.9) == pytest.approx((wanted.low, wanted.high))


def test_a_step_without_runs_is_joined_to_the_next_and_waited_for(paper: Paper) -> None:
    records = records_of(paper, "own[until=scale]@written")
    found = waterfall_of(Results(paper, records, "paper"))
    assert [(step.names, step.before, step.after) for step in found.steps[:-1]] == [
        (("scale", "weights"), 25.0, 23.5), (("rest",), 23.5, 20.5)]
    text = waterfall_markdown(Results(paper, records, "paper"))
    assert "| scale + weights | 23.50 ± 0.50 (3) | -1.50 |" in text
    assert "the path waits for runs of own[until=scale]@written on cifar10-lt-100" in text
    drawn = waterfall_figure(Results(paper, records, "paper"))
    words = " ".join(t.get_text() for part in drawn.figure.subfigs for t in part.texts).replace("\n", " ")
    assert "waits for runs of own[until=scale]@written" in words


@pytest.mark.parametrize("without", ["own@written", "own@released"])
def test_without_an_end_there_is_no_waterfall_but_a_sentence(paper: Paper, without: str, tmp_path: Path) -> None:
    records = records_of(paper, without)
    said = waterfall_figure(Results(paper, records, "paper"))
    assert said.startswith(f"waits for runs of {without} on cifar10-lt-100.")
    assert f"--method '{without}'" in said
    assert waterfall_block(Results(paper, records, "paper")) == f"The path from text to code {said}.\n"
    assert save_figures(Results(paper, records, "paper"), tmp_path) == [f"Figure text-to-code: {said}"]
    assert waterfall_of(Results(paper, {}, "paper")).steps == ()


def test_diverged_runs_are_said(paper: Paper) -> None:
    records = toy_records(paper, ERRORS | {"own[until=weights]@written": (None, None)}, columns=("cifar10-lt-100",))
    assert waterfall_of(Results(paper, records, "paper")).waits == ("own[until=weights]@written (2 diverged)",)


def test_table_and_figure_show_totals_changes_and_the_best_epoch_as_a_bar_of_its_own(paper: Paper) -> None:
    records = records_of(paper)
    lines = waterfall_block(Results(paper, records, "paper")).splitlines()
    assert lines[0] == "![From the text to the code](../../figures/toy/figure-text-to-code.svg)"
    rows = [line.split(" | ")[:3] for line in lines if line.startswith("| ")][2:]
    assert rows == [["| text (`written`)", "25.00 ± 1.00 (3)", ""], ["| scale", "22.50 ± 0.50 (3)", "-2.50"],
                    ["| weights", "23.50 ± 0.50 (3)", "+1.00"], ["| rest", "20.50 ± 0.50 (3)", "-3.00"],
                    [f"| {BEST}", "20.25 ± 0.50 (3)", "-0.25"]]
    drawn = waterfall_figure(Results(paper, records, "paper"))
    assert isinstance(drawn, Drawing)
    assert drawn.data["kind"].tolist() == ["total", "step", "step", "step", "total", "best", "total"]
    assert drawn.data["to_percent"].tolist() == pytest.approx([25.0, 22.5, 23.5, 20.5, 20.5, 20.25, 20.25])
    [axes] = [axes for part in drawn.figure.subfigs for axes in part.axes]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert sorted(map(tuple, bars)) == sorted([(25.0, -2.5), (22.5, 1.0), (23.5, -3.0), (20.5, pytest.approx(-0.25))])
    assert all(len(keys.split(";")) == 3 for keys in drawn.data["keys"])


def test_a_single_seed_has_changes_without_intervals(paper: Paper) -> None:
    records = toy_records(paper, {label: values[:1] for label, values in ERRORS.items()}, columns=("cifar10-lt-100",))
    found = waterfall_of(Results(paper, records, "paper"))
    assert [step.change for step in found.steps[:-1]] == [-2.0, 1.0, -3.0]
    assert {step.interval for step in found.steps} == {None}
    assert "not known from so few runs" in waterfall_markdown(Results(paper, records, "paper"))
    assert isinstance(waterfall_figure(Results(paper, records, "paper")), Drawing)


def test_the_quick_profile_and_a_paper_of_one_reading_have_none(paper: Paper, tmp_path: Path) -> None:
    assert "published profile only" in waterfall_figure(Results(paper, {}, "quick"))
    alone = toy_paper(tmp_path / "alone")
    assert waterfall_of(Results(alone, {}, "paper")) is None
    assert waterfall_block(Results(alone, {}, "paper")) == ""


def test_the_page_has_the_waterfall_beside_the_differences(paper: Paper, tmp_path: Path) -> None:
    target = tmp_path / "index.html"
    build_page([Results(paper, records_of(paper), "paper")], tmp_path / "figures", {}, target)
    part = target.read_text().split('id="toy-differences"')[1].split("</section>")[0]
    assert "From the text to the code: what each difference changes" in part
    assert "<td>weights</td>\n<td>23.50 ± 0.50 (3)</td>\n<td>+1.00</td>" in part
