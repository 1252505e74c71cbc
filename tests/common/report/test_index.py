"""results/index.json: its schema, its entries by hand, and that the committed one is that of the records."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from common.plan import plan
from common.report.index import NAME, SCHEMA, index, write_index
from common.report.results import Records, Results, results_of
from common.spec import LargeProtocol, Protocol
from common.store import load_records, save_record
from papers.catalog import PAPERS
from tests.records import make_record, toy_paper

ROOT = Path(__file__).resolve().parents[3]
CHECK = Draft202012Validator(json.loads((ROOT / "results" / SCHEMA).read_text(encoding="utf-8")))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Records of a toy paper: two finished runs, one diverged, and one of the quick profile."""
    paper = toy_paper(tmp_path / "papers" / "toy")
    items = plan(paper, "paper", columns=("cifar10-lt-100",), methods=("ce", "own@released"), seeds=2)
    for item, accuracy in zip(items, (70.0, 71.5, None), strict=False):
        save_record(item.folder, make_record(item, accuracy))
    quick = plan(paper, "quick", seeds=1)[0]
    save_record(quick.folder, make_record(quick, 90.0))
    return tmp_path / "papers"


def results(root: Path, records: Records) -> tuple[Results, ...]:
    return results_of([toy_paper(root / "toy")], records, "paper")


def test_an_entry_by_hand(root: Path, tmp_path: Path) -> None:
    records = load_records(root)
    found = index(results(root, records))
    CHECK.validate(found)
    assert [(e["method"], e["seed"], e["status"]) for e in found["records"]] == [
        ("ce@written", 0, "done"), ("ce@written", 1, "done"), ("own@released", 0, "diverged")]
    entry = found["records"][1]
    record = records[entry["key"]]
    assert entry == {
        "key": record["key"], "paper": "toy", "profile": "paper", "column": "cifar10-lt-100", "method": "ce@written",
        "reading": "written", "task": "classes", "seed": 1, "status": "done",
        "accuracy": {"last": 71.5, "best": 71.75, "best_epoch": 3}, "groups": {"many": 71.5, "medium": None, "few": 71.5},
        "top5": None, "ece": 1.0, "seconds": 30.0,
        "device": "test device", "precision": "float32", "torch": "2.11.0", "commit": "0" * 12,
        "finished": "2026-01-01T00:00:00+00:00", "protocol": record["spec"]["protocol"],
        "path": f"papers/toy/results/paper/cifar10-lt-100/cifar10-lt-100-ce@written-s1-"
                f"{record['key']}-{record['method_digest']}e{record['engine']}.json",
        "digest": record["digest"], "method_digest": record["method_digest"], "engine": record["engine"], "predictions": None,
    }
    assert json.loads((tmp_path / entry["path"]).read_text())["key"] == entry["key"]


def test_the_file_is_the_same_for_the_same_records(root: Path, tmp_path: Path) -> None:
    records = load_records(root)
    first = write_index(results(root, records), tmp_path / "one")
    second = write_index(results(root, dict(reversed(records.items()))), tmp_path / "two")
    assert first.name == NAME
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(first.read_bytes()) == index(results(root, records))
    assert len(first.read_text().splitlines()) == 2 + 3  # one run a line
    assert json.loads(write_index(results(root, {}), tmp_path / "three").read_bytes())["records"] == []


@pytest.mark.parametrize("change", [
    {"key": "xyz"}, {"status": "lost"}, {"accuracy": {"last": None, "best": None, "best_epoch": None}}, {"ece": 101.0},
    {"profile": "quick"}, {"finished": "yesterday"}, {"more": 1}, {"seed": 0.5}, {"path": "elsewhere.json"}])
def test_the_schema_refuses(root: Path, change: dict) -> None:
    found = index(results(root, load_records(root)))
    found["records"][0].update(change)
    with pytest.raises(ValidationError):
        CHECK.validate(found)


def test_the_schema_is_one_and_knows_the_whole_protocol() -> None:
    Draft202012Validator.check_schema(CHECK.schema)
    run = CHECK.schema["$defs"]["run"]
    protocol = run["properties"]["protocol"]
    assert list(protocol["properties"]) == [field.name for field in fields(LargeProtocol)]
    assert protocol["required"] == [field.name for field in fields(Protocol)]
    assert run["required"] == list(run["properties"])


def test_the_committed_index_is_that_of_the_records() -> None:
    found = index(results_of(PAPERS, load_records(ROOT / "papers"), "paper"))
    CHECK.validate(found)
    assert json.loads((ROOT / "results" / NAME).read_text(encoding="utf-8")) == found, "run `make report`"
