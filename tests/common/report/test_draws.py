"""The spread over draws of a subset beside that over seeds: what was planted is found."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import f_oneway

from common.draws import OTHERS, with_draws
from common.paper import Paper
from common.plan import plan
from common.report.draws import draws_of, variances
from common.report.page.draws import draws_view
from common.report.results import Results, results_of
from common.report.variants import variants_markdown
from tests.records import make_record, toy_paper

SUBSETS = ("authors", *OTHERS)


@pytest.fixture
def paper(tmp_path) -> Paper:
    return with_draws(toy_paper(tmp_path / "papers" / "toy"))


def planted(paper: Paper, draws: float, seeds: float, subsets: tuple[str, ...] = SUBSETS, runs: int = 3) -> dict:
    """Records whose accuracies scatter by these sds over subsets and over seeds."""
    generator, found = np.random.default_rng(4), {}
    names = tuple(c.name for c in paper.columns["paper"] if c.imbalance == "lt" and c.subset in subsets)
    offset = {}
    for item in plan(paper, "paper", columns=names, seeds=runs):
        place = item.spec.column.subset, item.method.label
        offset.setdefault(place, generator.normal(0, draws))
        record = make_record(item, 70 + offset[place] + generator.normal(0, seeds))
        found[record["key"]] = record
    return found


@pytest.mark.parametrize(("draws", "seeds"), [(1.5, 0.2), (0.0, 0.5), (0.5, 0.5)])
def test_both_variances_are_found_without_bias(draws: float, seeds: float):
    """On average over many experiments of eight subsets with unequal numbers of runs."""
    generator, sizes = np.random.default_rng(1), (3, 3, 2, 3, 5, 1, 3, 3)
    found = [variances([generator.normal(generator.normal(0, draws), seeds, n).tolist() for n in sizes]) for _ in range(2000)]
    assert np.mean([v.draws for v in found]) == pytest.approx(draws**2, abs=0.05 * (draws**2 + seeds**2))
    assert np.mean([v.seeds for v in found]) == pytest.approx(seeds**2, rel=0.05)
    if not draws:
        assert np.mean([v.p < 0.05 for v in found]) == pytest.approx(0.05, abs=0.02)


def test_the_test_is_scipys_and_too_few_runs_have_none():
    groups = [[70.1, 70.4, 69.9], [71.0, 71.3], [70.2, 70.0, 70.6]]
    assert variances([*groups, []]).p == pytest.approx(f_oneway(*groups).pvalue)
    assert variances([[70.0, 70.5]]) is None
    assert variances([[70.0], [71.0]]) is None
    assert variances([[70.0, 70.0], [71.0, 71.0]]).p == 1.0


def test_a_planted_spread_over_draws_stands_beside_that_over_seeds_and_counts_the_gaps_below_it(paper: Paper):
    [pooled] = draws_of(results_of([paper], planted(paper, draws=2.0, seeds=0.1), "paper"))
    assert {one.label for one in pooled.methods} == {"ce@written", "own@written", "own@released"}
    assert 1.2 < pooled.draws < 2.9
    assert 0.05 < pooled.seeds < 0.2
    assert all(len(one.means) == 8 and one.variances.p < 1e-6 for one in pooled.methods)
    # Printed at ratio 100: 22.00, 22.10, 28.00 and 29.60 in Table 1, 22.00 and 22.30 in Table 2.
    assert [(t.table, t.gaps) for t in pooled.tables] == [("1", (0.1, 5.9, 1.6)), ("2", (0.3,))]
    assert pooled.smaller(pooled.draws) == (3 if pooled.draws > 1.6 else 2)
    assert pooled.smaller(0.2) == 1
    view = draws_view(results_of([paper], planted(paper, draws=2.0, seeds=0.1), "paper"))["draws"][0]
    assert f"{pooled.smaller(pooled.draws)} of them are smaller than the sd over draws" in view.answer
    assert len(view.rows) == 3
    assert all(row.subsets == 8 for row in view.rows)


def test_where_subsets_do_not_differ_nothing_is_found(paper: Paper):
    [pooled] = draws_of(results_of([paper], planted(paper, draws=0.0, seeds=0.3), "paper"))
    assert pooled.draws < 0.2 < pooled.seeds
    assert all(one.variances.p > 0.01 for one in pooled.methods)


@pytest.mark.parametrize("there", [(), ("authors",)])
def test_before_there_are_runs_it_says_what_it_waits_for(paper: Paper, there: tuple[str, ...]):
    records = planted(paper, 1.0, 0.1, there) if there else {}
    view = draws_view(results_of([paper], records, "paper"))["draws"][0]
    assert "waits for a method with two runs or more on each of two subsets; no run on other images is here yet" in view.answer
    assert view.answer.startswith("4 gaps between neighbours are printed in 2 tables")
    assert view.rows == ()
    assert "subset=" not in variants_markdown(Results(paper, records, "paper"))


def test_a_method_of_two_papers_is_one_row(paper: Paper, tmp_path):
    other = replace(with_draws(toy_paper(tmp_path / "other")), name="other")
    [pooled] = draws_of(results_of([paper, other], planted(paper, 1.0, 0.1), "paper"))
    [ce] = [one for one in pooled.methods if one.label == "ce@written"]
    assert ce.papers == ("toy: ce@written", "other: ce@written")
    assert [t.paper for t in pooled.tables] == ["toy", "toy", "other", "other"]
