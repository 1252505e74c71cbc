"""The tables: every cell filled, safe against odd names, the same bytes for the same records, readable at 100 characters."""

import dataclasses
import io
import re
from pathlib import Path

import pandas
import pytest
from rich.console import Console

from common.errors import UserError
from common.paper import Paper, Table
from common.report.published import published
from common.report.readme import results_block
from common.report.results import Results
from common.report.tables import print_table, write_tables
from common.report.text import escape, number, signed
from common.report.verdict import RULE
from common.store import seal
from tests.common.report.test_claims import BEST, BETTER, SETTING
from tests.records import PUBLISHED, toy_methods, toy_paper, toy_records

ERRORS = {"ce": (29.7, 29.9, 30.1), "own@written": (20.0, 20.1, 20.2), "own@released": (26.0,), "rival": (22.0, None, 22.2),
          "own[beta=1.0;delta=2.0]@written": (22.9, 23.0, 23.1)}


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return toy_paper(tmp_path / "toy", BETTER + BEST + SETTING)


def table_rows(page: str) -> list[list[str]]:
    """The cells of every table row of a Markdown page, as a renderer splits them."""
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in page.splitlines() if line.startswith("|")]


def printed(paper: Paper, records: dict, profile: str) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_table(Results(paper, records, profile), console)
    return console.file.getvalue()


def test_main_table_shows_published_ours_delta_and_verdict(paper: Paper, tmp_path: Path) -> None:
    files = write_tables(Results(paper, toy_records(paper, ERRORS), "paper"), tmp_path / "tables")
    assert [f.name for f in files] == ["table-1.md", "table-1.csv", "table-2.md", "table-2.csv", "claims.md", "claims.csv",
                                       "table-1.tex", "table-2.tex"]
    page = files[0].read_text()
    rows = table_rows(page)
    assert rows[0] == ["method", "reading", "cifar10-lt-100", "cifar10-step-100", "imagenet"]
    assert rows[2] == ["ERM", "written", "29.60 → 29.90 ± 0.20 (3), +0.30, reproduced", "36.70 → 29.90 ± 0.20 (3), -6.80, better",
                       "44.40 → not run: needs imagenet"]
    assert ["Ghost", "-", "28.00 → not run: no such method here", "not printed", "not printed"] in rows
    assert ["Rival", "written", "22.10 → 22.10 ± 0.14 (2), +0.00, reproduced, 1 diverged",
            "22.90 → 22.10 ± 0.14 (2), -0.80, near, 1 diverged", "not printed"] in rows
    assert ["OWN", "released", "22.00 → 26.00 (1), +4.00, undecided", "23.00 → 26.00 (1), +3.00, undecided",
            "not printed"] in rows
    assert RULE in page
    assert "Top-1 error on the test set in percent, last epoch" in page
    assert page.index("## Best test epoch") < page.index("29.60 → 29.65 ± 0.20 (3)")


def test_settings_of_an_ablation_share_rows_and_say_which(paper: Paper, tmp_path: Path) -> None:
    page = write_tables(Results(paper, toy_records(paper, ERRORS), "paper"), tmp_path / "tables")[2].read_text()
    rows = table_rows(page.split("## Best")[0])
    assert len(rows) == 2 + 2 * 2  # two settings a column, two readings
    assert rows[2] == ["OWN", "written", "beta=1.0;delta=2.0: 22.30 → 23.00 ± 0.10 (3), +0.70, near",
                       "beta=1.2;delta=2.0: 23.00 → no run yet"]


def test_no_cell_is_blank_and_rows_are_whole(paper: Paper, tmp_path: Path) -> None:
    for profile in ("paper", "quick"):
        for records in ({}, toy_records(paper, ERRORS), toy_records(paper, ERRORS, "quick")):
            for file in write_tables(Results(paper, records, profile), tmp_path / "tables"):
                if file.suffix == ".md":
                    for part in file.read_text().split("## "):
                        rows = table_rows(part)
                        assert len({len(row) for row in rows}) <= 1
                        assert all(cell for row in rows for cell in row)


def test_quick_columns_come_last_are_marked_and_have_no_verdict(paper: Paper, tmp_path: Path) -> None:
    records = toy_records(paper, ERRORS) | toy_records(paper, ERRORS, "quick")
    page = write_tables(Results(paper, records, "quick"), tmp_path / "tables")[0].read_text()
    rows = table_rows(page.split("## Best")[0])
    assert rows[0][-1] == "quick: digits-lt-20 (in place of cifar10-lt-100)"
    assert rows[2][-1] == "quick 29.90 ± 0.20 (3)"
    assert rows[2][2] == "29.60 → 29.90 ± 0.20 (3), +0.30, reproduced"
    assert "not to be compared" in page
    assert "say nothing about the paper" in (tmp_path / "tables" / "claims.md").read_text()


def test_csv_holds_everything_behind_a_cell(paper: Paper, tmp_path: Path) -> None:
    records = toy_records(paper, ERRORS)
    file = write_tables(Results(paper, records, "paper"), tmp_path / "tables")[1]
    frame = pandas.read_csv(file, dtype=str, keep_default_na=False)
    row = frame[(frame["method"] == "ce") & (frame["column"] == "cifar10-lt-100")].iloc[0].to_dict()
    assert (row["printed"], row["mean"], row["sd"], row["n"], row["delta"]) == ("29.60", "29.9", "0.2", "3", "0.3")
    assert row["values"] == "29.7000;29.9000;30.1000"
    assert (row["best_epoch_mean"], row["verdict"]) == ("29.65", "reproduced")
    assert (row["minutes"], row["devices"]) == ("1.5", "test device")
    assert all(key in records for key in row["keys"].split(";"))
    assert len(frame) == sum(line.startswith("1,") for line in PUBLISHED) + 2  # two readings of own in two columns


def test_claims_page_shows_verdicts_quotes_and_remarks(paper: Paper, tmp_path: Path) -> None:
    write_tables(Results(paper, toy_records(paper, ERRORS), "paper"), tmp_path / "tables")
    page = (tmp_path / "tables" / "claims.md").read_text()
    rows = table_rows(page)
    test, printed_numbers = "own has a lower error than rival in each of 2 columns of table 1", "fails (1 of 2 columns)"
    assert rows[2][:5] == ["own-beats-rival", test, "written", printed_numbers, "holds"]
    assert rows[3][:5] == ["own-beats-rival", test, "released", printed_numbers, "undecided (n too small)"]
    assert "- **own-beats-rival** (4.1): “own is better &#124; than rival”" in page
    assert "  - written, released: left out, as there is no such method here: ghost" in page
    frame = pandas.read_csv(tmp_path / "tables" / "claims.csv")
    assert list(frame["claim"]) == [c for c in ("own-beats-rival", "own-best", "beta-above-one") for _ in range(2)]


def class_paper(folder: Path) -> Paper:
    """A table of four accuracies per class in two columns, and one of two metrics and a printed spread."""
    paper = toy_paper(folder / "toy")
    start = "toy,{t},caption,cifar10,{kind},100,resnet-32,{method},[4],{metric},percent,{value},{std},{group},{notes}"
    lines = [start.format(t=1, kind=kind, method=method, metric="per_class_accuracy", value=70 + k, std="", group=f"class-{k}",
                          notes="backbone inferred from Table 2;row=CE loss" if method == "ce" else "")
             for kind in ("lt", "step") for k in (0, 9) for method in ("ce", "own")]
    lines += [start.format(t=2, kind="lt", method="ce", metric=f"top{k}_accuracy", value=60 + k, std=0.08, group="", notes="")
              for k in (1, 5)]
    head = (paper.folder / "published.csv").read_text().splitlines()[0]
    (paper.folder / "published.csv").write_text("\n".join([head, *lines]) + "\n")
    return paper


def test_a_table_of_classes_has_a_part_for_each_column_and_the_classes_across(tmp_path: Path) -> None:
    paper = class_paper(tmp_path)
    records = toy_records(paper, {"ce": (30.4, 30.6), "own": (20.0,)}) | toy_records(paper, {"ce": (30.0,)}, "quick")
    page = write_tables(Results(paper, records, "paper"), tmp_path / "tables")[0].read_text()
    assert page.index("**cifar10-lt-100**") < page.index("**cifar10-step-100**")
    rows = table_rows(page)
    assert rows[0] == ["method", "reading", "class-0", "class-9"]
    assert rows[2] == ["CE loss", "written", "70 → 69.50 ± 0.14 (2), -0.50, near", "79 → 69.50 ± 0.14 (2), -9.50, worse"]
    assert {len(row) for row in rows} == {4}
    assert "- CE loss: backbone inferred from Table 2" in page
    assert "Best test epoch" not in page  # nothing is recorded per class there
    quick = write_tables(Results(paper, records, "quick"), tmp_path / "tables")[0].read_text()
    assert "**quick: digits-lt-20 (in place of cifar10-lt-100)**" in quick
    assert ["CE loss", "written", "quick 70.00 (1)", "quick 70.00 (1)"] in table_rows(quick)
    for profile in ("paper", "quick"):
        shown = printed(paper, records, profile)
        assert max(map(len, shown.splitlines())) <= 100
        assert "class-9" in shown
    frame = pandas.read_csv(tmp_path / "tables" / "table-1.csv")
    assert {"class-0", "class-9"} == set(frame["group"])


def test_metrics_stand_side_by_side_and_a_printed_spread_is_shown(tmp_path: Path) -> None:
    paper = class_paper(tmp_path)
    page = write_tables(Results(paper, toy_records(paper, {"ce": (39.0,)}), "paper"), tmp_path / "tables")[2].read_text()
    rows = table_rows(page)
    assert rows[0][2:] == ["cifar10-lt-100, Top-1 accuracy", "cifar10-lt-100, Top-5 accuracy"]
    assert rows[2][2:] == ["61 ± 0.08 → 61.00 (1), +0.00, undecided",
                           "65 ± 0.08 → not decidable: no record holds top5_accuracy"]
    assert "61 ± 0.08 → 61.25 (1)" in page


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[3].glob("papers/*/published.csv")), ids=lambda p: p.parent.name)
def test_every_table_of_the_papers_here_can_be_written(tmp_path: Path, path: Path) -> None:
    """Every number has its place: as many cells in the pages as lines in published.csv, the table "text" included."""
    paper = toy_paper(tmp_path / "toy")
    (paper.folder / "published.csv").write_text(path.read_text())
    frame = published(paper)
    tables = tuple(Table(number, "caption") for number in dict.fromkeys(frame["table"]))
    paper = dataclasses.replace(paper, tables=tables, methods=lambda column, protocols: toy_methods(column, protocols)[:1])
    records = toy_records(paper, {"ce": (30.0,)}) | toy_records(paper, {"ce": (30.0,)}, "quick")
    files = write_tables(Results(paper, records, "paper"), tmp_path / "tables")
    for file in files:
        if file.suffix == ".md":
            page = file.read_text().split("## Best")[0]
            number = file.stem.removeprefix("table-")
            assert page.count(" → ") - page.count("published → ") == (frame["table"] == number).sum()
    assert max(map(len, printed(paper, records, "paper").splitlines())) <= 100
    assert max(map(len, printed(paper, records, "quick").splitlines())) <= 100
    assert "**Table" in results_block(Results(paper, records, "paper"))


def test_same_records_same_bytes(paper: Paper, tmp_path: Path) -> None:
    records = toy_records(paper, ERRORS) | toy_records(paper, ERRORS, "quick")
    first = [f.read_bytes() for f in write_tables(Results(paper, records, "quick"), tmp_path / "a")]
    second = [f.read_bytes() for f in write_tables(Results(paper, dict(reversed(records.items())), "quick"), tmp_path / "b")]
    assert first == second


def test_odd_names_and_fields_break_no_table(tmp_path: Path) -> None:
    evil = "x|y<script>alert(1)</script>"
    paper = toy_paper(tmp_path / "toy", BETTER, tuple(line.replace("row=ERM", f"row={evil}") for line in PUBLISHED))
    paper = dataclasses.replace(paper, tables=(Table("1", f"caption {evil}\n| a | b |"), Table("2", "Settings")))
    records = {key: seal({**r, "made": {**r["made"], "device": f"dev\nice | {evil} \x1b[31m", "precision": f"p{i % 2}|"}})
               for i, (key, r) in enumerate(toy_records(paper, ERRORS).items())}
    for file in write_tables(Results(paper, records, "paper"), tmp_path / "tables"):
        page = file.read_text()
        if file.suffix == ".md":
            assert "<script" not in page
            assert "\x1b" not in page
            for part in page.split("## "):
                assert len({len(row) for row in table_rows(part)}) <= 1
        elif file.suffix == ".csv":
            assert len(pandas.read_csv(file)) >= 2
        else:
            assert "\x1b" not in page
            assert r"x\textbar{}y\textless{}script\textgreater{}" in page or file.name != "table-1.tex"
    assert "x&#124;y&lt;script&gt;" in (tmp_path / "tables" / "table-1.md").read_text()
    assert "\x1b" not in printed(paper, records, "paper")
    assert "[bold]" in escape("[bold]")


def test_terminal_table_fits_100_characters(paper: Paper) -> None:
    records = toy_records(paper, ERRORS) | toy_records(paper, ERRORS, "quick")
    for profile in ("paper", "quick"):
        shown = printed(paper, records, profile)
        assert max(map(len, shown.splitlines())) <= 100
        assert "…" not in shown
        assert "own-beats-rival" in shown
    shown = printed(paper, records, "paper")
    assert re.search(r"ERM +29\.60 → 29\.90±0\.20 +36\.70 → 29\.90±0\.20", shown)
    assert re.search(r"@written +\+0\.30 reproduced \(3\) +-6\.80 better \(3\)", shown)
    quick = printed(paper, records, "quick")
    assert re.search(r"ERM +29\.60 → 29\.90±0\.20 +29\.90 ± 0\.20 \(3\)", quick)
    without = printed(paper, toy_records(paper, ERRORS, "quick"), "quick")
    assert re.search(r"ERM +29\.60 +29\.90 ± 0\.20 \(3\)", without)
    assert "reproduced" not in without


def test_a_number_that_is_not_comparable_has_its_difference_and_the_reason_in_every_form(paper: Paper, tmp_path: Path) -> None:
    apart = dataclasses.replace(paper, not_comparable={"cifar10-lt-100/ce": "another network"})
    records = toy_records(paper, ERRORS)
    files = {path.name: path.read_text() for path in write_tables(Results(apart, records, "paper"), tmp_path / "tables")}
    assert "29.60 → 29.90 ± 0.20 (3), +0.30, not comparable †" in files["table-1.md"]
    assert "† ERM (written), cifar10-lt-100: not comparable: another network" in files["table-1.md"]
    assert "not comparable" in files["table-1.tex"]
    assert pandas.read_csv(tmp_path / "tables" / "table-1.csv")["verdict"].tolist().count("not comparable") == 1
    assert "1 not comparable" in results_block(Results(apart, records, "paper"))
    shown = printed(apart, records, "paper")
    assert max(map(len, shown.splitlines())) <= 100
    assert re.search(r"\+0\.30 not comparable \(3\)†", shown)


def test_brackets_in_names_are_not_markup(paper: Paper) -> None:
    odd = dataclasses.replace(paper, tables=(Table("1", "Errors [red]of[/red] [/bold]"),))
    assert "[red]of[/red]" in printed(odd, toy_records(paper, ERRORS), "paper")


def test_numbers() -> None:
    assert (number(-0.001), signed(-0.001), signed(0.126), signed(-3)) == ("0.00", "+0.00", "+0.13", "-3.00")


def test_a_table_without_numbers_is_refused(paper: Paper, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no number of table 9"):
        write_tables(Results(dataclasses.replace(paper, tables=(Table("9", "none"),)), {}, "paper"), tmp_path)
