"""Leaderboards: who stands in which, and every number of a row by hand."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata, t

from common.methods.method import Method, Start
from common.paper import Paper
from common.plan import plan
from common.report.boards import Board, LeaderboardRow, boards, main_rows, ranks_of
from common.report.paired import paired_test
from common.report.protocols import protocol_words
from common.report.results import Results, results_of
from common.spec import Column, LargeProtocol, Protocol
from tests.records import made_hits, make_record, some_loss, toy_paper, toy_records

PROTOCOL = Protocol(4, 32, 0.1, 0.9, 0.0002, 1, (2, 3), 0.1, False)
HEAD = replace(PROTOCOL, epochs=2, decay_epochs=(), trains="head")
ONE = Column("cifar10", "lt", 100, "resnet32")


def loss(kind: str) -> partial:
    return partial(some_loss, kind=kind)


def paper_of(folder: Path, rows: tuple[Method, ...], name: str = "toy", own: tuple[str, ...] = ()) -> Paper:
    """A paper that trains these rows on one column, and prints the plain ones in its Table 1."""
    settings = {"written": PROTOCOL, "released": PROTOCOL}
    printed = dict.fromkeys(row.name for row in rows if not row.variant)
    base = toy_paper(folder / name, published=tuple(f"1,cifar10,lt,100,{one},[4],20.00," for one in printed))
    return replace(base, name=name, columns={"paper": (ONE,), "quick": ()}, methods=lambda column, known: rows, own=own,
                   protocols={"paper": settings, "quick": settings})


def records_of(paper: Paper, accuracies: dict[str, tuple], **changes) -> dict:
    """Records of the planned runs and of those that they start from, by label and seed."""
    found = {}
    for item in plan(paper, "paper", seeds=max(map(len, accuracies.values()))):
        for one in (item, item.start):
            values = accuracies.get(one.method.label, ()) if one else ()
            if one and one.spec.seed < len(values):
                record = make_record(one, values[one.spec.seed], **changes)
                found[record["key"]] = record
    return found


def row(board: Board, label: str) -> LeaderboardRow:
    [found] = [row for row in board.rows if row.label == label]
    return found


def test_a_row_by_hand(tmp_path: Path) -> None:
    a, b = Method("a", "written", loss("a")), Method("b", "written", loss("b"))
    paper = paper_of(tmp_path, (a, b), own=("a",))
    records = records_of(paper, {"a@written": (70.0, 71.0, 72.0), "b@written": (60.0,)})
    for seconds, record in zip((10.0, 20.0, 60.0), records.values(), strict=False):
        record["made"] = {**record["made"], "seconds": seconds}
        record["groups"] = {"many": seconds, "medium": None, "few": 2 * seconds}
        record["calibration"] = {"ece": seconds / 10, "bins": []}
    [board] = boards(results_of([paper], records, "paper"))
    first = board.rows[0]
    assert (first.label, first.own, first.state, first.n, first.diverged) == ("a@written", ("toy",), "mean", 3, 0)
    assert (first.mean, first.sd, first.best) == (71.0, 1.0, 71.25)
    half = t.ppf(0.975, 2) / 3**0.5
    assert first.interval == pytest.approx((71 - half, 71 + half))
    assert (first.many, first.medium, first.few, first.ece, first.seconds) == (30.0, None, 60.0, 3.0, 30.0)
    assert first.devices == "test device"
    assert first.keys == tuple(paper.spec("paper", ONE, a, seed).key for seed in range(3))
    assert (first.rank, first.ranks) == (1, (1, 1))
    second = board.rows[1]
    assert (second.rank, second.ranks, second.interval, second.sd) == (2, None, None, None)


def test_one_protocol_a_board_and_one_column(tmp_path: Path) -> None:
    """Three papers: the same protocol under two names, another protocol, another column."""
    rows = tuple(Method(name, "written", loss(name)) for name in "ab")
    other = replace(PROTOCOL, batch_size=64)
    first = paper_of(tmp_path, rows)
    second = paper_of(tmp_path, (Method("c", "released", loss("c")), Method("d", "written", loss("d"), protocol=other),
                                 Method("e", "written", loss("e"), protocol=other)), "second")
    third = replace(first, name="third", columns={"paper": (replace(ONE, ratio=10),), "quick": ()})
    found = boards(results_of([first, second, third], {}, "paper"))
    labels = [(b.column.name, b.protocol.batch_size, [r.label for r in b.rows]) for b in found]
    assert labels == [("cifar10-lt-100", 32, ["a@written", "b@written", "c@released"]),
                      ("cifar10-lt-100", 64, ["d@written", "e@written"]), ("cifar10-lt-10", 32, ["a@written", "b@written"])]
    assert boards(results_of([paper_of(tmp_path, rows[:1])], {}, "paper")) == ()  # nobody to compare with
    assert boards(results_of([first], {}, "quick")) == ()


def test_a_run_of_several_papers_is_one_row(tmp_path: Path) -> None:
    """The grid of the first holds the plain row of the second, under another name and reading."""
    first = paper_of(tmp_path, (Method("a", "written", loss("a"), variant="x=1"), Method("b", "written", loss("b"))))
    second = paper_of(tmp_path, (Method("z", "released", loss("a")),), "second", own=("z",))
    records = records_of(first, {"a[x=1]@written": (70.0, 71.0), "b@written": (60.0, 61.0)})
    [board] = boards(results_of([first, second], records, "paper"))
    assert [(r.label, r.variant, r.rank, r.n) for r in board.rows] == [("z@released", "", 1, 2), ("b@written", "", 2, 2)]
    assert board.rows[0].sources == (("toy", "a[x=1]@written"), ("second", "z@released"))
    assert board.rows[0].own == ("second",)


def test_ranked_are_own_methods_and_rows_of_main_tables(tmp_path: Path) -> None:
    """d is the best of all and stands in Table 2 only, as does a, which the paper calls its own; c is printed nowhere."""
    rows = tuple(Method(name, "written", loss(name)) for name in "abcd")
    lines = "2,cifar10,lt,100,a,ours,20.00,", "1,cifar10,lt,100,b,[4],20.00,", "2,cifar10,lt,100,d,[4],20.00,"
    paper = replace(paper_of(tmp_path, rows, own=("a",)), main=("1",))
    toy_paper(paper.folder, published=lines)
    values = {"a@written": (70.0, 71.0), "b@written": (75.0, 76.0), "c@written": (80.0, 81.0), "d@written": (90.0, 91.0)}
    records = records_of(paper, values)

    def ranks(*papers: Paper) -> list[tuple[str, bool, int | None]]:
        return [(r.name, r.is_main, r.rank) for r in boards(results_of(papers, records, "paper"))[0].rows]

    assert ranks(paper) == [("b", True, 1), ("a", True, 2), ("d", False, None), ("c", False, None)]
    # another column's main table does not count, and where no main table prints the column, every table does
    assert main_rows(Results(replace(paper, main=("9",)), {}, "paper")) == {("cifar10-lt-100", name) for name in "abd"}
    # a second paper's main table prints c; both train it alike, so it is ranked
    second = replace(paper_of(tmp_path, rows[2:3], "second"), main=("1",))
    assert ranks(paper, second) == ranks(second, paper) == [("c", True, 1), ("b", True, 2), ("a", True, 3), ("d", False, None)]


def test_a_large_column_says_what_a_run_needs() -> None:
    from papers.catalog import PAPERS

    waiting = {row.state.partition(";")[0] for board in boards(results_of(PAPERS, {}, "paper")) for row in board.rows
               if board.column.dataset == "imagenet-lt"}
    assert waiting == {"not run: needs imagenet-lt"}
    assert {row.state for board in boards(results_of(PAPERS, {}, "paper")) for row in board.rows
            if board.column.dataset == "cifar10"} == {"no run yet"}


def test_two_stages_stand_under_the_stage_that_trains_everything(tmp_path: Path) -> None:
    """A decoupled or only tested head belongs to the first stage, a rotation pretext to the second, and is no row itself."""
    base = Method("base", "written", loss("base"))
    split = Method("split", "written", loss("split"), start=Start(replace(base, protocol=PROTOCOL)), protocol=HEAD)
    tested = replace(split, name="tested", loss=loss("tested"), protocol=PROTOCOL.only_tested())
    pretext = Method("turn", "written", loss("turn"), task="rotation", protocol=replace(PROTOCOL, epochs=9))
    turned = Method("turned", "written", loss("turned"), start=Start(pretext), protocol=PROTOCOL)
    paper = paper_of(tmp_path, (base, split, tested, turned, replace(pretext, name="self", protocol=None)))
    [board] = boards(results_of([paper], {}, "paper"))
    assert board.protocol == PROTOCOL
    assert [r.label for r in board.rows] == ["base@written", "split@written", "tested@written", "turned@written"]


def test_cost_counts_the_stages_before(tmp_path: Path) -> None:
    base = Method("base", "written", loss("base"))
    split = Method("split", "written", loss("split"), start=Start(replace(base, protocol=PROTOCOL)), protocol=HEAD)
    paper = paper_of(tmp_path, (base, split))
    records = records_of(paper, {"base@written": (70.0, 71.0), "split@written": (75.0, 76.0)}, made={"seconds": 30.0})
    assert row(boards(results_of([paper], records, "paper"))[0], "split@written").seconds == 60.0
    del records[paper.spec("paper", ONE, base, 1).key]
    [board] = boards(results_of([paper], records, "paper"))
    assert row(board, "split@written").seconds is None
    assert (row(board, "base@written").seconds, row(board, "base@written").n) == (30.0, 1)


def test_nothing_is_left_out_without_a_word(tmp_path: Path) -> None:
    names = ("done", "lost", "none", "some")
    rows = (*(Method(name, "written", loss(name)) for name in names), Method("done", "written", loss("v"), variant="x=1"))
    paper = paper_of(tmp_path, rows)
    records = records_of(paper, {"done@written": (70.0, 71.0), "lost@written": (None, None), "some@written": (75.0, None),
                                 "done[x=1]@written": (90.0, 90.5)})
    [board] = boards(results_of([paper], records, "paper"))
    assert [(r.label, r.state, r.n, r.diverged, r.rank) for r in board.rows] == [
        ("some@written", "mean", 1, 1, 1), ("done@written", "mean", 2, 0, 2), ("done[x=1]@written", "mean", 2, 0, None),
        ("lost@written", "diverged", 0, 2, None), ("none@written", "no run yet", 0, 0, None)]


def test_ranks_and_their_intervals(tmp_path: Path) -> None:
    """Two methods that cannot be told apart share ranks 1 and 2; the third is always last."""
    paper = paper_of(tmp_path, tuple(Method(name, "written", loss(name)) for name in "abc"))
    values = {"a@written": (70.0, 72.0, 71.0), "b@written": (70.1, 72.1, 71.0), "c@written": (60.0, 60.5, 61.0)}
    [board] = boards(results_of([paper], records_of(paper, values), "paper"))
    assert [(r.label, r.rank, r.ranks) for r in board.rows] == [
        ("b@written", 1, (1, 2)), ("a@written", 2, (1, 2)), ("c@written", 3, (3, 3))]
    assert boards(results_of([paper], records_of(paper, values), "paper")) == (board,)
    equal = {"a@written": (70.0, 70.0), "b@written": (70.0, 70.0), "c@written": (60.0, 60.5)}
    assert [r.rank for r in boards(results_of([paper], records_of(paper, equal), "paper"))[0].rows] == [1, 1, 3]


def test_ranked_rows_are_compared_with_the_first_on_the_same_images(tmp_path: Path) -> None:
    """b is planted two points behind a, c as good as a; d has no rank and e no predictions."""
    rows = (*(Method(name, "written", loss(name)) for name in "abce"), Method("a", "written", loss("d"), variant="x=1"))
    paper = paper_of(tmp_path, rows)
    values = {"a@written": (72.0, 72.4, 72.2, 72.1), "b@written": (70.0, 70.4, 70.2), "c@written": (72.0, 72.3, 72.1),
              "a[x=1]@written": (71.0, 71.0, 71.0), "e@written": (60.0, 60.0, 60.1)}
    records = records_of(paper, values)
    hits = {key: found for key, found in made_hits(records, images=5000).items() if " e@" not in records[key]["label"]}
    [board] = boards(results_of([paper], records, "paper", hits))
    assert [r.label for r in board.rows] == ["a@written", "c@written", "b@written", "e@written", "a[x=1]@written"]
    first, c, b, e, variant = board.rows
    assert first.behind is e.behind is variant.behind is None
    right = {r.label: np.stack([hits[key].right for key in r.keys[:3]]) for r in (first, b, c)}
    expected = {name: paired_test(right[name], right["a@written"]) for name in ("b@written", "c@written")}
    assert (b.behind.test, c.behind.test) == (expected["b@written"], expected["c@written"])
    assert b.behind.test.difference == pytest.approx(-2.0, abs=0.03)
    assert b.behind.test.wins - b.behind.test.losses == round(-0.02 * 15000)
    assert b.behind.p == pytest.approx(2 * b.behind.test.p_either)  # Holm over two
    assert b.behind.p < 0.001 < 0.2 < c.behind.p
    assert [replace(r, behind=None) for r in board.rows] == list(boards(results_of([paper], records, "paper"))[0].rows)


def test_an_interval_of_a_mean_ends_at_100(tmp_path: Path) -> None:
    paper = paper_of(tmp_path, (Method("a", "written", loss("a")), Method("b", "written", loss("b"))))
    found = boards(results_of([paper], records_of(paper, {"a@written": (99.0, 100.0)}), "paper"))[0].rows[0].interval
    assert (found.low, found.high) == (pytest.approx(99.5 - t.ppf(0.975, 1) * 0.5), 100.0)


def test_ranks_are_those_of_scipy() -> None:
    means = np.random.default_rng(0).integers(0, 6, size=(50, 7)).astype(float)
    assert np.array_equal(ranks_of(means), rankdata(-means, method="min", axis=1))


def test_flags_say_that_machines_differ(tmp_path: Path) -> None:
    paper = paper_of(tmp_path, (Method("a", "written", loss("a")), Method("b", "written", loss("b"))))
    records = records_of(paper, {"a@written": (70.0,)}) | records_of(paper, {"b@written": (70.0,)}, made={"device": "H200"})
    assert boards(results_of([paper], records, "paper"))[0].flags == ("mixed devices: H200, test device",)


def test_protocol_words_tell_every_setting_apart() -> None:
    base = Protocol(200, 128, 0.1, 0.9, 0.0002, 5, (160, 180), 0.01, False)
    assert protocol_words(base) == ("200 epochs, batch 128, sgd 0.1, momentum 0.9, weight decay 0.0002, 5 warm-up epochs, "
                                    "× 0.01 at 160, 180")
    assert "1 warm-up epoch, " in protocol_words(replace(base, warmup_epochs=1))
    changes = {"epochs": 250, "batch_size": 64, "rate": 0.05, "momentum": 0.8, "weight_decay": 0.0005, "warmup_epochs": 0,
               "decay_epochs": (120, 160), "decay_factor": 0.1, "drop_last": True, "schedule": "cosine", "trains": "head",
               "moving_statistics": True, "optimiser": "nesterov", "warmup_start": 1 / 3}
    assert set(changes) == set(vars(base))
    assert "5 warm-up epochs from 0.333 of it, " in protocol_words(replace(base, warmup_start=1 / 3))
    words = [protocol_words(base), protocol_words(replace(base, decay_epochs=()))]
    words += [protocol_words(replace(base, **{name: value, **({"decay_epochs": ()} if name == "schedule" else {})}))
              for name, value in changes.items()]
    large = LargeProtocol(**vars(base))
    more = {"trains": "last", "batch_norm": "synchronised", "pretrained": True, "crop": "resize-crop", "jitter": 0.4}
    assert set(vars(large)) == set(vars(base)) | set(more)
    words += [protocol_words(replace(large, **{name: value})) for name, value in more.items()]
    assert len(set(words)) == len(words)
    assert words[-5:] == [words[0] + f", {text}" for text in ("last block and head only", "batch norm synchronised", "pretrained",
                                                              "crop resize-crop", "jitter 0.4")]


def test_the_toy_paper_has_a_board_a_column(tmp_path: Path) -> None:
    paper = toy_paper(tmp_path / "toy")
    found = boards(results_of([paper], toy_records(paper, {"own": (20.0, 20.1, 20.2), "rival": (22.0, 22.1, 22.2)}), "paper"))
    assert [(b.column.name, [r.label for r in b.rows if r.rank]) for b in found] == [
        (name, ["own@written", "own@released", "rival@written"]) for name in ("cifar10-lt-100", "cifar10-step-100")]
