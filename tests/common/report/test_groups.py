"""Groups of classes by training images, and what a record says of each."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics import class_summary
from common.report.groups import SHOTS, SPANS, TENTHS, class_groups, classes_of, group_accuracy, group_names, is_group, majority

RECORD = {
    "counts": [10, 500, 20, 50, 200, 5, 100, 400, 300, 30], "per_class_accuracy": [float(10 * i) for i in range(10)],
    "accuracy": {"last": 45.0, "best": 46.0}, "groups": {"many": 60.0, "medium": None, "few": 20.0},
}


def test_classes_in_the_order_of_their_training_images() -> None:
    assert class_groups([5, 50, 20, 10], 2) == [[1, 2], [3, 0]]
    assert class_groups([7, 7, 7], 3) == [[0], [1], [2]]
    assert class_groups([1, 2], 10) == [[1], [0]]
    assert [len(part) for part in class_groups(range(100), 10)] == [10] * 10
    assert group_names(10)[0] == "Head1"
    assert group_names(10)[-1] == "Tail3"
    assert group_names(3) == ["G1", "G2", "G3"]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30, unique=True), st.integers(1, 12))
def test_groups_do_not_depend_on_the_order_of_classes(counts: list[int], number: int) -> None:
    order = random.Random(0).sample(range(len(counts)), len(counts))
    shuffled = [counts[i] for i in order]
    parts = class_groups(counts, number)
    assert [[order[i] for i in part] for part in class_groups(shuffled, number)] == parts
    assert sorted(i for part in parts for i in part) == list(range(len(counts)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("group", "value"), [
    ("", 45.0), ("all", 45.0), ("head", 60.0), ("medium", None), ("tail", 20.0), ("class-7", 70.0), ("class-10", None),
    ("head1", 10.0), ("head2", 70.0), ("mid4", 90.0), ("tail1", 20.0), ("tail2", 0.0), ("tail3", 50.0),
    ("head1-3", pytest.approx(160 / 3)), ("mid1-4", 55.0), ("tail1-3", pytest.approx(70 / 3)),
])
def test_accuracy_of_a_group(group: str, value: float | None) -> None:
    assert is_group(group)
    assert group_accuracy(RECORD, group) == value


def test_a_tenth_is_the_mean_of_its_classes() -> None:
    record = RECORD | {"counts": list(range(20, 0, -1)), "per_class_accuracy": [float(i) for i in range(20)]}
    assert group_accuracy(record, "head1") == 0.5
    assert group_accuracy(record, "tail3") == 18.5
    assert group_accuracy(record | {"counts": [3, 2, 1]}, "tail3") is None


def test_heads_middles_and_tails_together_are_all_classes_once() -> None:
    record = RECORD | {"counts": list(range(20, 0, -1)), "per_class_accuracy": [float(i) for i in range(20)]}
    assert [group_accuracy(record, name) for name in SPANS] == [2.5, 9.5, 16.5]
    assert [name for part in SPANS.values() for name in part] == list(TENTHS)
    assert group_accuracy(record | {"counts": [3, 2, 1]}, "tail1-3") is None


def test_which_classes_a_group_has() -> None:
    assert classes_of(RECORD, "all") == classes_of(RECORD, "") == list(range(10))
    assert [classes_of(RECORD, name) for name in ("head1", "tail3", "class-7", "class-10")] == [[1], [5], [7], []]
    assert classes_of(RECORD, "head1-3") == [1, 7, 8]  # as they follow each other by training images
    assert classes_of(RECORD | {"counts": [3, 2, 1]}, "tail3") == []
    assert sorted(i for name in SPANS for i in classes_of(RECORD, name)) == list(range(10))
    assert classes_of(RECORD, "minority") == [0, 2, 5, 9]  # below sqrt(5 x 500) = 50
    assert sorted(classes_of(RECORD, "majority") + classes_of(RECORD, "minority")) == list(range(10))


def test_head_medium_and_tail_are_the_groups_that_a_record_holds() -> None:
    counts, hits = np.array([101, 100, 20, 19, 500]), np.array([1, 2, 4, 8, 16])
    recorded = class_summary(hits, np.full(5, 100), np.ones((1, 3)), counts)
    for name, word in SHOTS.items():
        chosen = classes_of({"counts": counts.tolist()}, name)
        assert recorded["groups"][word] == pytest.approx(float(np.mean([recorded["per_class_accuracy"][i] for i in chosen])))


def test_the_best_epoch_is_known_for_the_whole_test_set() -> None:
    assert group_accuracy(RECORD, "all", "best") == 46.0
    assert {group_accuracy(RECORD, group, "best") for group in ("head", "class-1", *TENTHS)} == {None}


def test_unknown_groups() -> None:
    assert not any(map(is_group, ("heads", "class-", "class-x", "tail4", "head0", "Head1", "head1-2", "mid")))


def test_majority_classes_lie_above_the_geometric_mean() -> None:
    assert majority([100, 10, 1]) == [True, True, False]
