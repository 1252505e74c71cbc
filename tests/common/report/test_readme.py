"""The generated parts of the READMEs."""

from pathlib import Path

import pytest

from common.errors import UserError
from common.paper import Paper
from common.report.readme import fill, front_table, results_block, tally
from common.report.results import Results, results_of
from tests.common.report.test_claims import BETTER
from tests.common.report.test_compare import add_rows
from tests.common.report.test_tables import ERRORS, table_rows
from tests.records import toy_paper, toy_records

PAGE = "# Title\n<!-- begin generated: results -->\nold\n<!-- end generated: results -->\nafter\n"


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "toy", BETTER)


def test_fill_replaces_only_what_stands_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    fill(path, "results", "\nnew \\1 text\n")
    expected = PAGE.replace("old", "new \\1 text")
    assert path.read_text() == expected
    fill(path, "results", "new \\1 text")
    assert path.read_text() == expected


@pytest.mark.parametrize("page", [PAGE.replace("begin", "start"), PAGE.replace("end generated: results", "end generated: other"),
                                  PAGE + PAGE, "\n".join(reversed(PAGE.splitlines())), None])
def test_fill_refuses_a_file_without_its_markers(tmp_path: Path, page: str | None) -> None:
    path = tmp_path / "README.md"
    if page is not None:
        path.write_text(page)
    with pytest.raises(UserError, match=r"README\.md"):
        fill(path, "results", "new")
    assert page is None or path.read_text() == page


def test_front_table_shows_the_papers_own_headline(paper: Paper) -> None:
    sentence, _, table = front_table(results_of([paper], toy_records(paper, ERRORS), "paper")).partition("\n\n")
    assert sentence.startswith("Headlines: 0 of 1 reproduced (1 better); ")
    [header, _, row] = table_rows(table)
    found = dict(zip(header, row, strict=True))
    assert found["paper"] == "A toy paper"
    assert found["headline"] == "Table 1, OWN, cifar10-lt-100, Top-1 error"
    assert found["published → ours (seeds)"] == "written: 22.00 → 20.10 ± 0.10 (3); released: 22.00 → 26.00 (1)"
    assert found["verdict"] == "written: better; released: undecided"
    assert found["claims"] == "1 held, 0 failed, 0 undecided"
    assert (found["numbers within 1.5 points"], found["not run"]) == ("4 of 7 with runs", "5 of 12")
    assert found["command"] == "make reproduce-toy"


def test_front_table_before_the_first_run(paper: Paper) -> None:
    sentence, _, table = front_table(results_of([paper], {}, "paper")).partition("\n\n")
    assert sentence.startswith("Headlines: 0 of 1 reproduced (1 not run); no number has runs of ours; ")
    [header, _, row] = table_rows(table)
    found = dict(zip(header, row, strict=True))
    assert found["verdict"] == "none yet"
    assert (found["numbers within 1.5 points"], found["claims"]) == ("no runs", "0 held, 0 failed, 0 undecided, 1 not run")
    assert all(row)


def test_what_no_run_can_answer_is_not_called_not_run(paper: Paper) -> None:
    add_rows(paper, {"metric": "top5_accuracy"})
    sentence, _, table = front_table(results_of([paper], toy_records(paper, {"ce": (30.0,)}), "paper")).partition("\n\n")
    [header, _, row] = table_rows(table)
    assert sentence.endswith("10 of 13 reported numbers not run; 1 not decidable.")
    assert dict(zip(header, row, strict=True))["not run"] == "10 of 13"


def test_results_block_holds_every_table_and_the_counts(paper: Paper) -> None:
    block = results_block(Results(paper, toy_records(paper, ERRORS) | toy_records(paper, ERRORS, "quick"), "paper"))
    assert "29.60 → 29.90 ± 0.20 (3), +0.30, reproduced" in block
    assert "**Table 2.** Settings" in block
    assert "quick" not in block
    assert "Claims by verdict (each reading counted): 1 holds, 1 undecided (n too small)." in block
    assert "21 runs" in block


def test_tally_orders_by_number_then_name() -> None:
    assert tally(["b", "a", "c", "b"]) == "2 b, 1 a, 1 c"
    assert tally([]) == "none"
