"""Results: each thing is computed once for all that a report shows, under both profiles, and says what the records say."""

from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import pytest

from common import spec
from common.report import claims, results
from common.report.boards import boards
from common.report.compare import cells
from common.report.index import write_index
from common.report.order import orders
from common.report.page.page import build_page
from common.report.readme import front_table, results_block
from common.report.results import Results, results_of
from common.report.same_cell import same_cells
from common.report.tables import print_table, write_tables
from tests.common.report.test_claims import BETTER
from tests.common.report.test_tables import ERRORS
from tests.records import toy_paper, toy_records


def counted(monkeypatch: pytest.MonkeyPatch, calls: Counter, module: object, name: str) -> None:
    compute: Callable = getattr(module, name)

    @wraps(compute)
    def count(*args: object, **more: object) -> object:
        calls[name] += 1
        return compute(*args, **more)

    monkeypatch.setattr(module, name, count)


def test_a_whole_report_reads_and_computes_each_thing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = toy_paper(tmp_path / "papers" / "toy", BETTER)
    records = toy_records(paper, ERRORS) | toy_records(paper, ERRORS, "quick")
    calls: Counter = Counter()
    counted(monkeypatch, calls, results, "published")
    counted(monkeypatch, calls, results, "columns_shown_for")
    counted(monkeypatch, calls, claims, "load_claims")
    counted(monkeypatch, calls, claims, "follows_from")  # once a reading whenever claims are evaluated
    counted(monkeypatch, calls, spec, "spec_key")
    found = results_of([paper], records, "paper")
    for one in found:
        write_tables(one, tmp_path / "tables")
        print_table(one)
        results_block(one)
    front_table(found)
    boards(found)
    orders(found)
    same_cells(found)
    write_index(found, tmp_path)
    build_page(found, tmp_path / "figures", {}, tmp_path / "index.html")
    readings = {outcome.reading for outcome in claims.evaluate(found[0])}
    assert calls["published"] == 1
    assert calls["columns_shown_for"] == 1  # of the quick profile only runs are shown
    assert calls["load_claims"] == 1
    assert calls["follows_from"] == len(readings) == 2
    planned = [run for name in ("paper", "quick") for column in paper.columns[name]
               for seeds in found[0].under(name).planned(column) for run in seeds]
    assert calls["spec_key"] == len(planned) == 24 * 3


def test_profiles_of_the_same_records_are_one_another(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy")
    here = Results(paper, toy_records(paper, ERRORS), "paper")
    quick = here.under("quick")
    assert here.under("paper") is here
    assert here.under("quick") is quick
    assert quick.under("paper") is here
    assert quick.published is here.published
    assert cells(here) is cells(here)
    assert cells(here) != cells(quick)


def test_every_seed_that_is_recorded_counts_and_every_one_that_is_planned_is_there(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy")
    column = paper.columns["paper"][0]
    more = Results(paper, toy_records(paper, {"ce": (30.0,) * 5}), "paper")
    [ce, *others] = more.runs(column)
    assert [record["spec"]["seed"] for record in ce.done] == list(more.seeds) == [0, 1, 2, 3, 4]
    assert not any(runs.done for runs in others)
    none = Results(paper, {}, "paper")
    assert [item.spec.seed for item in none.runs(column)[0].planned] == [0, 1, 2]
    assert [item.spec.key for item in none.planned(column)[0]] == [item.spec.key for item in more.planned(column)[0]][:3]
