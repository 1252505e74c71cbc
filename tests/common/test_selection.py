"""Which runs a command is about: what a method's name brings with it, and what needs data that are not here."""

from pathlib import Path

import pytest
from rich.console import Console

from common.errors import UserError
from common.paper import Paper
from common.plan import Run, plan_all, with_data
from tests.records import toy_paper


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "papers" / "toy")


def labels(runs: list[Run]) -> set[str]:
    return {run.method.label for run in runs}


def test_a_name_means_the_plain_rows_unless_its_variants_are_asked_for(paper: Paper) -> None:
    plain = plan_all([paper], "paper", ["cifar10-lt-100"], ["own"], 1, variants=False)
    assert labels(plain) == {"own@written", "own@released"}
    every = plan_all([paper], "paper", ["cifar10-lt-100"], ["own"], 1)
    assert len(labels(every)) == 6
    one = "own[beta=1.0;delta=2.0]@released"
    assert labels(plan_all([paper], "paper", [], [one, "ce"], 1, variants=False)) == {one, "ce@written"}
    assert labels(plan_all([paper], "paper", [], [], 1, variants=False)) == labels(plan_all([paper], "paper", [], [], 1))


def test_a_name_without_a_plain_row_is_refused_with_the_way_out(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "papers" / "toy")
    settings = tuple(m for m in paper.rows("paper", paper.columns["paper"][0]) if m.variant)
    vars(paper)["methods"] = lambda column, protocols: settings
    with pytest.raises(UserError, match="own has no plain row in these columns, only settings and switches: add --variants"):
        plan_all([paper], "paper", [], ["own"], 1, variants=False)
    assert plan_all([paper], "paper", [], ["own"], 1)


def test_a_column_that_is_named_and_has_no_data_is_refused(paper: Paper, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "digits.npz").touch()
    digits, cifar = (plan_all([paper], profile, [], ["ce"], 1) for profile in ("quick", "paper"))
    assert with_data(digits + cifar, tmp_path, Console(width=200)) == digits
    assert "Left out: 2 runs, as data/cifar10.npz is not here" in capsys.readouterr().out
    assert with_data(digits, tmp_path, Console(), named=True) == digits
    with pytest.raises(UserError, match=r"data/cifar10\.npz is not here: make data-cifar10"):
        with_data(digits + cifar, tmp_path, Console(), named=True)
