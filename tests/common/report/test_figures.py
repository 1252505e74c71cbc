"""Figures: stable colours, the same bytes twice, data beside the drawing, and honest labels."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from common.errors import UserError
from common.method import Figure, Paper
from common.report.figures import PALETTE, Drawing, colours, per_class_error, save, save_figures
from tests.records import toy_paper, toy_records

ERRORS = {"ce": (30.0, 31.0), "own@written": (20.0, 21.0, 22.0), "own@released": (24.0,)}


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "toy")


def draw(paper: Paper, profile: str = "paper", column: str = "cifar10-step-100", **more: object) -> Drawing:
    drawn = per_class_error(paper, profile, toy_records(paper, ERRORS, profile), column, ("ce", "own"), **more)
    assert isinstance(drawn, Drawing)
    return drawn


def test_a_method_has_one_colour_everywhere() -> None:
    assert colours(["ce"])["ce"] == colours(["ldam", "ce", "focal"])["ce"] == colours(["ce", "ce"])["ce"]
    names = [f"method {i}" for i in range(len(PALETTE))]
    assert len(set(colours(names).values())) == len(PALETTE)
    assert colours(names) == colours(reversed(names))


def test_data_holds_mean_spread_and_group_of_every_bar(paper: Paper) -> None:
    data = draw(paper).data
    assert len(data) == 3 * 10  # ce, and own in two readings
    row = data[(data["method"] == "own") & (data["reading"] == "written") & (data["class"] == "C7")].iloc[0]
    assert (row["error_percent"], row["sd"], row["seeds"], row["group"], row["training_images"]) == (21.0, 1.0, 3, "minority", 1)
    assert set(data[data["class"] == "C4"]["group"]) == {"majority"}


def test_labels_name_units_seeds_groups_and_the_quick_profile(paper: Paper) -> None:
    figure = draw(paper).figure
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Class", "Top-1 error (%), mean ± sd")
    assert {t.get_text() for t in axes.texts} == {"majority classes", "minority classes"}
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert legend == ["ce, written (2 seeds)", "own, written (3 seeds)", "own, released (1 seed)"]
    assert len(axes.containers) == 3 + 2  # bars, and whiskers where there is a spread
    quick = draw(paper, "quick", "digits-lt-20", class_names=tuple("0123456789")).figure.axes[0]
    assert quick.get_title(loc="left") == "digits-lt-20 (quick)"
    assert [t.get_text() for t in quick.get_xticklabels()] == list("0123456789")


def test_missing_runs_are_said_and_unknown_columns_refused(paper: Paper) -> None:
    assert per_class_error(paper, "paper", {}, "cifar10-step-100", ("ce", "own")) == (
        "no run of ce or own on cifar10-step-100 (profile paper) yet")
    with pytest.raises(UserError, match="no column 'mnist'"):
        per_class_error(paper, "paper", {}, "mnist", ("ce",))


def test_saved_files_are_the_same_every_time(paper: Paper, tmp_path: Path) -> None:
    first = save(*draw(paper), tmp_path / "a", "figure-3")
    second = save(*draw(paper), tmp_path / "b", "figure-3")
    assert [f.name for f in first] == ["figure-3.svg", "figure-3.png", "figure-3.csv"]
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
    assert b"<dc:date>" not in first[0].read_bytes()
    assert len(pandas.read_csv(first[2])) == 30


def test_save_figures_writes_what_can_be_drawn(paper: Paper, tmp_path: Path) -> None:
    drawn, records = draw(paper), toy_records(paper, ERRORS)
    figures = (Figure("3", "errors", lambda p, profile, r: drawn), Figure("4", "none", lambda p, profile, r: "no runs yet"))
    lines = save_figures(dataclasses.replace(paper, figures=figures), "paper", records, tmp_path)
    assert lines == [f"Figure 3: figure-3.svg, figure-3.png, figure-3.csv in {tmp_path}", "Figure 4: no runs yet"]


def test_report_loads_neither_torch_nor_matplotlib() -> None:
    code = ("import sys, common.report.claims, common.report.figures, common.report.readme, common.report.tables; "
            "print([m for m in ('torch', 'matplotlib', 'scipy', 'pandas', 'common.train') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "[]"
