"""Kendall's tau between printed and our orders: by hand, against scipy, and the interval over seeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from common.paper import Paper
from common.report.intervals import Interval
from common.report.order import ColumnOrder, orders, tau_b
from common.report.results import results_of
from tests.records import PUBLISHED, toy_paper, toy_records

RUNS = {"ce": (30.0, 30.2), "rival": (20.0, 20.2), "own": (21.0, 21.2)}


def found(paper: Paper, errors: dict, **more) -> dict[tuple[str, str, str], ColumnOrder]:
    return {(o.table, o.column, o.reading): o for o in orders(results_of([paper], toy_records(paper, errors, **more), "paper"))}


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "toy")


def test_a_column_by_hand(paper: Paper) -> None:
    """Printed: ce 29.60, ghost 28.00, rival 22.10, own 22.00. Ours puts rival before own: two of three pairs agree."""
    order = found(paper, RUNS)["1", "cifar10-lt-100", "written"]
    assert (order.n, order.pairs, order.agree, order.why) == (3, 3, 2, "")
    assert order.tau == pytest.approx(1 / 3)
    assert order.interval == pytest.approx(Interval(1 / 3, 1 / 3))  # the runs are far apart, so every draw says the same
    assert [(p.label, p.published, p.ours, p.runs, p.published_rank, p.our_rank) for p in order.places] == [
        ("ERM", 29.60, pytest.approx(30.1), 2, 3, 3), ("Rival", 22.10, pytest.approx(20.1), 2, 2, 1),
        ("OWN", 22.00, pytest.approx(21.1), 2, 1, 2)]
    assert [p.printed for p in order.places] == ["29.60", "22.10", "22.00"]  # with the decimals of the paper
    assert all(len(place.keys) == place.runs for place in order.places)
    assert order.left_out == ("Ghost: not run: no such method here",)


def test_readings_are_ordered_apart(paper: Paper) -> None:
    """ce and rival are written only, and take part in both; own is best as written and worst as released."""
    per_reading = found(paper, {**RUNS, "own@written": (19.0, 19.2), "own@released": (40.0, 40.1)})
    written, released = (per_reading["1", "cifar10-lt-100", reading] for reading in ("written", "released"))
    assert (written.tau, written.note) == (1.0, "")
    assert released.tau == pytest.approx(-1 / 3)
    assert released.note == "in their only reading, written: ERM, Rival"


def test_rows_that_are_not_comparable_with_their_source_are_named(paper: Paper) -> None:
    apart = replace(paper, not_comparable={"cifar10-lt-100/rival": "another network"})
    assert found(apart, RUNS)["1", "cifar10-lt-100", "written"].note == "not comparable with their source: Rival"


def test_the_interval_says_how_sure_our_order_is(paper: Paper) -> None:
    """rival and own overlap, so that draws say either 1/3 or 1."""
    order = found(paper, {**RUNS, "own": (19.0, 21.0, 20.4), "rival": (19.5, 20.5, 20.5)})["1", "cifar10-lt-100", "written"]
    assert order.interval == pytest.approx((1 / 3, 1.0))
    again = found(paper, {**RUNS, "own": (19.0, 21.0, 20.4), "rival": (19.5, 20.5, 20.5)})["1", "cifar10-lt-100", "written"]
    assert again == order


def test_what_cannot_be_computed_is_said(paper: Paper, tmp_path: Path) -> None:
    none = found(paper, {"ce": (30.0,)})
    assert none["1", "cifar10-lt-100", "written"].why == "Methods with runs: 1 of 4; an order needs 3."
    assert none["1", "cifar10-lt-100", "written"].tau is None
    assert none["1", "cifar10-step-100", "written"].n == 1
    assert ("2", "cifar10-lt-100", "written") not in none  # two settings have no order
    assert not any(column == "imagenet" for _, column, _ in none)
    single = found(paper, {name: runs[:1] for name, runs in RUNS.items()})["1", "cifar10-lt-100", "written"]
    assert (single.tau, single.interval, single.why) == (pytest.approx(1 / 3), None, "")
    lost = found(paper, {**RUNS, "rival": (None, None)})["1", "cifar10-lt-100", "written"]
    assert lost.why == "Methods with runs: 2 of 4; an order needs 3."
    assert "Rival: diverged" in lost.left_out
    equal = found(paper, dict.fromkeys(RUNS, (20.0, 20.0)))["1", "cifar10-lt-100", "written"]
    assert (equal.tau, equal.why) == (None, "All numbers of a side are equal, so there is no order.")


def test_a_metric_that_no_record_holds_and_a_dataset_that_nobody_has(tmp_path: Path) -> None:
    more = tuple(f"1,imagenet,none,,{name},[4],{value},{note}" for name, value, note in
                 (("rival", "40.0", ""), ("own", "41.0", ""), ("third", "50.0", "")))
    paper = toy_paper(tmp_path / "toy", published=PUBLISHED + more)
    [order] = [o for o in orders(results_of([paper], {}, "paper")) if o.column.startswith("imagenet")]
    assert (order.reading, order.why) == ("", "Methods with runs: 0 of 4; an order needs 3.")
    assert order.left_out[0] == "ERM: not run: needs imagenet"
    path = paper.folder / "published.csv"
    path.write_text(path.read_text().replace("top1_error", "auroc"))
    assert {o.why for o in orders(results_of([paper], {}, "paper"))} == {"Not decidable: no record holds auroc."}


def test_accuracies_are_ranked_from_above(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy")
    path = paper.folder / "published.csv"
    path.write_text(path.read_text().replace("top1_error", "top1_accuracy"))  # so 29.60 is now the best number
    order = found(paper, RUNS)["1", "cifar10-lt-100", "written"]
    assert [(p.label, p.published_rank, p.our_rank) for p in order.places] == [("ERM", 1, 3), ("Rival", 2, 1), ("OWN", 3, 2)]
    assert order.tau == pytest.approx(-1 / 3)


def test_tau_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        one, others = rng.integers(0, 5, 6).astype(float), rng.integers(0, 5, (4, 6)).astype(float)
        assert tau_b(one, others) == pytest.approx([kendalltau(one, other).statistic for other in others], nan_ok=True)
    assert np.isnan(tau_b(np.ones(4), rng.normal(size=(2, 4)))).all()
