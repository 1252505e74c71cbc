"""The join with the published numbers, and the verdict rule."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.method import Paper, plan
from common.report.compare import Cell, cell_verdict, cells, minutes, published, standing_columns
from common.report.groups import majority
from common.store import check_record
from tests.records import PUBLISHED, make_record, toy_paper, toy_records


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "toy")


def find(found: list[Cell], method: str, column: str, reading: str = "written", variant: str = "") -> Cell:
    [cell] = [c for c in found if (c.method, c.column, c.variant) == (method, column, variant) and c.reading in (reading, "")]
    return cell


def test_helper_records_pass_the_store(paper: Paper) -> None:
    for accuracy in (71.5, None):
        for planned in plan(paper, "paper")[:3]:
            check_record(make_record(planned, accuracy), "helper")


@pytest.mark.parametrize(("delta", "sd", "n", "verdict"), [
    (0.5, None, 1, "reproduced"), (-0.5, 0.1, 3, "reproduced"), (0.51, 0.1, 3, "near"), (0.9, 0.45, 3, "reproduced"),
    (30.14 - 29.64, None, 1, "reproduced"), (1.5, 0.2, 3, "near"), (1.51, 0.2, 3, "higher"), (-1.51, 0.2, 3, "lower"),
    (2.0, 1.0, 3, "reproduced"), (-9.0, None, 1, "lower"), (0.0, None, 0, None),
])
def test_cell_verdict(delta: float, sd: float | None, n: int, verdict: str | None) -> None:
    assert cell_verdict(delta, sd, n) == verdict


@given(st.floats(-50, 50), st.floats(0, 5))
def test_cell_verdict_mirrors(delta: float, sd: float) -> None:
    swap = {"higher": "lower", "lower": "higher"}
    verdict = cell_verdict(delta, sd, 3)
    assert cell_verdict(-delta, sd, 3) == swap.get(verdict, verdict)


def test_published_keeps_the_printed_strings(paper: Paper) -> None:
    first = published(paper).iloc[0]
    assert (first["value"], first["number"], first["column"], first["row"]) == ("29.60", 29.6, "cifar10-lt-100", "ERM")
    assert set(published(paper)["variant"]) == {"", *(f"beta={b};delta=2.0" for b in ("1.0", "1.1", "1.2", "1.3"))}


def test_cell_joins_runs_of_the_same_column_method_and_variant(paper: Paper) -> None:
    records = toy_records(paper, {"ce": (30.0, 29.8, 30.2), "own[beta=1.1;delta=2.0]@written": (25.0,)})
    found = cells(paper, records, "paper")
    ce = find(found, "ce", "cifar10-lt-100")
    assert ce.values == pytest.approx((30.0, 29.8, 30.2))
    assert (ce.n, ce.state, ce.verdict, len(ce.keys)) == (3, "mean", "reproduced", 3)
    assert (ce.mean, ce.sd, ce.delta) == pytest.approx((30.0, 0.2, 0.4))
    assert ce.best == pytest.approx((29.75, 29.55, 29.95))
    setting = find(found, "own", "cifar10-lt-100", variant="beta=1.1;delta=2.0")
    assert (setting.n, setting.sd, setting.verdict) == (1, None, "higher")
    assert find(found, "own", "cifar10-lt-100").state == "no run yet"


def test_every_printed_number_has_a_cell_and_a_state(paper: Paper) -> None:
    found = cells(paper, {}, "paper")
    assert len(found) == len(PUBLISHED) + sum(",own," in row for row in PUBLISHED)  # own has two readings
    assert find(found, "ce", "imagenet").state == "not run: needs imagenet"
    assert find(found, "ghost", "cifar10-lt-100").state == "not run: no such method here"
    assert {c.state for c in found if c.reading} == {"no run yet"}
    assert all(c.verdict is None and c.mean is None for c in found)


def test_diverged_runs_are_counted_and_not_averaged(paper: Paper) -> None:
    found = cells(paper, toy_records(paper, {"ce": (30.0, None, 30.2), "rival": (None, None)}), "paper")
    assert (find(found, "ce", "cifar10-lt-100").n, find(found, "ce", "cifar10-lt-100").diverged) == (2, 1)
    assert find(found, "ce", "cifar10-lt-100").mean == pytest.approx(30.1)
    rival = find(found, "rival", "cifar10-lt-100")
    assert (rival.state, rival.verdict, rival.diverged) == ("diverged", None, 2)


def test_more_seeds_than_planned_all_count(paper: Paper) -> None:
    found = cells(paper, toy_records(paper, {"ce": (30.0,) * 5}), "paper")
    assert find(found, "ce", "cifar10-lt-100").n == 5 > paper.seeds["paper"]


def test_quick_numbers_stand_beside_and_never_get_a_verdict(paper: Paper) -> None:
    found = cells(paper, toy_records(paper, {"ce": (29.6, 29.6)}, "quick"), "quick")
    assert standing_columns(paper, "quick") == {"cifar10-lt-100": paper.columns["quick"]}
    cell = find(found, "ce", "digits-lt-20")
    assert (cell.stands_for, cell.printed, cell.n, cell.quick) == ("cifar10-lt-100", "29.60", 2, True)
    assert {(c.delta, c.verdict) for c in found} == {(None, None)}
    assert {c.stands_for for c in found} == {"cifar10-lt-100"}


def test_records_of_unlike_machines_are_flagged(paper: Paper) -> None:
    records = toy_records(paper, {"ce": (30.0, 29.8)}, columns=("cifar10-lt-100",))
    planned = next(p for p in plan(paper, "paper") if p.run.key in records and p.run.seed == 1)
    records[planned.run.key] = make_record(planned, 70.0, made={"precision": "bfloat16", "seconds": 90.0})
    assert find(cells(paper, records, "paper"), "ce", "cifar10-lt-100").flags == ("mixed precision: bfloat16, float32",)
    assert minutes(records.values()) == 2.0


def test_majority_classes() -> None:
    assert majority([500] * 5 + [5] * 5) == [True] * 5 + [False] * 5
    assert majority([5, 500]) == [False, True]
    assert majority([100, 60, 36, 10, 1]) == [True, True, True, True, False]


def test_bad_published_files_are_user_errors(paper: Paper) -> None:
    path = paper.folder / "published.csv"
    good = path.read_text()
    for bad, message in ((good.replace("29.60", "29,60"), "not a table|is not a number"),
                         (good.replace("29.60", "n/a"), "line 2"), (good.replace("imbalance_ratio", "rho"), "imbalance_ratio"),
                         ("", "not a table"), (good.replace(",lt,100,", ",lt,many,"), "imbalance_ratio 'many'")):
        path.write_text(bad)
        with pytest.raises(UserError, match=message):
            published(paper)
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        published(paper)


def test_a_metric_that_nothing_measures_is_refused(paper: Paper) -> None:
    path = paper.folder / "published.csv"
    path.write_text(path.read_text().replace("top1_error", "top5_error"))
    with pytest.raises(UserError, match="top5_error"):
        cells(paper, toy_records(paper, {"ce": (30.0,)}), "paper")
