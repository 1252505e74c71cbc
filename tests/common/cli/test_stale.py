"""Stale records: shown, set aside for another training; and nothing is trained before it can be reported."""

import io

import pytest
from rich.console import Console

from common.cli.stale import check_reportable, print_stale, retire, stale_runs
from common.errors import UserError
from common.methods.digest import ENGINE
from common.plan import missing_runs, plan
from common.report.compare import cells
from common.report.results import Results
from common.store import load_records, record_files, save_record
from tests.records import make_record, toy_paper, toy_records


@pytest.fixture
def paper(tmp_path):
    return toy_paper(tmp_path / "papers" / "toy")


@pytest.fixture
def runs(paper):
    return plan(paper, "paper")


def root(paper):
    return paper.folder.parent


def shown(planned, folder) -> str:
    text = io.StringIO()
    print_stale(Console(file=text, width=200), planned, folder)
    return text.getvalue()


def test_stale_runs_are_those_whose_record_is_of_other_code_or_another_engine(paper, runs):
    save_record(runs[0].folder, make_record(runs[0], 70.0))
    save_record(runs[1].folder, make_record(runs[1], 70.0, method_digest="0" * 16))
    save_record(runs[2].folder, make_record(runs[2], 70.0, engine=ENGINE + 1))
    assert [item for item, _ in stale_runs(runs, root(paper))] == runs[1:3]
    assert missing_runs(runs[:3], record_files(root(paper))) == runs[1:3]
    text = shown(runs, root(paper))
    assert "0" * 16 in text
    assert f"{runs[1].digest} (engine {ENGINE})" in text
    assert f"(engine {ENGINE + 1})" in text
    assert "No record is stale" in shown(runs[:1], root(paper))


def test_a_stale_number_is_shown_without_a_verdict_and_counts_nowhere(paper):
    records = toy_records(paper, {"ce": [29.5, 29.6, 29.7], "own@written": [22.0, 22.1, 22.2]})
    fresh = {cell.method: cell for cell in cells(Results(paper, records, "paper"))
             if cell.column == "cifar10-lt-100" and cell.table == "1" and cell.reading in ("written", "")}
    assert (fresh["ce"].n, fresh["ce"].state, fresh["ce"].verdict) == (3, "mean", "reproduced")
    old = {key: {**r, "method_digest": "0" * 16} if "ce@" in r["label"] and r["spec"]["seed"] else r
           for key, r in records.items()}
    some = next(c for c in cells(Results(paper, old, "paper")) if (c.method, c.column) == ("ce", "cifar10-lt-100"))
    assert some.n == 1
    assert "left out: 2 runs of other code" in some.flags
    none = {key: {**r, "method_digest": "0" * 16} if "ce@" in r["label"] else r for key, r in records.items()}
    cell = next(c for c in cells(Results(paper, none, "paper")) if (c.method, c.column) == ("ce", "cifar10-lt-100"))
    assert (cell.n, cell.verdict, cell.delta, cell.values, cell.keys) == (0, None, None, (), ())
    assert cell.state == "stale: 29.60 ± 0.10 (3), of other code"


def test_retired_records_are_out_of_the_store_and_kept(paper, runs, tmp_path):
    for item in runs[:2]:
        save_record(item.folder, make_record(item, 70.0))
    assert retire(runs[:1], root(paper), tmp_path / "work") == 1
    assert set(load_records(root(paper))) == {runs[1].spec.key}
    kept = list((tmp_path / "work" / "retired").rglob("*.json"))
    assert len(kept) == 1
    assert runs[0].identity in kept[0].name
    assert retire(runs[:1], root(paper), tmp_path / "work") == 0


@pytest.mark.parametrize(("name", "text", "said"), [
    ("published.csv", "nonsense\n", "column 'paper' is missing"),
    ("claims.yaml", "- id: x\n", "is missing"),
    ("README.md", "# No marks\n", "begin generated: results"),
])
def test_what_cannot_be_reported_is_said_before_anything_is_trained(paper, name, text, said):
    check_reportable([paper])
    (paper.folder / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        check_reportable([paper])
    assert "\n" not in str(error.value)
