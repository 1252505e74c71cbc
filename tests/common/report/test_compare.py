"""The join with the published numbers: which runs stand beside them, and with which words."""

import dataclasses
from pathlib import Path

import pytest

from common.errors import UserError
from common.methods.method import Method, Start
from common.paper import Paper
from common.plan import plan
from common.report.compare import Cell, cells, minutes
from common.report.groups import majority
from common.report.published import columns_shown_for, published
from common.report.results import Results
from common.spec import Column
from common.store import check_record
from papers.catalog import PAPERS
from tests.records import PUBLISHED, make_record, toy_paper, toy_records

ROOT = Path(__file__).resolve().parents[3]
MORE = Column("cifar100", "lt", 100, "resnet32")


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


def test_published_keeps_the_printed_strings(paper: Paper) -> None:
    first = published(paper).iloc[0]
    assert (first["value"], first["number"], first["column"], first["row"]) == ("29.60", 29.6, "cifar10-lt-100", "ERM")
    assert set(published(paper)["variant"]) == {"", *(f"beta={b};delta=2.0" for b in ("1.0", "1.1", "1.2", "1.3"))}


def test_cell_joins_runs_of_the_same_column_method_and_variant(paper: Paper) -> None:
    records = toy_records(paper, {"ce": (30.0, 29.8, 30.2), "own[beta=1.1;delta=2.0]@written": (25.0,)})
    found = cells(Results(paper, records, "paper"))
    ce = find(found, "ce", "cifar10-lt-100")
    assert ce.values == pytest.approx((30.0, 29.8, 30.2))
    assert (ce.n, ce.state, ce.verdict, len(ce.keys)) == (3, "mean", "reproduced", 3)
    assert (ce.mean, ce.sd, ce.delta) == pytest.approx((30.0, 0.2, 0.4))
    assert ce.best == pytest.approx((29.75, 29.55, 29.95))
    setting = find(found, "own", "cifar10-lt-100", variant="beta=1.1;delta=2.0")
    assert (setting.n, setting.sd, setting.verdict) == (1, None, "undecided")
    assert (ce.bound, setting.bound) == (1.0, pytest.approx(0.075))  # table 2 prints 22.30 and 22.00
    assert find(found, "own", "cifar10-lt-100").state == "no run yet"


def test_every_printed_number_has_a_cell_and_a_state(paper: Paper) -> None:
    found = cells(Results(paper, {}, "paper"))
    assert len(found) == len(PUBLISHED) + sum(",own," in row for row in PUBLISHED)  # own has two readings
    assert find(found, "ce", "imagenet").state == "not run: needs imagenet"
    assert find(found, "ghost", "cifar10-lt-100").state == "not run: no such method here"
    assert {c.state for c in found if c.reading} == {"no run yet"}
    assert all(c.verdict is None and c.mean is None for c in found)


def test_diverged_runs_are_counted_and_not_averaged(paper: Paper) -> None:
    found = cells(Results(paper, toy_records(paper, {"ce": (30.0, None, 30.2), "rival": (None, None)}), "paper"))
    assert (find(found, "ce", "cifar10-lt-100").n, find(found, "ce", "cifar10-lt-100").diverged) == (2, 1)
    assert find(found, "ce", "cifar10-lt-100").mean == pytest.approx(30.1)
    rival = find(found, "rival", "cifar10-lt-100")
    assert (rival.state, rival.verdict, rival.diverged) == ("diverged", None, 2)


def test_more_seeds_than_planned_all_count(paper: Paper) -> None:
    found = cells(Results(paper, toy_records(paper, {"ce": (30.0,) * 5}), "paper"))
    assert find(found, "ce", "cifar10-lt-100").n == 5 > paper.seeds["paper"]


def test_quick_numbers_stand_beside_and_never_get_a_verdict(paper: Paper) -> None:
    found = cells(Results(paper, toy_records(paper, {"ce": (29.6, 29.6)}, "quick"), "quick"))
    assert columns_shown_for(paper, "quick") == {"cifar10-lt-100": paper.columns["quick"]}
    cell = find(found, "ce", "digits-lt-20")
    assert (cell.stands_for, cell.printed, cell.n, cell.quick) == ("cifar10-lt-100", "29.60", 2, True)
    assert {(c.delta, c.verdict) for c in found} == {(None, None)}
    assert {c.stands_for for c in found} == {"cifar10-lt-100"}


def test_records_of_unlike_machines_are_flagged(paper: Paper) -> None:
    records = toy_records(paper, {"ce": (30.0, 29.8)}, columns=("cifar10-lt-100",))
    planned = next(p for p in plan(paper, "paper") if p.spec.key in records and p.spec.seed == 1)
    records[planned.spec.key] = make_record(planned, 70.0, made={"precision": "bfloat16", "seconds": 90.0})
    assert find(cells(Results(paper, records, "paper")), "ce", "cifar10-lt-100").flags == ("mixed precision: bfloat16, float32",)
    assert minutes(records.values()) == 2.0


def test_runs_on_a_list_that_was_drawn_here_are_not_comparable(paper: Paper) -> None:
    records = toy_records(paper, {"ce": (30.0, 29.8)}, columns=("cifar10-lt-100",))
    planned = next(p for p in plan(paper, "paper") if p.spec.key in records and p.spec.seed == 1)
    records[planned.spec.key] = make_record(planned, 70.0, made={"official": False, "lists": "abc"})
    cell = find(cells(Results(paper, records, "paper")), "ce", "cifar10-lt-100")
    assert cell.flags == ("mixed lists: abc, not recorded", "not the official split: 1 of 2 runs")
    assert (cell.verdict, cell.delta) == ("not comparable", pytest.approx(0.4))


def test_a_setting_unlike_its_sources_has_a_difference_and_no_verdict(paper: Paper) -> None:
    reasons = {"cifar10-lt-100/own@written": "another network", "cifar10-lt-100/rival": "another batch",
               "cifar10-step-100": "another list"}
    errors = {"ce": (29.6, 29.8, 30.0), "own": (20.0, 20.1, 20.2), "rival": (22.0, 22.1, 22.2)}
    found = cells(Results(dataclasses.replace(paper, not_comparable=reasons), toy_records(paper, errors), "paper"))

    def words(method: str, column: str, reading: str = "written") -> tuple[str | None, tuple[str, ...]]:
        cell = find(found, method, column, reading)
        assert cell.delta == pytest.approx(cell.mean - cell.published)
        return cell.verdict, cell.flags

    assert words("own", "cifar10-lt-100") == ("not comparable", ("not comparable: another network",))
    assert words("own", "cifar10-lt-100", "released") == ("better", ())
    assert words("rival", "cifar10-lt-100") == ("not comparable", ("not comparable: another batch",))
    assert words("ce", "cifar10-lt-100") == ("reproduced", ())
    assert words("ce", "cifar10-step-100") == ("not comparable", ("not comparable: another list",))
    none = cells(Results(dataclasses.replace(paper, not_comparable=reasons), {}, "paper"))
    assert find(none, "ce", "cifar10-step-100").verdict is None


@pytest.mark.parametrize("real", PAPERS, ids=lambda paper: paper.name)
def test_what_a_paper_calls_not_comparable_is_there(real: Paper) -> None:
    known = {column.name: real.rows("paper", column) for column in real.columns["paper"]}
    names = {f"{name}/{word}" for name, rows in known.items() for row in rows for word in (row.name, row.label)}
    assert set(real.not_comparable) <= {*known, *names}


def test_first_stages_on_another_device_are_flagged(paper: Paper) -> None:
    def methods(column: Column, protocols: dict) -> tuple[Method, ...]:
        first = paper.methods(column, protocols)[0]
        head = dataclasses.replace(protocols["written"], trains="head", epochs=1, decay_epochs=())
        start = dataclasses.replace(first, protocol=protocols["written"])
        return first, dataclasses.replace(first, name="rival", start=Start(start), protocol=head)

    two = dataclasses.replace(paper, methods=methods)
    items = plan(two, "paper", columns=("cifar10-lt-100",), seeds=2)
    assert [item.method.name for item in items] == ["ce", "ce", "rival", "rival"]
    made = {"ce": {"device": "H200"}, "rival": {}}
    records = {item.spec.key: make_record(item, 70.0, made=made[item.method.name]) for item in items}
    found = cells(Results(two, records, "paper"))
    assert find(found, "rival", "cifar10-lt-100").flags == ("mixed devices: H200, test device",)
    assert find(found, "ce", "cifar10-lt-100").flags == ()


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


LINE = "toy,4,caption,cifar10,lt,100,resnet-32,{method},{ref},{metric},{unit},{value},{std},{group},{notes}"


def add_rows(paper: Paper, *rows: dict[str, str]) -> None:
    """More lines of published.csv, of table 4 and column cifar10-lt-100."""
    usual = {"method": "ce", "ref": "[4]", "metric": "top1_accuracy", "unit": "percent", "value": "70.0", "std": "", "group": "",
             "notes": ""}
    path = paper.folder / "published.csv"
    path.write_text(path.read_text() + "".join(LINE.format(**usual | row) + "\n" for row in rows))


@pytest.mark.parametrize(("row", "state"), [
    ({"metric": "top5_accuracy"}, "not decidable: no record holds top5_accuracy"),
    ({"metric": "top1_error_change_abs", "unit": "points", "group": "head1"}, "not decidable: a change, and what it is measured"),
    ({"group": "ghosts"}, "not decidable: no record knows the classes 'ghosts'"),
    ({"metric": "per_class_accuracy", "group": "class-19"}, "not decidable: no class-19 in cifar10-lt-100"),
    ({"group": "medium"}, "not decidable: no medium in cifar10-lt-100"),  # the record's group without a class
])
def test_what_no_record_can_answer_says_why(paper: Paper, row: dict, state: str) -> None:
    add_rows(paper, row)
    [cell] = [c for c in cells(Results(paper, toy_records(paper, {"ce": (30.0,)}), "paper")) if c.table == "4"]
    assert cell.state.startswith(state)
    assert (cell.n, cell.verdict, cell.mean) == (0, None, None)


def test_groups_of_classes_are_joined_with_their_numbers(paper: Paper) -> None:
    add_rows(paper, *({"group": group, "metric": metric} for group, metric in (
        ("class-3", "per_class_accuracy"), ("tail1", "top1_error"), ("tail", "top1_accuracy"), ("all", "top1_accuracy"))))
    records = toy_records(paper, {"ce": (30.0,)})
    for record in records.values():
        record["per_class_accuracy"] = [90.0, 80.0, 75.0, 71.0, 60.0, 50.0, 45.0, 41.0, 30.0, 20.0]
        record["groups"] = {"many": 80.0, "medium": None, "few": 33.0}
    found = [c for c in cells(Results(paper, records, "paper")) if c.table == "4"]
    assert [(c.group, c.mean) for c in found] == [("class-3", 71.0), ("tail1", 59.0), ("tail", 33.0), ("all", 70.0)]
    assert [len(c.best) for c in found] == [0, 0, 0, 1]  # the best epoch is recorded for the whole test set only
    assert found[0].delta == pytest.approx(1.0)


def test_a_note_is_a_variant_only_where_it_tells_rows_apart(paper: Paper) -> None:
    add_rows(paper, {"notes": "row=CE;backbone inferred from Table 1", "value": "1.0"},
             {"method": "own", "notes": "sampler=x;retrain=cRT", "value": "2.0"},
             {"method": "rival", "notes": "beta=1.0;delta=2.0;copied from [7]", "value": "3.0"},
             {"method": "rival", "notes": "row=R;beta=1.5;delta=2.0", "value": "4.0"},
             {"method": "rival", "notes": "beta=1.5;delta=2.0", "value": "5.0", "group": "head"})
    frame = published(paper).tail(5)
    assert list(frame["variant"]) == ["", "", "beta=1.0;delta=2.0", "beta=1.5;delta=2.0", ""]
    assert list(frame["remark"]) == ["backbone inferred from Table 1", "sampler=x; retrain=cRT", "copied from [7]", "",
                                     "beta=1.5; delta=2.0"]
    assert list(frame["row"]) == ["CE", "OWN", "Rival", "R", "Rival"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("papers/*/published.csv")), ids=lambda path: path.parent.name)
def test_every_paper_here_is_read_without_a_doubtful_variant(paper: Paper, path: Path) -> None:
    """All their tables, "text" too; two numbers of one place are told apart by their variant."""
    (paper.folder / "published.csv").write_text(path.read_text())
    frame = published(paper)
    place = ["table", "column", "method", "metric", "group", "variant"]
    assert not frame.duplicated(place).any()
    grids = frame.duplicated(place[:-1], keep=False)
    assert set(frame[~grids]["variant"]) <= {""}
    assert all("=" in item for text in frame[grids]["variant"] for item in text.split(";"))
    everything = dataclasses.replace(paper, columns={**paper.columns, "paper": paper.columns["paper"] + (MORE,)})
    for records in ({}, toy_records(everything, {"ce": (30.0,), "own": (20.0,)})):
        found = cells(Results(everything, records, "paper"))
        assert len(found) >= len(frame)
        assert all(c.n or c.state.startswith(("not run", "not decidable", "no run yet", "diverged")) for c in found)


def test_columns_of_listed_counts_stand_for_no_other(paper: Paper) -> None:
    toy = Column("cifar10", "counts", 1, "resnet32", counts=(50, 20))
    other = dataclasses.replace(paper, columns={**paper.columns, "paper": (toy,)})
    assert columns_shown_for(other, "paper") == {"cifar10-50-20": (toy,)}


@pytest.mark.parametrize("subset", ["hash", "seed-666"])
def test_a_column_of_other_images_stands_for_the_number_only_where_the_authors_do_not(paper: Paper, subset: str) -> None:
    authors, _ = paper.columns["paper"]
    other = dataclasses.replace(authors, subset=subset)
    for columns, stands in (((other, authors), authors), ((authors, other), authors), ((other,), other)):
        changed = dataclasses.replace(paper, columns={**paper.columns, "paper": columns})
        assert columns_shown_for(changed, "paper") == {"cifar10-lt-100": (stands,)}
