"""Clean tests on made records: what was planted is found, and nothing else."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import kendalltau

from common.data.near_duplicates import kept_images, real_labels
from common.data.second_tests import SecondTests, has_partner
from common.methods.method import Method
from common.paper import Paper
from common.plan import plan
from common.predictions import Answers, Predictions
from common.report.boards import boards
from common.report.clean import (
    DRAWS,
    CleanBoard,
    Second,
    clean_boards,
    counts_of,
    drawn_images,
    drops_of,
    vote_cross_entropy,
    vote_share,
)
from common.report.order import tau_b
from common.report.page.clean import clean_view
from common.report.page.page import build_page
from common.report.paired import Hits
from common.report.results import results_of
from common.spec import Column
from tests.common.report.test_page import read
from tests.records import class_counts, make_record, some_loss, toy_paper

LT = Column("cifar10", "lt", 100, "resnet32")
LABELS = real_labels("cifar10", "test")
IMAGES = len(LABELS)
NAMES = ("ce", "rival", "own", "ghost")


@pytest.fixture
def paper(tmp_path) -> Paper:
    """Four methods on one column, all ranked."""
    def methods(column, protocols):
        return tuple(Method(name, "written", partial(some_loss, kind=name)) for name in NAMES)

    made = toy_paper(tmp_path / "papers" / "toy")
    return replace(made, methods=methods, own=NAMES, columns={"paper": (LT,), "quick": ()})


@pytest.fixture
def tests() -> SecondTests:
    """400 test images with a near-duplicate in training, half of which the subset keeps; people agree on all but 1,000 images."""
    kept = kept_images(LT)
    generator = np.random.default_rng(0)
    head = np.flatnonzero(LABELS < 4)
    test = generator.choice(head, 400, replace=False)
    train = np.concatenate([generator.choice(np.flatnonzero(kept), 200), generator.choice(np.flatnonzero(~kept), 200)])
    votes = np.zeros((IMAGES, 10), int)
    votes[np.arange(IMAGES), LABELS] = 50
    unclear = generator.choice(IMAGES, 1000, replace=False)
    votes[unclear, LABELS[unclear]], votes[unclear, (LABELS[unclear] + 1) % 10] = 30, 20
    return SecondTests(np.stack([test, train, np.ones(400, int)], 1), None, votes)


def right_answers(tests: SecondTests, seeds: int = 2) -> dict[str, np.ndarray]:
    """own leads rival by 60 images, all of which the subset's duplicates give it; rival leads ce by 300 clean images."""
    duplicate = np.flatnonzero(has_partner(tests, kept_images(LT), IMAGES))
    clean = np.setdiff1d(np.arange(IMAGES), tests.duplicates[:, 0])
    order = np.random.default_rng(1).permutation(clean)
    found = {}
    for name, many, of_duplicates in (("own", 7000, 160), ("rival", 7040, 60), ("ce", 6740, 60), ("ghost", 6000, 60)):
        right = np.zeros(IMAGES, bool)
        right[order[:many]] = True
        right[duplicate[:of_duplicates]] = True
        found[name] = right
    return found


def answers_of(right: np.ndarray, confidence: int = 200) -> Predictions:
    last = np.where(right, LABELS, (LABELS + 1) % 10).astype(np.uint8)
    return Predictions(LABELS, Answers(last, last, np.full(IMAGES, confidence, np.uint8)))


def made(paper: Paper, right: Mapping[str, np.ndarray], seeds: int = 2) -> tuple[dict, dict, dict]:
    """Records, hits and predictions of all methods."""
    records, hits, predictions = {}, {}, {}
    for item in plan(paper, "paper", seeds=seeds):
        mine = right[item.method.name]
        record = make_record(item, round(100 * float(mine.mean()), 4), counts=class_counts(item, 5000))
        records[record["key"]], hits[record["key"]] = record, Hits(LABELS, mine)
        predictions[record["key"]] = answers_of(mine)
    return records, hits, predictions


def found(paper: Paper, tests: SecondTests, right: Mapping[str, np.ndarray], further: dict | None = None) -> CleanBoard:
    records, hits, predictions = made(paper, right)
    second = Second({"cifar10": tests, "cifar100": SecondTests()}, lambda record: predictions[record["key"]], further or {})
    [board] = clean_boards(boards(results_of([paper], records, "paper")), records, hits, second)
    return board


def test_a_lead_that_duplicates_give_is_found_and_no_other(paper: Paper, tests: SecondTests):
    board = found(paper, tests, right_answers(tests))
    assert board.methods == ("own@written", "rival@written", "ce@written", "ghost@written")
    by_name = {result.name: result for result in board.results}
    assert list(by_name) == ["without near-duplicates in the subset", "without near-duplicates in the full set", "clear images",
                             "votes", "cross-entropy"]
    for name in list(by_name)[:2]:
        result = by_name[name]
        assert [(lead.ahead, lead.behind) for lead in result.gone] == [("own@written", "rival@written")]
        [lead] = result.gone
        assert lead.usual == pytest.approx(0.6)
        assert lead.is_shown
        assert lead.clean == pytest.approx(100 * (7000 - 7040) / result.images)
        assert result.tau == pytest.approx(4 / 6)
        assert result.interval.low <= result.tau <= result.interval.high
        assert result.scores[0] == pytest.approx(100 * 7000 / result.images)
    assert [by_name[name].images for name in list(by_name)[:2]] == [9800, 9600]
    for name in ("clear images", "votes", "cross-entropy"):
        assert by_name[name].gone == ()
        assert by_name[name].tau == 1.0
    assert by_name["clear images"].images == 9000
    assert [one.gone for one in counts_of([board])] == [1, 1, 0, 0, 0]
    assert all(one.shown == 3 for one in counts_of([board]))


def test_where_duplicates_favour_no_method_no_lead_is_gone(paper: Paper, tests: SecondTests):
    right = right_answers(tests)
    for name in NAMES:
        right[name][tests.duplicates[:, 0]] = False
    board = found(paper, tests, right)
    assert not any(result.gone for result in board.results)
    assert board.methods[0] == "rival@written"
    assert all(result.tau == 1.0 and result.interval.low > 0.9 for result in board.results)


def test_duplicates_of_the_head_classes_flatter_the_many_shot_accuracy(paper: Paper, tests: SecondTests):
    """Every method has its duplicates right and half of the rest wrong: they are in the first four classes alone."""
    right = np.random.default_rng(2).random(IMAGES) < 0.5
    right[has_partner(tests, kept_images(LT), IMAGES)] = True
    board = found(paper, tests, dict.fromkeys(NAMES, right))
    many, medium = board.drops
    assert (many.group, medium.group) == ("many", "medium")
    expected = 100 * np.mean([200 / 4000 * 0.5] * 4 + [0] * 4)
    assert many.drop == pytest.approx(expected, abs=0.15)
    assert many.interval.low > 0.5
    assert medium.drop == medium.interval.low == medium.interval.high == 0
    assert board.more.drop == pytest.approx(many.drop)
    assert board.usual.groups[0][2] is None


def test_people_decide_another_order_than_labels(paper: Paper, tests: SecondTests):
    """own is right on images on which people are divided, rival on clear ones."""
    unclear = np.flatnonzero(tests.votes.max(1) < 50)
    clear = np.setdiff1d(np.arange(IMAGES), unclear)
    right = {name: np.isin(np.arange(IMAGES), clear[:count]) for name, count in zip(NAMES, (5000, 6600, 6000, 4000), strict=True)}
    right["own"][unclear[:700]] = True
    board = found(paper, tests, right)
    by_name = {result.name: result for result in board.results}
    assert board.methods[0] == "own@written"
    for name in ("clear images", "votes", "cross-entropy"):
        assert ("own@written", "rival@written") in [(lead.ahead, lead.behind) for lead in by_name[name].gone]


def test_the_votes_are_scored_as_their_formulas_say():
    votes = np.array([[30, 20, 0], [0, 50, 0]])
    answers = Answers(np.array([1, 1]), np.array([1, 1]), np.array([127, 255], np.uint8))
    assert vote_share(answers, votes).tolist() == [0.4, 1.0]
    q, top = 0.5, 254.5 / 255
    assert vote_cross_entropy(answers, votes).tolist() == pytest.approx(
        [-0.4 * np.log(q) - 0.6 * np.log((1 - q) / 2), -np.log(top)])


def test_tau_is_scipys_row_by_row():
    generator = np.random.default_rng(5)
    one, other = generator.integers(0, 6, (20, 7)).astype(float), generator.normal(size=(20, 7))
    expected = [kendalltau(a, b, method="asymptotic").statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(tau_b(one, other), expected)
    np.testing.assert_allclose(tau_b(one[0], other)[0], expected[0])


def test_the_bootstrap_has_the_spread_of_a_mean_over_images():
    values = (np.arange(2000) < 1400).astype(np.float32)
    means = drawn_images(2000) @ values / 2000
    assert len(means) == DRAWS
    assert means.std() == pytest.approx((0.7 * 0.3 / 2000) ** 0.5, rel=0.1)
    assert (drawn_images(2000).sum(1) == 2000).all()


def test_a_group_that_a_column_lacks_has_no_drop():
    labels, shots = np.repeat(np.arange(3), 20), np.array([0, 0, 0])
    drops, more = drops_of(np.ones(60), np.ones(60, bool), labels, shots)
    assert [drop.group for drop in drops] == ["many"]
    assert more is None


def test_a_further_test_set_ranks_the_methods_that_have_answered_it(paper: Paper, tests: SecondTests):
    records, _, _ = made(paper, right_answers(tests))
    labels = np.sort(np.random.default_rng(1).integers(0, 10, 500)).astype(np.uint8)
    share = {"own": 0.5, "rival": 0.6, "ce": 0.4}
    further = {}
    for record in records.values():
        name = record["label"].split()[1].split("@")[0]
        if name in share:
            last = np.where(np.arange(500) < 500 * share[name], labels, (labels + 1) % 10)
            further[record["digest"][:16]] = Predictions(labels, Answers(last, last, np.zeros(500, np.uint8)))
    board = found(paper, SecondTests(), right_answers(tests), {"cifar10.9_v1-01234567": further})
    [result] = board.results
    assert result.images == 500
    assert result.scores == (pytest.approx(50), pytest.approx(60), pytest.approx(40), None)
    assert [(lead.ahead, lead.behind) for lead in result.gone] == [("own@written", "rival@written")]
    assert result.groups == (None,) * 4


def test_a_method_without_predictions_is_left_out_and_named(paper: Paper, tests: SecondTests):
    records, hits, predictions = made(paper, right_answers(tests))
    lost = next(key for key, record in records.items() if "rival" in record["label"])
    second = Second({"cifar10": tests}, lambda record: predictions[record["key"]], {})
    without = {k: v for k, v in hits.items() if k != lost}
    [board] = clean_boards(boards(results_of([paper], records, "paper")), records, without, second)
    assert board.left_out == ("rival@written",)
    assert len(board.methods) == 3


# ---------------------------------------------------------------- the page


def test_the_page_says_what_is_gone(paper: Paper, tests: SecondTests):
    records, hits, predictions = made(paper, right_answers(tests))
    second = Second({"cifar10": tests, "cifar100": SecondTests()}, lambda record: predictions[record["key"]], {})
    view = clean_view(boards(results_of([paper], records, "paper")), records, hits, second)
    assert "without near-duplicates in the subset: 1 of 3 shown leads are gone (1 leaderboards)" in view["clean_answer"]
    [board] = view["clean"]
    near = board.tests[0]
    assert near.first == "rival@written is first in the place of own@written"
    assert near.gone[0].startswith("own@written led rival@written by +0.60 (+")
    assert near.tau.startswith("+0.67 (")
    assert board.names[0] == "usual test"
    assert dict(board.rows)["own@written"][0].text == "71.60 (1)"
    assert dict(board.rows)["own@written"][1].text == "71.43 (2)"
    lists = [sentence.split(" are not here")[0] for sentence in view["clean_waits"][:-1]]
    assert lists == ["Lists about cifar10", "Lists about cifar100"]


def test_the_whole_page_has_both_sections(paper: Paper, tests: SecondTests, tmp_path):
    records, hits, predictions = made(paper, right_answers(tests))
    second = Second({"cifar10": tests, "cifar100": SecondTests()}, lambda record: predictions[record["key"]], {})
    build_page(results_of([paper], records, "paper", hits), tmp_path, {}, tmp_path / "index.html", second)
    page = read(tmp_path / "index.html")
    [(_, clean)] = page.all("section", id="clean")
    assert "Leads that are gone: own@written led rival@written by +0.60" in clean
    assert "Higher on the usual test than without the near-duplicates that the subset keeps" in clean
    assert "cross-entropy, nats" in clean
    [(_, draws)] = page.all("section", id="draws")
    assert "Which images a subset keeps" in draws
    assert {has["href"] for has, _ in page.all("a")} >= {"#clean", "#draws"}


def test_before_there_are_runs_or_lists_the_page_says_what_it_waits_for(paper: Paper, tests: SecondTests):
    empty = Second({"cifar10": SecondTests(), "cifar100": SecondTests()}, lambda record: None, {})
    view = clean_view(boards(results_of([paper], {}, "paper")), {}, {}, empty)
    assert (view["clean"], view["clean_answer"]) == ([], "")
    assert view["clean_waits"][0].startswith("This waits for runs with predictions: none of the 4 main rows")
    assert "duplicates_cifar10.csv" in view["clean_waits"][1]
    assert "cifar10h-counts.npy" in view["clean_waits"][1]
    assert "duplicates_cifar100.csv" in view["clean_waits"][2]
    assert "CIFAR-10.1" in view["clean_waits"][-1]
