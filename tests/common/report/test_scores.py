"""The numbers that DVC shows: counted from cells and claims, the same bytes for the same records."""

import csv
import json
from dataclasses import replace

import pytest

from common.report.compare import cells
from common.report.figures import per_class_error
from common.report.results import Results
from common.report.scores import metrics, write_scores
from tests.records import toy_paper, toy_records

ERRORS = {"ce": (29.0, 29.2, 29.4), "rival": (22.0, 22.1, 22.2), "own": (24.9, 25.0, 25.1)}


@pytest.fixture
def paper(tmp_path):
    return toy_paper(tmp_path / "papers" / "toy")


def test_metrics_count_verdicts_and_leave_out_what_cannot_be_computed(paper):
    nothing = metrics(cells(Results(paper, {}, "paper")), [], [])
    assert set(nothing) == {"runs", "cells", "claims"}
    assert nothing["runs"] == 0
    assert set(nothing["cells"]) == {"no_run_yet", "not_run"}
    found = cells(Results(paper, toy_records(paper, ERRORS), "paper"))
    numbers = metrics(found, [], [0.5, 1.0])
    there = [cell for cell in found if cell.n]
    assert numbers["runs"] == len({key for cell in there for key in cell.keys}) > 0
    assert numbers["kendall_tau"] == 0.75
    assert numbers["mean_absolute_difference"] == pytest.approx(sum(abs(c.delta) for c in there) / len(there), abs=1e-4)
    assert sum(numbers["cells"].values()) == len(found)
    assert numbers["cells"]["worse"] == sum(cell.verdict == "worse" for cell in found) > 0
    assert numbers["accuracy_of_own"] == pytest.approx(75.0, abs=1e-3)
    assert numbers["accuracy_of_others"] < 75 + 2.9


def test_cells_that_are_not_comparable_do_not_count_as_a_difference(paper):
    apart = replace(paper, not_comparable={"cifar10-lt-100": "drawn elsewhere"})
    records = toy_records(paper, ERRORS)
    found = cells(Results(apart, records, "paper"))
    kept = [abs(cell.delta) for cell in found if cell.n and cell.column != "cifar10-lt-100"]
    assert kept
    assert metrics(found, [], [])["mean_absolute_difference"] == pytest.approx(sum(kept) / len(kept), abs=1e-4)


def test_the_files_are_the_same_for_the_same_records(paper):
    records = toy_records(paper, ERRORS)
    folder = write_scores(Results(paper, records, "paper"))
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    later = {key: record | {"made": record["made"] | {"seconds": 99.0}} for key, record in reversed(records.items())}
    write_scores(Results(paper, later, "paper"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first
    assert set(first) == {"metrics.json", "agreement.csv", "per_class.csv"}
    assert json.loads(first["metrics.json"])["runs"] > 0
    lines = list(csv.DictReader(first["per_class.csv"].decode().splitlines()))
    assert {line["method"] for line in lines} == {"ce@written", "own@written", "own@released"}
    ranks = [int(line["class"]) for line in lines if (line["column"], line["method"]) == ("cifar10-lt-100", "ce@written")]
    assert ranks == list(range(1, 11))
    printed = {(line["row"], line["published"]) for line in csv.DictReader(first["agreement.csv"].decode().splitlines())}
    assert ("ERM", "29.6") in printed


def test_a_class_without_a_test_image_has_no_place_in_the_curve_and_stops_nothing(paper):
    records = {key: record | {"per_class_accuracy": [None, *record["per_class_accuracy"][1:]]}
               for key, record in toy_records(paper, ERRORS).items()}
    results = Results(paper, records, "paper")
    lines = list(csv.DictReader((write_scores(results) / "per_class.csv").read_text().splitlines()))
    ranks = [int(line["class"]) for line in lines if (line["column"], line["method"]) == ("cifar10-lt-100", "ce@written")]
    assert ranks == list(range(2, 11))
    assert set(per_class_error(results, "cifar10-lt-100", ("ce",)).data["class"]) == {f"C{i}" for i in range(1, 10)}
