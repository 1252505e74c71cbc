"""The headline rows on other images than the authors': which there are, that nothing else differs, when they are trained."""

import pytest

from common.campaign.priority import TIERS, wanted
from common.draws import BASELINES, OTHERS, RATIO
from common.errors import UserError
from common.paper import Paper
from common.plan import needed_images, plan
from common.report.boards import entrants
from common.report.compare import cells
from common.report.published import columns_shown_for
from common.report.results import Results, results_of
from common.spec import FURTHER_DRAWS
from papers.catalog import PAPERS

WITH = [pytest.param(paper, id=paper.name) for paper in PAPERS]


def drawn(paper: Paper) -> dict[str, list[str]]:
    """Subsets of each dataset beside the authors'."""
    found: dict[str, list[str]] = {}
    for column in paper.columns["paper"]:
        if column.is_drawn:
            found.setdefault(column.dataset, []).append(column.subset)
            assert (column.imbalance, column.ratio, column.backbone) == ("lt", RATIO, "resnet32")
    return found


@pytest.mark.parametrize("paper", WITH)
def test_every_paper_has_its_headline_rows_on_the_seven_other_subsets(paper: Paper):
    assert drawn(paper) == {"cifar10": list(OTHERS), "cifar100": list(OTHERS)}
    assert len(OTHERS) == 7
    columns = {c.name: c for c in paper.columns["paper"]}
    for name, column in columns.items():
        if not column.is_drawn:
            continue
        usual = columns[name.removesuffix(f"-{column.subset}")]
        theirs = {row.label: row for row in paper.rows("paper", usual)}
        rows = paper.rows("paper", column)
        headline = [label for label, row in theirs.items() if row.name in (*paper.own, *BASELINES) and not row.variant]
        assert [row.label for row in rows] == headline != []
        for row in rows:
            assert row.describe() == theirs[row.label].describe()
            mine, other = (paper.spec("paper", at, row, 0).as_json() for at in (column, usual))
            assert mine["column"].pop("subset") != other["column"].pop("subset")
            assert mine == other


@pytest.mark.parametrize("paper", WITH)
def test_a_plan_has_them_where_they_are_named_only(paper: Paper):
    assert not any(m.spec.column.is_drawn for m in plan(paper, "paper"))
    named = plan(paper, "paper", columns=("cifar10-lt-100-draw-3",))
    assert {m.spec.column.subset for m in named} == {"draw-3"}


def test_a_campaign_takes_them_as_ablations_and_own_methods_on_further_draws_behind_the_baselines():
    runs, worth = wanted(PAPERS, "paper")
    found = [m for m in runs if m.spec.column.is_drawn]
    for item in found:
        own = item.spec.column.subset in FURTHER_DRAWS and item.method.name not in BASELINES
        assert worth[item.spec.key].tier == TIERS.index("ablations") + 3 * own, item.label
        assert worth[item.spec.key].numbers == 0
    assert {m.method.name for m in found} >= {*BASELINES, *(name for paper in PAPERS for name in paper.own)}
    assert not any(m.spec.column.is_drawn for m in wanted(PAPERS, "paper", ("cifar10-lt-100",))[0])


def test_a_parcel_has_their_images_where_they_are_named():
    usual = needed_images(PAPERS, "cifar10", (), ())
    assert usual
    assert not any(need.column.is_drawn for need in usual)
    named = needed_images(PAPERS, "cifar10", (), ("cifar10-lt-100-draw-2", "cifar10-lt-100"))
    assert {need.column.subset for need in named} == {"draw-2", "authors"}
    with pytest.raises(UserError, match="No paper trains on such a column of cifar10"):
        needed_images(PAPERS, "cifar10", ("none",), ("cifar10-lt-100-draw-2",))


def test_no_printed_number_and_no_leaderboard_is_about_them():
    for paper in PAPERS:
        assert not any(column.is_drawn for columns in columns_shown_for(paper, "paper").values() for column in columns)
        assert not any(subset in cell.column for cell in cells(Results(paper, {}, "paper")) for subset in OTHERS)
    assert not any(entrant.column.is_drawn for entrant in entrants(results_of(PAPERS, {}, "paper")))
