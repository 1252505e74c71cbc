"""Cells that several papers print: the counts over the six papers against a literal transcription, and ours beside them."""

from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest

from common.data.sets import SETS
from common.methods.method import Method
from common.paper import Paper
from common.report.intervals import prediction_interval
from common.report.protocols import protocol_words
from common.report.results import results_of
from common.report.same_cell import SameCell, agree, same_cells
from common.spec import Column, Protocol
from papers.catalog import PAPERS
from tests.records import HEADER, some_loss, toy_paper, toy_records

SPREADS = """
cifar10-lt-10 cb-focal 0.39      cifar10-lt-10 ldam 0.42           cifar10-lt-100 ce 0.71           cifar10-lt-100 mislas 0.04
cifar10-lt-100 mixup 0.14        cifar10-lt-50 bbn 1.00            cifar10-lt-50 ce 0.50            cifar10-lt-50 focal 1.47
cifar10-lt-50 mislas 0.54        cifar10-lt-50 mixup 1.68          cifar100-lt-10 ce 0.10           cifar100-lt-10 ldam 0.64
cifar100-lt-100 cb-focal 3.58    cifar100-lt-100 ce 2.75           cifar100-lt-100 focal 1.16       cifar100-lt-100 ldam 0.18
cifar100-lt-100 mislas 0.50      cifar100-lt-100 mixup 0.51        cifar100-lt-50 cb-focal 0.89     cifar100-lt-50 ce 0.35
cifar100-lt-50 ldam-drw 1.03     cifar100-lt-50 mislas 0.90        cifar100-lt-50 mixup 0.17        imagenet-lt-50 cosface 0.01
imagenet-lt-50 la 2.22           imagenet-lt-50 ldam-drw 1.16      imagenet-lt-next ce 2.25         inaturalist2018-50 ce 3.69
inaturalist2018-50 decoupling 0.19    inaturalist2018-50 la 2.08   inaturalist2018-50 mislas 1.00
"""  # in points, as collected when the tables were transcribed; -50 and -next: the backbone


def place(cell: SameCell) -> str:
    if cell.dataset.startswith("cifar"):
        return f"{cell.dataset}-{cell.imbalance}-{cell.ratio}"
    return f"{cell.dataset}-{'next' if 'resnext' in cell.backbone else cell.backbone.removeprefix('resnet-')}"


def test_the_six_papers_share_70_cells_of_which_31_differ() -> None:
    cells = same_cells(results_of(PAPERS, {}, "paper"))
    differ = [cell for cell in cells if cell.differ]
    assert (len(cells), len(differ)) == (70, 31)
    words = SPREADS.split()
    expected = {(words[i], words[i + 1]): float(words[i + 2]) for i in range(0, len(words), 3)}
    assert {(place(c), c.method): round(c.spread, 2) for c in differ} == expected
    assert list(cells[:31]) == differ
    assert [c.spread for c in differ] == sorted((c.spread for c in differ), reverse=True)


def test_a_cell_of_the_papers_as_printed() -> None:
    [cell] = [c for c in same_cells(results_of(PAPERS, {}, "paper")) if (c.column, c.method) == ("cifar100-lt-100", "focal")]
    assert [(p.paper, p.table, p.printed, p.accuracy, p.is_error) for p in cell.prints] == [
        ("icu", "2", "38.4", 38.4, False), ("mm", "1", "61.59", 38.41, True), ("two_head", "1", "38.41", 38.41, False),
        ("kps", "3.2", "62.75", 37.25, True)]


def test_every_shared_cell_has_runs_planned_or_says_why() -> None:
    for cell in same_cells(results_of(PAPERS, {}, "paper")):
        assert bool(cell.ours) != bool(cell.why), cell
        waiting = "no run yet" if cell.dataset in SETS else f"not run: needs {cell.dataset}; about "
        assert all(ours.state.startswith(waiting) for ours in cell.ours), cell


@pytest.mark.parametrize(("one", "other", "same"), [
    ("73.1", "73.06", True), ("73.1", "73.04", False), ("55.8", "55.70", False), ("76.7", "76.72", True), ("82.1", "82.06", True),
    ("82.10", "82.06", False), ("44", "43.5", True), ("44", "43.49", False), ("38.4", "38.45", False)])
def test_agreement_is_to_the_printed_precision(one: str, other: str, same: bool) -> None:
    assert agree(Decimal(one), Decimal(other)) == agree(Decimal(other), Decimal(one)) == same


LT = "cifar10,lt,100,resnet-32"
A = (f"1,{LT},ce,[4],top1_error,29.60,", f"1,{LT},own,ours,top1_error,20.00,", f"2,{LT},ce,,top1_accuracy,30.0,tail",
     "1,imagenet,none,,resnet-50,ce,,top5_accuracy,90.0,", "1,imagenet,none,,resnet-50,ce,,top1_accuracy,70.0,")
B = (f"7,{LT},ce,,top1_accuracy,70.4,all", f"7,{LT},ce,,top1_accuracy,31.0,tail", f"8,{LT},ce,,top1_accuracy,71.40,",
     "7,imagenet,none,,resnet-50,ce,,top5_accuracy,91.0,", "7,imagenet,none,,resnet-50,ce,,top1_accuracy,70.0,")


def two_papers(folder: Path) -> tuple[Paper, Paper]:
    """They train ce under two protocols; the second knows it in two readings, of which one is the first's run."""
    def write(paper: Paper, lines: tuple[str, ...]) -> Paper:
        rows = []
        for line in lines:
            table, dataset, kind, ratio, backbone, method, ref, metric, value, group = line.split(",")
            rows.append(f"{paper.name},{table},caption,{dataset},{kind},{ratio},{backbone},{method},{ref},{metric},percent,"
                        f"{value},,{group},")
        (paper.folder / "published.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        return paper

    def methods(column: Column, protocols: dict[str, Protocol]) -> tuple[Method, ...]:
        return tuple(Method("ce", reading, partial(some_loss, kind="ce written ")) for reading in ("written", "released"))

    first, second = (replace(toy_paper(folder / name), name=name) for name in ("first", "second"))
    protocol = first.protocols["paper"]["written"]
    settings = {"written": protocol, "released": replace(protocol, batch_size=64)}
    second = replace(second, methods=methods, protocols={"paper": settings, "quick": settings})
    return write(first, A), write(second, B)


def test_ours_stands_beside_under_each_protocol(tmp_path: Path) -> None:
    first, second = two_papers(tmp_path)
    records = toy_records(first, {"ce": (29.0, 30.0, 31.0)})
    cells = {(c.column, c.group): c for c in same_cells(results_of([first, second], records, "paper"))}
    assert set(cells) == {("cifar10-lt-100", ""), ("cifar10-lt-100", "tail"), ("imagenet-resnet50", "")}
    whole = cells["cifar10-lt-100", ""]
    assert [(p.paper, p.table, p.row, p.accuracy) for p in whole.prints] == [
        ("first", "1", "CE", 70.4), ("second", "7", "CE", 70.4), ("second", "8", "CE", 71.4)]
    assert (whole.spread, whole.differ, whole.why) == (pytest.approx(1.0), True, "")
    shared, other = whole.ours
    assert shared.sources == (("first", "ce@written"), ("second", "ce@written"))
    assert (shared.mean, shared.sd, shared.n, shared.state) == (70.0, 1.0, 3, "mean")
    assert shared.interval == prediction_interval((71.0, 70.0, 69.0))
    assert (other.setting, other.state, other.mean) == (protocol_words(second.protocols["paper"]["released"]), "no run yet", None)
    tail = cells["cifar10-lt-100", "tail"]
    assert ([p.accuracy for p in tail.prints], tail.spread, tail.ours[0].mean) == ([30.0, 31.0], 1.0, 70.0)
    lone = cells["imagenet-resnet50", ""]
    assert (lone.differ, lone.ours, lone.why) == (False, (), "not run: needs imagenet")


def test_what_our_runs_cannot_say(tmp_path: Path) -> None:
    first, second = two_papers(tmp_path)
    records = toy_records(first, {"ce": (29.0, 30.0)})
    for record in records.values():
        record["groups"] = {"many": 70.0, "medium": None, "few": None}
    tail = next(c for c in same_cells(results_of([first, second], records, "paper")) if c.group == "tail")
    assert (tail.ours[0].state, tail.ours[0].n, tail.ours[0].mean) == ("no tail classes", 0, None)
    lost = toy_records(first, {"ce": (None, None)})
    assert same_cells(results_of([first, second], lost, "paper"))[0].ours[0].state == "diverged"
    without = [replace(p, methods=lambda column, known: ()) for p in (first, second)]
    [none] = {c.why for c in same_cells(results_of(without, {}, "paper")) if c.dataset == "cifar10"}
    assert none == "not run: no such method here"
